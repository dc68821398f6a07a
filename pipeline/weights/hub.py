"""Teachers of the model hub, named by id and commit."""

import hashlib
import re
from pathlib import Path

from data_cache.files import file_sha256
from pipeline.errors import RecipeError
from pipeline.weights.catalog import HUB_LICENCES, UNKNOWN_LICENCE
from pipeline.weights.fetch import HUB_TIMEOUT_S, MODEL_FILE, WeightFolder, WeightsError

PREFIX = "hub:"
_NAME = re.compile(rf"{PREFIX}(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{{40}})")
_WANTED = ["*.json", "*.safetensors", "*.txt"]
_UNWANTED = ["*.fp16.safetensors", "*.non_ema.safetensors"]
"""Rounded or unused copies beside the weights that are loaded."""
MODELS = (MODEL_FILE, "model_index.json")
"""Either one makes a folder a teacher: a model of transformers or a pipeline of diffusers."""


def hub_weights(name: str) -> WeightFolder:
    """Get the files of one commit, from the hub client's own cache or by download.

    Args:
        name: hub:owner/name@<40-digit commit>.

    Raises:
        RecipeError: if the name is malformed or has no commit.
        WeightsError: if it is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    hub_id, revision = _id_and_revision(name)
    folder = _cached(hub_id, revision)
    if folder is None:
        try:
            folder = Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    allow_patterns=_WANTED,
                    ignore_patterns=_UNWANTED,
                    etag_timeout=HUB_TIMEOUT_S,
                )
            )
        # The client raises its own errors, its HTTP library's and the system's; which ones differs between releases.
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0]
            raise WeightsError(
                f"cannot get {hub_id} at {revision} from the model hub: {type(error).__name__}: {reason}\n"
                f"Remedy: on a machine with a network run `hf download {hub_id} --revision {revision}` and copy its"
                " cache here (HF_HOME), or name a folder with the files in teacher_cache.weights."
            ) from error
    return _weight_folder(hub_id, folder)


def cached_hub_weights(name: str) -> WeightFolder | None:
    """Find the files of one commit in the hub client's own cache; None if they are not there."""
    hub_id, revision = _id_and_revision(name)
    folder = _cached(hub_id, revision)
    return _weight_folder(hub_id, folder) if folder is not None else None


def weights_sha256(folder: Path) -> str:
    """sha256 of model.safetensors; of several files, that of their sha256 sums in the order and form of `sha256sum`.

    Raises:
        RecipeError: if the folder holds no weights.
    """
    single = folder / MODEL_FILE
    if single.is_file():
        return file_sha256(single)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))
    if not names:
        raise RecipeError(f"{folder}: expected {MODEL_FILE} or the safetensors of a diffusers pipeline, found none")
    sums = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(sums.encode()).hexdigest()


def _weight_folder(hub_id: str, folder: Path) -> WeightFolder:
    return WeightFolder(folder, weights_sha256(folder), HUB_LICENCES.get(hub_id, UNKNOWN_LICENCE), "model hub")


def _id_and_revision(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise RecipeError(
            f"weights {name!r}: expected {PREFIX}owner/name@<40-digit commit>; a branch or tag can move, and then the"
            " cache would not hold what its recipe says"
        )
    return match["id"], match["revision"]


def _cached(hub_id: str, revision: str) -> Path | None:
    """The folder of a commit that was downloaded before; an interrupted download does not count."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if any((folder / name).is_file() for name in MODELS) else None
