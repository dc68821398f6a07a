"""The rig folder that tests of reading and of writing one begin with."""

import numpy as np
import pytest
from PIL import Image
from support.data_sets.rig_folder import write


@pytest.fixture
def folder(tmp_path):
    """Three frames of two cameras, with LiDAR, in `van`; beside it a file that is nobody's business."""
    root = tmp_path / "van"
    (root / "images").mkdir(parents=True)
    (root / "lidar").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(root / f"images/{number}.png")
        Image.new("RGB", (8, 4), (0, number, 0)).save(root / f"images/b{number}.png")
        np.save(root / f"lidar/{number}.npy", [[12.0, 0.5, -1.0], [np.nan, 0, 0]])
    Image.new("RGB", (8, 6)).save(tmp_path / "secret.png")
    write(root)
    return root
