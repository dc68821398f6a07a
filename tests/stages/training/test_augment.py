from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fakes import rig_tensors
from support.random_rigs import BINS, random_rig

from data_cache.dataset import CachedRigs, CachedViews
from data_cache.frames.geometry import project
from data_cache.frames.rig import require_rigid
from data_cache.shards.encodings import ENCODINGS, ClosedFormBins, DenseBins, StoredBins, WindowBins
from stages.targets.bins import decode
from stages.targets.relations import pool_tokens, ring_relations
from stages.training.augment import jitter_colours, mirror


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("view_count", [1, 2, 3, 6])
def test_two_mirrors_change_nothing(view_count, encoding):
    rig, _ = random_rig(view_count, encoding)
    twice = mirror(mirror(rig))
    assert twice.frame_ids == rig.frame_ids
    assert all(torch.equal(a, b) for a, b in zip(rig_tensors(twice), rig_tensors(rig), strict=True))
    alone = replace(rig, neighbour=None)
    assert mirror(alone).neighbour is None


HAND_BINS: dict[str, tuple[StoredBins[torch.Tensor], StoredBins[torch.Tensor]]] = {
    "window": (
        WindowBins(
            torch.tensor([[[1, 2]], [[0, 0]], [[5, 6]], [[7, 8]]], dtype=torch.uint8),
            torch.tensor(
                [[[[255, 10], [255, 20]]], [[[0, 0], [0, 0]]], [[[50, 255], [60, 255]]], [[[255, 70], [80, 255]]]],
                dtype=torch.uint8,
            ),
        ),
        WindowBins(
            torch.tensor([[[2, 1]], [[8, 7]], [[6, 5]], [[0, 0]]], dtype=torch.uint8),
            torch.tensor(
                [[[[255, 20], [255, 10]]], [[[80, 255], [255, 70]]], [[[60, 255], [50, 255]]], [[[0, 0], [0, 0]]]],
                dtype=torch.uint8,
            ),
        ),
    ),
    "closed_form": (
        ClosedFormBins(torch.tensor([[[100, 200]], [[0, 0]], [[500, 600]], [[700, 65535]]], dtype=torch.int32)),
        ClosedFormBins(torch.tensor([[[200, 100]], [[65535, 700]], [[600, 500]], [[0, 0]]], dtype=torch.int32)),
    ),
    "dense": (
        DenseBins(
            torch.tensor(
                [[[[0.75, 0.25], [0.5, 0.5]]], [[[0, 0], [0, 0]]], [[[0, 1], [1, 0]]], [[[0.125, 0.875], [1, 0]]]]
            ).half()
        ),
        DenseBins(
            torch.tensor(
                [[[[0.5, 0.5], [0.75, 0.25]]], [[[1, 0], [0.125, 0.875]]], [[[1, 0], [0, 1]]], [[[0, 0], [0, 0]]]]
            ).half()
        ),
    ),
}
"""Bins of four views of 1 x 2 pixels, and those of their mirror."""


def one_token(view: int, token: int) -> torch.Tensor:
    """Tokens of four views, all zero but this one: row 1, column 3 of view 1 goes to row 1, column 6 of view 3."""
    tokens = torch.zeros(4, 60, 1)
    tokens[view, token] = 0.9
    return tokens


def hand_images(rows: list[list[list[int]]]) -> torch.Tensor:
    """Grey pictures (V, 3, H, W) whose green is 1 and whose blue is 2 brighter."""
    grey = torch.tensor(rows, dtype=torch.uint8)
    return torch.stack([grey, grey + 1, grey + 2], dim=1)


