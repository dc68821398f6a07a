from dataclasses import fields, replace

import pytest
import torch

from data_cache.dataset import CachedRigs
from data_cache.schema import ENCODINGS
from stages.augment import BRIGHTNESS, CONTRAST, jitter_colours, mirror
from stages.bins import BinSpec, decode, encode
from stages.relations import pool_tokens, ring_relations

SPEC = BinSpec(count=16)


def random_rig(
    view_count: int = 6, encoding: str = "window", *, size: tuple[int, int] = (8, 12)
) -> tuple[CachedRigs, torch.Tensor]:
    """A rig without its last camera, and the teacher features that its relations were computed from."""
    generator = torch.Generator().manual_seed(view_count)
    features = torch.randn(view_count, 4, 6, 10, generator=generator)
    small = (size[0] // 4, size[1] // 4)
    u = torch.rand(view_count, *small, generator=generator)
    rig = CachedRigs(
        frame_ids=("d/0",),
        image=torch.randint(0, 256, (view_count, 3, *size), dtype=torch.uint8, generator=generator),
        lidar_depth_m=torch.rand(view_count, *size, generator=generator),
        bins=encode(u, replace(SPEC, encoding=encoding)),
        relation=ring_relations(pool_tokens(features)),
        tokens=pool_tokens(features),
        focal_px=torch.arange(view_count) + 100.0,
        view_valid=torch.arange(view_count) < max(view_count - 1, 1),
    )
    return rig, features


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("view_count", [1, 2, 3, 6])
def test_two_mirrors_change_nothing(view_count, encoding):
    rig, _ = random_rig(view_count, encoding)
    twice = mirror(mirror(rig))
    assert twice.frame_ids == rig.frame_ids
    for field in fields(CachedRigs):
        if field.name not in ("frame_ids", "bins"):
            assert torch.equal(getattr(twice, field.name), getattr(rig, field.name)), field.name
    for name, array in vars(twice.bins).items():
        assert torch.equal(array, getattr(rig.bins, name)), name


def test_a_mirrored_rig_by_hand():
    """Front stays first; view 1 (right) was view 5 (left) and column 1 of 12 was column 10; rows stay."""
    rig, _ = random_rig()
    mirrored = mirror(rig)
    assert mirrored.focal_px.tolist() == [100, 105, 104, 103, 102, 101]
    assert mirrored.view_valid.tolist() == [True, False, True, True, True, True]
    assert torch.equal(mirrored.image[1, :, 3, 1], rig.image[5, :, 3, 10])
    assert torch.equal(mirrored.image[0, :, 3, 1], rig.image[0, :, 3, 10])
    assert mirrored.lidar_depth_m[1, 2, 1] == rig.lidar_depth_m[5, 2, 10]


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
    before, after = decode(rig.bins, SPEC), decode(mirror(rig).bins, SPEC)
    assert torch.equal(after, before[[0, 5, 4, 3, 2, 1]].flip(-1))


@pytest.mark.parametrize("view_count", [2, 3, 6])
def test_mirrored_relations_are_those_of_the_mirrored_features(view_count):
    rig, features = random_rig(view_count)
    mirrored = features[[-j % view_count for j in range(view_count)]].flip(-1)
    torch.testing.assert_close(mirror(rig).relation, ring_relations(pool_tokens(mirrored)))


def test_jitter_is_one_draw_for_all_views_and_comes_from_the_generator():
    image = 0.3 + 0.4 * torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    first, second = jitter_colours(image, generator), jitter_colours(image, generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    assert torch.equal(jitter_colours(image, torch.Generator().manual_seed(3)), first)
    # One line through all pixels of all views: brightness * (contrast * (x - mean) + mean).
    mean = image.mean()
    slope = (first.max() - first.min()) / (image.max() - image.min())
    brightness = first.mean() / mean
    torch.testing.assert_close(first, slope * (image - mean) + brightness * mean)
    assert 1 - BRIGHTNESS <= brightness <= 1 + BRIGHTNESS
    assert 1 - CONTRAST <= slope / brightness <= 1 + CONTRAST


def test_jittered_images_stay_in_range():
    image = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for seed in range(20):
        jittered = jitter_colours(image, torch.Generator().manual_seed(seed))
        assert 0 <= jittered.min() <= jittered.max() <= 1
