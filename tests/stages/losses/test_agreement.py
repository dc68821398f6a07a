import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rings import K_PX, batch, place, smooth, surround, views, without

from data_cache.dataset import CachedRigs, collate, single
from stages.evaluation.consistency import overlap_consistency
from stages.losses.agreement import agreement_loss
from stages.training.augment import mirror


def wall_and_two_cameras(apart_m: float = 1.0) -> CachedRigs:
    """Cameras side by side that look the same way."""
    return batch(views(smooth(2, 3, 9, 14), K_PX, torch.stack([place(), place(x_m=apart_m)])))


def test_depths_that_disagree_by_hand():
    """Two cameras 1 m apart that look the same way: z is the same for both. One says 4 m, the other 5 m.

    The pair of the first camera: log 5 / 4 wherever it falls inside; of two views there is one step round the ring, in
    which each is the other's neighbour, so all pixels say log 1.25.
    """
    depth_m = torch.stack([torch.full((9, 14), 4.0), torch.full((9, 14), 5.0)])[None]
    torch.testing.assert_close(agreement_loss(depth_m, wall_and_two_cameras()), torch.tensor(math.log(1.25)))


def test_surfaces_further_apart_than_the_metric_compares_cost_the_same_and_teach_nothing():
    depth_m = torch.stack([torch.full((9, 14), 4.0), torch.full((9, 14), 7.0)])[None].requires_grad_()
    loss = agreement_loss(depth_m, wall_and_two_cameras())
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1.5))
    assert depth_m.grad is not None
    assert (depth_m.grad == 0).all()


def test_one_surface_costs_nothing_in_any_ring():
    """A sphere around a rig whose cameras share a centre: every camera sees it at the same distance."""
    rigs = surround(4)
    poses = rigs.rig_from_cam.clone()
    poses[..., :3, 3] = 0
    rigs = replace(rigs, rig_from_cam=poses)
    v, u = torch.meshgrid(torch.arange(9) + 0.5, torch.arange(22) + 0.5, indexing="ij")
    rays = torch.linalg.inv(rigs.intrinsics[0]) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    depth_m = (6 / rays.norm(dim=1)).unflatten(-1, (9, 22))[None]
    same, other = (
        agreement_loss(depth_m, rigs),
        agreement_loss(depth_m * torch.tensor([1, 1.2, 1, 1]).view(4, 1, 1), rigs),
    )
    assert same < 0.02  # depth is read between pixels
    assert other > 0.05


def test_both_depths_learn_and_learning_makes_the_metric_better():
    rigs = surround(4)
    depth_m = (4 + smooth(1, 4, 9, 22, seed=3)).requires_grad_()

    def overlap(depth: torch.Tensor) -> float:
        K, pose = (t[0].double().numpy() for t in (rigs.intrinsics, rigs.rig_from_cam))
        pairs = [(i, (i + step) % 4) for i in range(4) for step in (1, 3)]
        found = [overlap_consistency(depth[0].detach().numpy()[[a, b]], K[[a, b]], pose[[a, b]]) for a, b in pairs]
        return float(np.mean([pair.abs_rel for pair in found if pair.abs_rel is not None]))

    before = overlap(depth_m)
    optimizer = torch.optim.Adam([depth_m], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        agreement_loss(depth_m, rigs).backward()
        assert depth_m.grad is not None
        assert (depth_m.grad.abs().amax((0, 2, 3)) > 0).all()
        optimizer.step()
    assert overlap(depth_m) < 0.5 * before


@pytest.mark.parametrize("view_count", [2, 3, 6])
def test_a_mirrored_rig_has_the_same_loss(view_count):
    rigs = surround(view_count)
    depth_m = 2 + 3 * smooth(1, view_count, 9, 22, seed=5)
    order = [-j % view_count for j in range(view_count)]
    mirrored = collate([mirror(single(rigs, 0))])
    loss = agreement_loss(depth_m, rigs)
    torch.testing.assert_close(agreement_loss(depth_m[:, order].flip(-1), mirrored), loss, atol=1e-6, rtol=1e-4)
    if view_count > 2:
        assert loss > 0.01
        still = replace(mirrored, rig_from_cam=rigs.rig_from_cam)
        assert abs(agreement_loss(depth_m[:, order].flip(-1), still) - loss) > 1e-4


def test_a_missing_camera_is_in_no_pair_and_the_gap_is_not_bridged():
    rigs = without(surround(), 1)
    depth_m = (3 + smooth(1, 4, 9, 22)).requires_grad_()
    agreement_loss(depth_m, rigs).backward()
    assert depth_m.grad is not None
    assert depth_m.grad.abs().amax((0, 2, 3)).gt(0).tolist() == [True, False, True, True]


@pytest.mark.parametrize("rigs", [surround(1), without(without(surround(3), 0), 1)])
def test_nobody_to_agree_with_costs_nothing(rigs):
    depth_m = torch.full((*rigs.view_valid.shape, 9, 22), 3.0, requires_grad=True)
    loss = agreement_loss(depth_m, rigs)
    loss.backward()
    assert loss == 0
    assert depth_m.grad is not None
    assert (depth_m.grad == 0).all()
