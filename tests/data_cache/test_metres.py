"""Files of metres that stand for LiDAR: what is written comes back, and nothing else is taken for it."""

import numpy as np
import pytest

from data_cache.metres import DamagedMetresError, read_metres, write_metres

SHAPE = (2, 3, 5)


def metres() -> np.ndarray:
    depth_m = np.linspace(0.5, 80, 30).reshape(SHAPE)
    depth_m[1, 0] = 0
    return depth_m


def test_depths_come_back_to_half_precision(tmp_path):
    write_metres(tmp_path / "a.npz", metres())
    found = read_metres(tmp_path / "a.npz", SHAPE, "d/7")
    np.testing.assert_allclose(found, metres(), rtol=2**-11)
    assert found.dtype == np.float32
    assert ((found == 0) == (metres() == 0)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing"])
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    path = tmp_path / "a.npz"
    write_metres(path, metres())
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = bytearray(content)
        flipped[content.index(b"depth_m.npy") + 40] ^= 0xFF
        path.write_bytes({"cut": content[:-30], "flipped": bytes(flipped), "empty": b""}[damage])
    with pytest.raises(DamagedMetresError, match=r"cannot be read: .*a\.npz, metres of frame d/7\); delete the file"):
        read_metres(path, SHAPE, "d/7")


@pytest.mark.parametrize(
    ("depth_m", "message"),
    [
        (metres()[:1], r"expected float16 of shape \(2, 3, 5\), found float16 of \(1, 3, 5\)"),
        (np.full(SHAPE, np.nan), "expected depths of 0 m or more"),
        (-metres(), "expected depths of 0 m or more"),
    ],
)
def test_what_is_no_depth_is_refused(tmp_path, depth_m, message):
    write_metres(tmp_path / "a.npz", depth_m)
    with pytest.raises(DamagedMetresError, match=message):
        read_metres(tmp_path / "a.npz", SHAPE, "d/7")