FORWARD = [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]
LEFT = [[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]  # x of the camera is ahead, its z to the left
RIGHT = [[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]
BACK = [[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]]


def hand_poses(*cameras: tuple[list[list[float]], list[float]]) -> torch.Tensor:
    pose = torch.eye(4).repeat(len(cameras), 1, 1)
    for i, (rotation, place_m) in enumerate(cameras):
        pose[i, :3, :3], pose[i, :3, 3] = torch.tensor(rotation), torch.tensor(place_m)
    return pose


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mirrored_rig_by_hand(encoding):
    """Front, right (missing), back, left, 2 x 4 pixels: the mirror lacks the left one, and its right one was left.

    The left camera stands 0.5 m to the left and looks left; its mirror stands 0.5 m to the right and looks right. cx
    becomes 4 - cx. Old view 2 row 1, column 3 (token 13) and view 3 row 5, column 9 (token 59) are the pair of views 1
    and 2 of the mirror, which begins with what was view 3: row 5, column 0 (token 50) with row 1, column 6 (token 16).
    """
    before, after = HAND_BINS[encoding]
    relation = torch.zeros(4, 60, 60)
    relation[2, 13, 59] = 0.7
    rig = CachedRigs(
        frame_ids=("d/0",),
        image=hand_images(
            [
                [[10, 11, 12, 13], [14, 15, 16, 17]],
                [[10, 11, 12, 13], [14, 15, 16, 17]],
                [[30, 31, 32, 33], [34, 35, 36, 37]],
                [[40, 41, 42, 43], [44, 45, 46, 47]],
            ]
        ),
        intrinsics=torch.tensor(
            [
                [[5, 0, 2.5], [0, 6, 1], [0, 0, 1]],
                [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
                [[7, 0, 1.75], [0, 7, 1], [0, 0, 1]],
                [[8, 0.5, 2.25], [0, 9, 0.5], [0, 0, 1]],
            ]
        ),
        rig_from_cam=hand_poses(
            (FORWARD, [0, 0, 0]), (FORWARD, [0, 0, 0]), (BACK, [0.25, 0, -3]), (LEFT, [-0.5, 0.1, -2])
        ),
        view_valid=torch.tensor([True, False, True, True]),
        lidar_depth_m=torch.tensor(
            [
                [[0, 1, 0, 2], [0, 0, 0, 0]],
                [[0, 0, 0, 0], [0, 0, 0, 0]],
                [[0, 0, 0, 0], [3, 0, 0, 0]],
                [[0, 0, 4, 5], [6, 0, 0, 0.5]],
            ]
        ),
        bins=before,
        relation=relation,
        tokens=one_token(1, 13),
        neighbour=CachedViews(
            image=hand_images([[[50, 51, 52, 53]], [[60, 61, 62, 63]], [[70, 71, 72, 73]], [[80, 81, 82, 83]]]),
            intrinsics=torch.tensor([[[5, 0, 2.5], [0, 6, 1], [0, 0, 1]]]).repeat(4, 1, 1),
            rig_from_cam=hand_poses(
                (FORWARD, [0.5, 0, 6]), (RIGHT, [1.5, 0, 6]), (BACK, [0.5, 0, 3]), (LEFT, [-0.5, 0.1, 4])
            ),
            view_valid=torch.tensor([True, True, False, True]),
        ),
    )
    expected = CachedRigs(
        frame_ids=("d/0",),
        image=hand_images(
            [
                [[13, 12, 11, 10], [17, 16, 15, 14]],
                [[43, 42, 41, 40], [47, 46, 45, 44]],
                [[33, 32, 31, 30], [37, 36, 35, 34]],
                [[13, 12, 11, 10], [17, 16, 15, 14]],
            ]
        ),
        intrinsics=torch.tensor(
            [
                [[5, 0, 1.5], [0, 6, 1], [0, 0, 1]],
                [[8, -0.5, 1.75], [0, 9, 0.5], [0, 0, 1]],
                [[7, 0, 2.25], [0, 7, 1], [0, 0, 1]],
                [[1, 0, 4], [0, 1, 0], [0, 0, 1]],
            ]
        ),
        rig_from_cam=hand_poses(
            (FORWARD, [0, 0, 0]), (RIGHT, [0.5, 0.1, -2]), (BACK, [-0.25, 0, -3]), (FORWARD, [0, 0, 0])
        ),
        view_valid=torch.tensor([True, True, True, False]),
        lidar_depth_m=torch.tensor(
            [
                [[2, 0, 1, 0], [0, 0, 0, 0]],
                [[5, 4, 0, 0], [0.5, 0, 0, 6]],
                [[0, 0, 0, 0], [0, 0, 0, 3]],
                [[0, 0, 0, 0], [0, 0, 0, 0]],
            ]
        ),
        bins=after,
        relation=torch.zeros(4, 60, 60).index_put(tuple(torch.tensor([[1], [50], [16]])), torch.tensor(0.7)),
        tokens=one_token(3, 16),
        neighbour=CachedViews(
            image=hand_images([[[53, 52, 51, 50]], [[83, 82, 81, 80]], [[73, 72, 71, 70]], [[63, 62, 61, 60]]]),
            intrinsics=torch.tensor([[[5, 0, 1.5], [0, 6, 1], [0, 0, 1]]]).repeat(4, 1, 1),
            rig_from_cam=hand_poses(
                (FORWARD, [-0.5, 0, 6]), (RIGHT, [0.5, 0.1, 4]), (BACK, [-0.5, 0, 3]), (LEFT, [-1.5, 0, 6])
            ),
            view_valid=torch.tensor([True, True, False, True]),
        ),
    )
    for mirrored, by_hand in zip(rig_tensors(mirror(rig)), rig_tensors(expected), strict=True):
        assert mirrored.tolist() == by_hand.tolist()
    assert mirror(rig).focal_px.tolist() == [5, 8, 7, 1]


def test_a_mirrored_point_falls_on_the_mirrored_pixel_of_the_mirrored_camera():
    """What camera i sees at (u, v) and z metres, camera -i mod V of the mirror sees at (W - u, v) and z metres."""
    size = (8, 12)
    rig, _ = random_rig(size=size)
    points = np.random.default_rng(0).normal(0, 10, (2000, 3))
    seen_count = 0
    for before, after in ((rig, mirror(rig)), (rig.neighbour, mirror(rig).neighbour)):
        assert before is not None
        assert after is not None
        for i in range(6):
            poses = [views.rig_from_cam[j].double().numpy() for views, j in ((before, i), (after, -i % 6))]
            require_rigid(poses[1], "mirrored")
            old, new = (
                project(points * sign, np.linalg.inv(pose), views.intrinsics[j].double().numpy(), size)
                for views, j, pose, sign in ((before, i, poses[0], (1, 1, 1)), (after, -i % 6, poses[1], (-1, 1, 1)))
            )
            assert old.index.tolist() == new.index.tolist()
            np.testing.assert_allclose(12 - new.u_px, old.u_px, atol=1e-4)
            np.testing.assert_allclose(new.v_px, old.v_px, atol=1e-4)
            np.testing.assert_allclose(new.depth_m, old.depth_m, rtol=1e-5)
            seen_count += len(old.index)
    assert seen_count > 1000


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_stored_bins_turn_with_the_image_by_hand(encoding):
    """View 1 was view 5 and column 0 of 3 was column 2; the row and whatever follows it stay."""
    rig, _ = random_rig(encoding=encoding)
    for name, array in vars(mirror(rig).bins).items():
        before = getattr(rig.bins, name)
        assert torch.equal(array[1, 1, 0], before[5, 1, 2])
        assert not torch.equal(array[1, 1, 0], before[1, 1, 2])
        assert not torch.equal(array[1, 1, 0], before[5, 1, 0])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decoded_probabilities_turn_with_the_image_and_not_along_the_bins(encoding):
    rig, _ = random_rig(encoding=encoding)
    before, after = decode(rig.bins, BINS), decode(mirror(rig).bins, BINS)
    assert torch.equal(after, before[[0, 5, 4, 3, 2, 1]].flip(-1))


@pytest.mark.parametrize("view_count", [2, 3, 6])
def test_mirrored_relations_are_those_of_the_mirrored_features(view_count):
    rig, features = random_rig(view_count)
    mirrored = features[[-j % view_count for j in range(view_count)]].flip(-1)
    torch.testing.assert_close(mirror(rig).relation, ring_relations(pool_tokens(mirrored)))


def test_jitter_scales_contrast_then_brightness_by_hand():
    """Mean 0.5: 0.4 and 0.6 at contrast 1.2 are 0.38 and 0.62, at brightness 0.9 then 0.342 and 0.558."""
    image = torch.tensor([0.4, 0.6]).repeat(2, 3, 1, 1)
    torch.testing.assert_close(jitter_colours(image, 0.9, 1.2)[1, 2, 0], torch.tensor([0.342, 0.558]))


def test_jittered_images_stay_in_range_and_all_views_change_alike():
    image = torch.tensor([0.0, 0.3, 0.5, 1.0]).repeat(2, 3, 2, 1)
    jittered = jitter_colours(image, 1.2, 1.2)
    assert 0 <= jittered.min() <= jittered.max() <= 1
    assert torch.equal(jittered[0], jittered[1])
