"""Receipts: the files that prove that a shard is complete."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from data_cache.shards.errors import DamagedCacheError
from data_cache.shards.identity import CacheIdentity
from data_cache.shards.schema import ARRAYS, array_table, shard_name


@dataclass(frozen=True)
class StoredFile:
    """A shard file: its size and hash when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done; it is written only after every file it lists is on disk.

    Attributes:
        shard: number of the shard.
        identity_sha256: identity of the cache that it belongs to.
        files: size and hash by path relative to the cache folder.
        quarantined: reason by frame id; these frames hold zeros.
        notes: what a usable frame lacks (a camera, a sweep, LiDAR points that are not finite), by frame id.
    """

    shard: int
    identity_sha256: str
    files: Mapping[str, StoredFile]
    quarantined: Mapping[str, str]
    notes: Mapping[str, str]

    def proves(self, shard: int, identity: CacheIdentity) -> bool:
        """Whether this is the receipt of that shard of that cache and lists all its arrays and nothing else."""
        names = {shard_name(name, spec, shard) for name, spec in array_table(identity).items()}
        ours = self.shard == shard and self.identity_sha256 == identity.sha256
        return ours and self.files.keys() == names

    def to_json(self) -> str:
        """Canonical text: equal receipts give equal bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: bytes, where: str) -> "Receipt":
        """Parse a receipt.

        Raises:
            DamagedCacheError: if the text is not a receipt.
        """
        try:
            table = json.loads(text)
            return Receipt(
                shard=int(table["shard"]),
                identity_sha256=str(table["identity_sha256"]),
                files={str(k): StoredFile(int(v["bytes"]), str(v["sha256"])) for k, v in table["files"].items()},
                quarantined={str(k): str(v) for k, v in table["quarantined"].items()},
                notes={str(k): str(v) for k, v in table["notes"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCacheError(
                f"{where} is not a receipt ({error}); delete it and run teacher-cache again: its shard is redone"
            ) from error


RECEIPTS = "receipts"


def receipt_name(shard: int) -> str:
    """File name of the receipt of a shard."""
    return f"{RECEIPTS}/{shard:06d}.json"


def shard_of(name: str) -> int | None:
    """The shard that a receipt, a shard file or a partial file of either belongs to; None for other files."""
    match = re.match(rf"{RECEIPTS}/(\d+)\.json|{re.escape(ARRAYS)}/\w+/c\.(\d+)\.", name)
    return int(match[1] or match[2]) if match else None
