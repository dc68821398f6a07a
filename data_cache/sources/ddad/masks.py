"""Self-occlusion masks of DDAD: a few sets of one mask per camera, and the set that each scene uses."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from data_cache.errors import SourceError
from data_cache.frames.images import load_mask
from data_cache.sources.parsing.metadata import found_in
from data_cache.sources.parsing.pickles import load_whole_numbers

FOLDER = "ddad_mask"
SETS = "mask_idx_dict.pkl"


def find_masks(root: Path) -> Path | None:
    """The folder of masks in or beside the DDAD folder; None if there is none."""
    return next((folder for folder in (root / FOLDER, root.resolve().parent / FOLDER) if folder.is_dir()), None)


class DdadMasks:
    """Masks in the layout of VFDepth's repository: `SET/CAMERA_mask.png`, 255 = use, and a pickled {scene number: set}.

    Args:
        folder: the folder that holds `mask_idx_dict.pkl`.
        cameras: names of the cameras that every set must hold.

    Raises:
        SourceError: if the folder has another layout, or masks are missing.
    """

    def __init__(self, folder: Path, cameras: Sequence[str]) -> None:
        if not (folder / SETS).is_file():
            raise SourceError(
                f"ddad: expected {SETS} and folders of masks, {found_in(folder)}; pass the folder {FOLDER} of VFDepth's"
                " repository as data.masks"
            )
        self._folder = folder
        self._set_of_scene = load_whole_numbers(folder / SETS)
        needed = [self._file(number, name) for number in set(self._set_of_scene.values()) for name in cameras]
        missing = sorted(str(path) for path in needed if not path.is_file())
        if missing:
            raise SourceError(
                f"ddad: {len(missing)} of {len(needed)} masks are missing: {missing[0]}, ...; copy them all"
            )

    def loader(self, scene: str, camera: str, size: tuple[int, int]) -> Callable[[], Bool[np.ndarray, "H W"]] | None:
        """A loader of the mask of a camera in a scene (a folder named by number); None if the scene is not listed."""
        number = self._set_of_scene.get(int(scene)) if scene.isdecimal() else None
        return partial(load_mask, self._file(number, camera), size) if number is not None else None

    def _file(self, number: int, camera: str) -> Path:
        return self._folder / str(number) / f"{camera}_mask.png"
