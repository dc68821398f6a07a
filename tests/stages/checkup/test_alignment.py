from dataclasses import replace

import numpy as np
import pytest
import torch

from data_cache.frames.rig import Frame
from data_cache.sources.synthetic.source import SyntheticSource
from stages.checkup.alignment import AS_GIVEN, CHANGES, Change, JumpCounts, alignment, check_alignment, count_jumps
from stages.checkup.readable import read_sample
from stages.teacher.base import TeacherOutput

SIZE = (192, 320)
OF_CHANGE = {change: i for i, change in enumerate(CHANGES)}


class Oracle:
    """A teacher that knows the true depth of the views that it is shown."""

    name, licence, space, input_size = "oracle", "none", "disparity", SIZE
    weights_sha256, preprocessing, precision, runtime = "0" * 64, "none", "fp32", "torch"

    def __init__(self, frame: Frame):
        self.truths_m = [truth() for truth in frame.load_truth_m or ()]

    def __call__(self, images: torch.Tensor) -> TeacherOutput:
        truth_m = torch.from_numpy(np.stack([self.truths_m.pop(0)[::2, ::2] for _ in images]))
        disparity = torch.where(truth_m > 0, 1 / truth_m.clamp(min=0.1), 0.0)
        return TeacherOutput(disparity, torch.zeros(len(images), 4, *(side // 14 for side in SIZE)))


class BadlyMounted(SyntheticSource):
    """The synthetic drives with one camera whose calibration says 2 degrees more to the left or the right."""

    def __init__(self, view: int, right_deg: float):
        super().__init__()
        self._view, self._right = view, np.deg2rad(right_deg)

    def frame(self, frame_id):
        frame = super().frame(frame_id)
        c, s = np.cos(self._right), np.sin(self._right)
        turn = np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])
        views = list(frame.views)
        views[self._view] = replace(views[self._view], world_from_cam=views[self._view].world_from_cam @ turn)
        return replace(frame, views=tuple(views))


@pytest.mark.parametrize(("view", "right_deg"), [(0, 2.0), (4, -2.0)])
def test_a_camera_turned_by_two_degrees_is_found_and_no_other(view, right_deg):
    source = BadlyMounted(view, right_deg)
    sample = read_sample(source, ["drive-03/0"], SIZE)
    found = check_alignment(Oracle(source.frame("drive-03/0")), sample.frames)
    assert [i for i, aligned in found.items() if aligned.suspicious] == [view]
    better = found[view].better
    assert better is not None
    assert (np.sign(better.right_deg), abs(better.right_deg) >= 1, better.down_deg) == (-np.sign(right_deg), True, 0)
    assert f"further {'left' if right_deg > 0 else 'right'}" in str(better)


def test_a_jump_counts_where_the_teacher_sees_it_too():
    """By hand: returns at 10 m and 20 m on either side of an edge; the teacher sees it there, or 6 columns further."""
    depth_m = np.zeros((40, 70))
    depth_m[10, 19], depth_m[10, 20] = 10, 20
    K_px = np.array([[60.0, 0, 35], [0, 60, 20], [0, 0, 1]])
    columns = np.arange(70)
    same = np.broadcast_to(np.where(columns < 20, 0.8, 0.5), (40, 70))
    later = np.broadcast_to(np.where(columns < 26, 0.8, 0.5), (40, 70))
    there, elsewhere = count_jumps(same, depth_m, K_px), count_jumps(later, depth_m, K_px)
    assert (there.pairs[AS_GIVEN], there.agreed[AS_GIVEN]) == (1, 1)
    assert (elsewhere.pairs[AS_GIVEN], elsewhere.agreed[AS_GIVEN]) == (1, 0)
    # A degree is a pixel here: the camera has to be turned to the left for the returns to move to the right.
    assert there.agreed[OF_CHANGE[Change(right_deg=-3.0)]] == there.agreed[OF_CHANGE[Change(right_deg=3.0)]] == 0
    reversed_u = count_jumps(1 - same, depth_m, K_px)
    assert reversed_u.agreed[AS_GIVEN] == 0


def counts(given, pairs=1000, **shares):
    agreed = np.full(len(CHANGES), 100)
    agreed[AS_GIVEN] = given
    for name, value in shares.items():
        change = {"near": Change(right_deg=1.0), "far": Change(down_deg=-2.0), "zoom": Change(zoom=1.1)}[name]
        agreed[OF_CHANGE[change]] = value
    return JumpCounts(agreed, np.full(len(CHANGES), pairs))


@pytest.mark.parametrize(
    ("jumps", "suspicious"),
    [
        (counts(300), False),
        (counts(300, near=470), False),  # 1.57 times
        (counts(300, near=490), True),  # 1.63
        (counts(300, far=350), False),  # 1.17
        (counts(300, far=370), True),  # 1.23
        (counts(300, zoom=380), False),  # 1.27
        (counts(300, zoom=400), True),  # 1.33
        (counts(5, far=130), True),
        (counts(30, pairs=190, far=90), False),  # too few pairs
    ],
)  # fmt: skip
def test_another_calibration_is_believed_if_it_fits_better_than_chance_can(jumps, suspicious):
    assert alignment(jumps).suspicious is suspicious


def test_a_camera_that_shares_no_jump_is_doubted_and_one_with_too_few_is_left_open():
    lost = JumpCounts(np.full(len(CHANGES), 50), np.full(len(CHANGES), 1000))
    open_ = JumpCounts(np.full(len(CHANGES), 50), np.full(len(CHANGES), 100))
    assert (alignment(lost).lost, alignment(lost).suspicious, alignment(open_).lost) == (True, False, False)
