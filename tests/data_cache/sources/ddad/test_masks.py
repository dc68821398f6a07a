import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.data_sets.ddad import MASK_SIZE, write_masks

from data_cache.errors import FrameError, SourceError
from data_cache.frames.images import mask_at
from data_cache.sources.ddad.masks import DdadMasks, find_masks
from data_cache.sources.ddad.source import CAMERAS, DdadSource
from data_cache.sources.parsing.pickles import NUMBERS_LIMIT, load_whole_numbers
from data_cache.sources.registry import open_source


def test_a_scene_has_the_masks_of_its_set(tmp_path):
    masks = DdadMasks(write_masks(tmp_path / "m", {187: 1, 3: 0}), CAMERAS)
    load = masks.loader("000187", CAMERAS[2], MASK_SIZE)
    assert load is not None
    mask = load()
    assert (mask.shape, mask.dtype) == (MASK_SIZE, bool)
    np.testing.assert_array_equal(mask[0], [False] * 3 + [True] * 5)
    assert masks.loader("000003", CAMERAS[0], MASK_SIZE)().all()
    assert masks.loader("000004", CAMERAS[0], MASK_SIZE) is None
    assert masks.loader("tiny", CAMERAS[0], MASK_SIZE) is None


def test_a_mask_of_another_size_or_a_damaged_one_costs_its_frame(tmp_path):
    folder = write_masks(tmp_path / "m", {187: 1})
    (folder / "1" / f"{CAMERAS[1]}_mask.png").write_bytes(b"no image")
    masks = DdadMasks(folder, CAMERAS)
    with pytest.raises(FrameError, match=r"CAMERA_01_mask.png: expected 7 x 8 px .* found 6 x 8"):
        masks.loader("000187", CAMERAS[0], (7, 8))()
    with pytest.raises(FrameError, match="cannot be decoded"):
        masks.loader("000187", CAMERAS[1], MASK_SIZE)()


def test_they_are_found_in_the_data_folder_and_beside_it(tmp_path, monkeypatch):
    root = tmp_path / "ddad" / "val"
    root.mkdir(parents=True)
    assert find_masks(root) is None
    beside = write_masks(tmp_path / "ddad" / "ddad_mask", {1: 0})
    assert find_masks(root) == beside
    monkeypatch.chdir(root)
    assert find_masks(Path()) == beside
    inside = write_masks(root / "ddad_mask", {1: 0})
    assert find_masks(root) == inside


def test_an_incomplete_folder_is_an_error_that_names_what_is_missing(tmp_path):
    with pytest.raises(SourceError, match=r"expected mask_idx_dict.pkl .* found no folder"):
        DdadMasks(tmp_path / "none", CAMERAS)
    folder = write_masks(tmp_path / "m", {1: 0, 2: 3})
    (folder / "3" / "CAMERA_09_mask.png").unlink()
    with pytest.raises(SourceError, match=r"1 of 12 masks are missing: .*3/CAMERA_09_mask.png"):
        DdadMasks(folder, CAMERAS)


def test_masks_of_a_source_that_has_none_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"pandaset: data\.masks is for ddad alone; leave it out"):
        open_source("pandaset", tmp_path, masks=tmp_path)


@given(st.dictionaries(st.integers(0, 2**40), st.integers(-5, 300), max_size=20), st.integers(0, 5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
def test_numbers_that_were_pickled_come_back(tmp_path, numbers, protocol):
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(numbers, protocol=protocol))
    assert load_whole_numbers(tmp_path / "n.pkl") == numbers


class Attack:
    def __reduce__(self):
        return os.mkdir, ("/nowhere/attacked",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({1: Attack()}), "asks for posix.mkdir; refused"),
        (pickle.dumps({1: np.int64(2)}), "refused"),
        (pickle.dumps({1: 2.0}), "expected a dictionary of whole numbers"),
        (pickle.dumps({1: True}), "expected a dictionary of whole numbers"),
        (pickle.dumps([1, 2]), "expected a dictionary of whole numbers"),
        (pickle.dumps({1: 2})[:-1], "damaged"),
        (b"", "damaged"),
        (b"r\xff\xff\xff\x7f.", "memo"),
        (b"\x80\x03" + b"N0" * NUMBERS_LIMIT, "found more"),
    ],
    ids=range(9),
)
def test_other_pickles_are_refused(tmp_path, data, message):
    (tmp_path / "n.pkl").write_bytes(data)
    with pytest.raises(SourceError, match=message):
        load_whole_numbers(tmp_path / "n.pkl")
    with pytest.raises(SourceError, match=r"none\.pkl: expected a file, found none"):
        load_whole_numbers(tmp_path / "none.pkl")


def test_a_mask_at_half_its_size_keeps_what_is_not_all_vehicle():
    """Eleven columns of the vehicle, then five of the scene; what lies around column 11 depends on the filter."""
    mask = np.tile(np.arange(16) >= 11, (4, 1))
    small = mask_at(mask, (2, 8))
    assert small.shape == (2, 8)
    np.testing.assert_array_equal(small[0, [0, 1, 2, 5, 6, 7]], [False, False, False, True, True, True])
    assert mask_at(mask, (4, 16)) is mask


def test_the_real_masks_hide_the_vehicle_from_its_side_and_rear_cameras(real_data):
    source = DdadSource(real_data / "ddad" / "ddad_train_val")
    views = source.frame("000187/15616458251018358").views
    shown = {view.camera.name: view.load_unoccluded().mean().round(4) for view in views}
    assert shown == {
        "CAMERA_01": 1.0, "CAMERA_06": 0.953, "CAMERA_08": 0.7615,
        "CAMERA_09": 0.7855, "CAMERA_07": 0.7929, "CAMERA_05": 0.9641,
    }  # fmt: skip
