"""Relations of bin probabilities: neighbours on the surfaces that the teacher finds in both."""

import math
from dataclasses import replace

import pytest
import torch
from support.rings import K_PX, batch, place, smooth, surround, views, without

from data_cache.dataset import CachedRigs, collate, single
from stages.losses.bin_relation import SURE_WITHIN, bin_relation_loss
from stages.targets.lidar_fit import FARTHEST_M, LidarFit
from stages.training.augment import mirror

FITTED = torch.ones(1, 2, dtype=torch.bool)


def two_cameras(apart_m: float = 1.0) -> CachedRigs:
    """Side by side, looking the same way: depth in one is depth in the other."""
    return batch(views(smooth(2, 3, 9, 14), K_PX, torch.stack([place(), place(x_m=apart_m)])))


def flat(first_m: float, second_m: float) -> torch.Tensor:
    return torch.stack([torch.full((9, 14), first_m), torch.full((9, 14), second_m)])[None]


def test_students_and_teachers_that_disagree_by_hand():
    """The student says 4 and 12 m of the upper four of nine rows, 4 and 4 m below: log 3 and 0.

    Of a teacher who is sure of the lower five rows, and is two SURE_WITHIN apart in the upper ones, these count
    exp(-2) each: 4 e^-2 log 3 / (4 e^-2 + 5).
    """
    rigs, depth_m, teacher_m = two_cameras(apart_m=0.0), flat(4.0, 12.0), flat(5.0, 5.0)
    depth_m[..., 4:, :] = 4.0
    loss = bin_relation_loss(depth_m, teacher_m, FITTED, rigs)
    torch.testing.assert_close(loss, torch.tensor(4 / 9 * math.log(3.0)))
    teacher_m[:, 1, :4] *= math.exp(2 * SURE_WITHIN)
    loss = bin_relation_loss(depth_m, teacher_m, FITTED, rigs)
    upper = 4 * math.exp(-2)
    torch.testing.assert_close(loss, torch.tensor(upper * math.log(3.0) / (upper + 5)))


def test_gross_disagreement_is_pulled_together():
    """Where the agreement of the student's own surfaces has no gradient any more."""
    depth_m = flat(4.0, 12.0).requires_grad_()
    bin_relation_loss(depth_m, flat(5.0, 5.0), FITTED, two_cameras()).backward()
    assert depth_m.grad is not None
    assert (depth_m.grad[0, 0] <= 0).all()
    assert depth_m.grad[0, 0].sum() < 0 < depth_m.grad[0, 1].sum()


def test_views_without_a_fit_sky_and_missing_cameras_say_nothing():
    rigs, depth_m, teacher_m = two_cameras(), flat(4.0, 12.0), flat(5.0, 5.0)
    assert bin_relation_loss(depth_m, teacher_m, torch.tensor([[True, False]]), rigs).item() == 0
    beyond = LidarFit(torch.ones(1, 2), torch.tensor([[-0.01, 0.0]]), FITTED).depth_m(torch.zeros_like(depth_m))
    assert beyond.unique().tolist() == [FARTHEST_M]
    assert bin_relation_loss(depth_m, beyond, FITTED, rigs).item() == 0
    gone = replace(rigs, view_valid=torch.tensor([[True, False]]))
    assert bin_relation_loss(depth_m, teacher_m, FITTED, gone).item() == 0
    ring = surround(4)
    depth_m, teacher_m = 4 + smooth(1, 4, 9, 22, seed=3), 4 + smooth(1, 4, 9, 22, seed=4)
    fitted = torch.ones(1, 4, dtype=torch.bool)
    other = depth_m.clone()
    other[0, 1] = 99.0
    found = (bin_relation_loss(depth, teacher_m, fitted, without(ring, 1)) for depth in (depth_m, other))
    assert len({value.item() for value in found}) == 1


def test_a_point_that_the_student_puts_behind_the_neighbour_says_nothing():
    """The second camera stands 5 m ahead of the first, and the teacher sees a wall at 20 and 15 m.

    The student's 4 m of the first camera lie behind the second; its 10 m of the second are 15 m in the first: log 15/4.
    """
    rigs = batch(views(smooth(2, 3, 9, 14), K_PX, torch.stack([place(), place(z_m=5.0)])))
    loss = bin_relation_loss(flat(4.0, 10.0), flat(20.0, 15.0), FITTED, rigs)
    torch.testing.assert_close(loss, torch.tensor(math.log(15 / 4)))


def test_a_mirrored_rig_costs_the_same():
    ring, depth_m, teacher_m = surround(4), 4 + smooth(1, 4, 9, 22, seed=3), 4 + smooth(1, 4, 9, 22, seed=4)
    order = [0, 3, 2, 1]
    mirrored = collate([mirror(single(ring, 0))])
    fitted = torch.ones(1, 4, dtype=torch.bool)
    turned = (values[:, order].flip(-1) for values in (depth_m, teacher_m))
    expected = bin_relation_loss(depth_m, teacher_m, fitted, ring).item()
    assert bin_relation_loss(*turned, fitted, mirrored).item() == pytest.approx(expected, rel=1e-4)
