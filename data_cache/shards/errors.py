"""Errors: why a cache cannot be used."""

from collections.abc import Mapping

from data_cache.errors import SurroundError


class CacheError(SurroundError):
    """A cache cannot be used as asked."""


EDITED = ", or rig.json or frames.jsonl was edited since"


class StaleCacheError(CacheError):
    """The cache was written under another recipe, or its data set was edited afterwards."""

    def __init__(self, where: str, differences: Mapping[str, tuple[object, object]]):
        # Other frames always have other metadata: naming that as well would say nothing more.
        implied = {"metadata_sha256"} if "frames_sha256" in differences else set()
        self.where, self.differences = where, {k: v for k, v in differences.items() if k not in implied}
        edited = EDITED if "metadata_sha256" in self.differences else ""
        lines = [f"  {key}: cache has {old!r}, recipe says {new!r}" for key, (old, new) in self.differences.items()]
        super().__init__(
            "\n".join(
                [
                    f"{where} was written under another recipe{edited}:",
                    *lines,
                    "Point --run at another folder, restore these values in the recipe, or delete the cache folder.",
                ]
            )
        )

    def __reduce__(self) -> tuple[type["StaleCacheError"], tuple[str, dict[str, tuple[object, object]]]]:
        return StaleCacheError, (self.where, self.differences)  # it may come from another process


class IncompleteCacheError(CacheError):
    """Some shards have no receipt."""


class DamagedCacheError(CacheError):
    """Stored bytes differ from what the receipt says."""
