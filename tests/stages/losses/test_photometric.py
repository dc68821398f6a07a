from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rings import K_PX, batch, place, smooth, surround, views, without

from data_cache.dataset import CachedRigs, CachedViews, collate, single
from data_cache.frames.geometry import resized_intrinsics
from data_cache.frames.rig import Frame
from data_cache.sources.synthetic.source import SyntheticSource
from stages.compute.resize import resize_rgb
from stages.losses import photometric
from stages.losses.photometric import _boxes, match_exposure, photometric_error, photometric_loss, windows
from stages.training.augment import mirror


def test_the_error_of_two_plain_images_by_hand():
    """0.2 and 0.6: SSIM is (2 * 0.12 + 0.0001) / (0.04 + 0.36 + 0.0001) = 0.60010, and the structure is the same."""
    error = photometric_error(windows(torch.full((1, 3, 4, 5), 0.2)), windows(torch.full((1, 3, 4, 5), 0.6)))
    torch.testing.assert_close(error, torch.full((1, 4, 5), 0.85 * (1 - 0.60010) / 2 + 0.15 * 0.4), atol=1e-5, rtol=0)


def test_the_error_of_a_window_by_hand():
    """In the middle of 3 x 3 pixels one is 0.9 and eight are 0 against 0.1 everywhere: means alike, variance 0.08.

    SSIM = C2 / (0.08 + C2) = 0.01112.
    """
    target = torch.zeros(1, 3, 3, 3)
    target[..., 0, 2] = 0.9
    error = photometric_error(windows(target), windows(torch.full_like(target, 0.1)))[0, 1, 1]
    assert error.item() == pytest.approx(0.85 * (1 - 0.01112) / 2 + 0.15 * 0.1, abs=1e-4)


def test_a_changed_pixel_is_felt_by_the_windows_around_it():
    image = smooth(1, 3, 8, 9)
    other = image.clone()
    other[..., 3, 5] += 0.3
    error = photometric_error(windows(image), windows(other))
    assert (error[0, 2:5, 4:7] > 1e-4).all()
    error[0, 2:5, 4:7] = 0
    assert error.abs().max() < 1e-6


def test_exposure_is_matched_where_both_are_seen_by_hand():
    """Seen: 0.2 and 0.4 against 0.5 and 0.8. Mean 0.3, sd 0.1 become 0.65 and 0.15; the unseen 0.0 becomes 0.2."""
    warped = torch.tensor([0.2, 0.4, 0.0]).expand(1, 3, 1, 3)
    target = torch.tensor([0.5, 0.8, 0.9]).expand(1, 3, 1, 3)
    seen = torch.tensor([[[True, True, False]]])
    torch.testing.assert_close(match_exposure(warped, target, seen)[0, 1, 0], torch.tensor([0.5, 0.8, 0.2]))
    assert match_exposure(warped, target, ~seen & False).isfinite().all()


def test_the_gradient_is_that_of_finite_differences():
    rigs = surround(3)
    depth_m = 2 + 3 * smooth(1, 3, 9, 22, seed=5).double()
    loss = photometric_loss(depth_m.requires_grad_(), rigs)
    loss.backward()
    assert depth_m.grad is not None
    strongest = depth_m.grad.abs().flatten().topk(6).indices.tolist()
    for i in strongest:
        step = torch.zeros(depth_m.numel(), dtype=torch.float64)
        step[i] = 1e-7
        step = step.reshape(depth_m.shape)
        with torch.no_grad():
            # Exposures are held still in the gradient; a change of one pixel hardly moves them.
            slope = (photometric_loss(depth_m + step, rigs) - photometric_loss(depth_m - step, rigs)) / 2e-7
        assert slope.item() == pytest.approx(depth_m.grad.flatten()[i].item(), rel=0.15)


def test_the_box_of_what_is_seen_by_hand():
    """Rows 2 to 4 and column 6, the last one, and one more where there is one; the other camera sees nothing."""
    seen = torch.zeros(2, 2, 6, 7, dtype=torch.bool)
    seen[0, 0, 2, 6] = seen[1, 0, 4, 6] = True
    found, nothing = _boxes(seen)
    assert (found.top, found.bottom, found.left, found.right) == (1, 6, 5, 7)
    assert nothing.is_empty and not found.is_empty


def test_only_what_is_seen_is_compared_and_nothing_is_lost(monkeypatch):
    """Loss and gradient are those of whole images, from which the boxes are a saving."""
    rigs = surround()

    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        depth_m = (2 + 3 * smooth(1, 4, 9, 22, seed=5)).requires_grad_()
        loss = photometric_loss(depth_m, rigs)
        (gradient,) = torch.autograd.grad(loss, depth_m)
        return loss, gradient

    loss, gradient = loss_and_gradient()
    monkeypatch.setattr(photometric, "_boxes", lambda seen: (photometric._Box(0, 9, 0, 22),) * 4)
    whole_loss, whole_gradient = loss_and_gradient()
    torch.testing.assert_close(loss, whole_loss)
    torch.testing.assert_close(gradient, whole_gradient)


@pytest.mark.parametrize("view_count", [1, 2, 3, 6])
@pytest.mark.parametrize("neighbour", [False, True])
def test_a_mirrored_rig_has_the_same_loss(view_count, neighbour):
    rigs = surround(view_count, neighbour=neighbour)
    depth_m = 2 + 3 * smooth(1, view_count, 9, 22, seed=5)
    order = [-j % view_count for j in range(view_count)]
    mirrored = collate([mirror(single(rigs, 0))])
    loss = photometric_loss(depth_m, rigs)
    assert (loss > 0.01) == (neighbour or view_count > 2)
    torch.testing.assert_close(photometric_loss(depth_m[:, order].flip(-1), mirrored), loss, atol=1e-6, rtol=1e-4)
    # The same depths with the cameras not mirrored: the test would see it.
    if loss > 0.01:
        still = replace(mirrored, rig_from_cam=rigs.rig_from_cam, neighbour=rigs.neighbour)
        assert abs(photometric_loss(depth_m[:, order].flip(-1), still) - loss) > 1e-4


def zero_with_a_zero_gradient(rigs: CachedRigs) -> bool:
    depth_m = torch.full((*rigs.view_valid.shape, *rigs.image.shape[-2:]), 3.0, requires_grad=True)
    loss = photometric_loss(depth_m, rigs)
    loss.backward()
    return depth_m.grad is not None and loss.item() == 0 and bool((depth_m.grad == 0).all())


def test_nothing_in_common_costs_nothing():
    K = torch.tensor([[20.0, 0, 5], [0, 20, 4], [0, 0, 1]])
    apart = views(smooth(3, 3, 8, 10), K, torch.stack([place(yaw=a) for a in (0, 2.1, 4.2)]))
    assert zero_with_a_zero_gradient(batch(apart))
    assert zero_with_a_zero_gradient(surround(1, neighbour=False))
    alone = surround()
    for view in range(4):
        alone = without(alone, view)
    assert zero_with_a_zero_gradient(alone)
    assert not zero_with_a_zero_gradient(surround())


def test_a_missing_camera_is_in_no_pair_and_the_gap_is_not_bridged():
    """Of four wide cameras two are missing, and the two that are left are no neighbours in the ring."""
    rigs = without(surround(neighbour=False), 1)
    changed = replace(rigs, image=torch.cat([rigs.image[:, :1], 255 - rigs.image[:, 1:2], rigs.image[:, 2:]], 1))
    depth_m = torch.full((1, 4, 9, 22), 3.0, requires_grad=True)
    loss = photometric_loss(depth_m, rigs)
    assert loss > 0
    assert torch.equal(photometric_loss(depth_m, changed), loss)
    loss.backward()
    assert depth_m.grad is not None
    assert depth_m.grad.abs().amax((0, 2, 3)).gt(0).tolist() == [True, False, True, True]
    assert zero_with_a_zero_gradient(without(rigs, 3))


def test_what_moves_with_the_rig_says_nothing_in_time():
    """The picture stays although the rig moved: a standing car with wrong poses, or a car that drives ahead of it."""
    now = views(smooth(1, 3, 9, 14), K_PX, place()[None])
    assert zero_with_a_zero_gradient(batch(now, replace(now, rig_from_cam=place(z_m=1.0)[None])))
    assert not zero_with_a_zero_gradient(
        batch(now, replace(now, rig_from_cam=place(z_m=1.0)[None], image=255 - now.image))
    )


def test_a_wall_seen_from_two_places_costs_nothing_whatever_the_exposure():
    """1 m apart, 4 m away, fx 8: two columns of each picture are not in the other and must not count.

    At another depth, or in time with another exposure, it costs something.
    """
    wall = smooth(3, 9, 16)
    poses = torch.stack([place(), place(x_m=1.0)])
    both = views(torch.stack([wall[..., :14], wall[..., 2:]]), K_PX, poses)
    darker = replace(both, image=both.image.clone())
    darker.image[1] = (both.image[1] * 0.7).round() + 20
    first, second = (
        views(picture[None], K_PX, poses[i : i + 1]) for i, picture in enumerate((wall[..., :14], wall[..., 2:]))
    )
    dark = replace(second, image=darker.image[1:])
    depth_m = torch.full((1, 2, 9, 14), 4.0)
    assert photometric_loss(depth_m, batch(both)) < 1e-6
    assert photometric_loss(depth_m * 1.2, batch(both)) > 1e-2
    assert photometric_loss(depth_m, batch(darker)) < 1e-3
    assert photometric_loss(depth_m[:, :1], batch(first, second)) < 1e-6
    assert photometric_loss(depth_m[:, :1] * 1.2, batch(first, second)) > 1e-2
    assert photometric_loss(depth_m[:, :1], batch(first, dark)) > 1e-2


def test_a_pixel_counts_by_the_image_that_fits_it_best():
    """In the ring: another world. In time: the same world with the camera upside down, where any depth fits."""
    K = torch.tensor([[8.0, 0, 7], [0, 8, 4.5], [0, 0, 1]])
    pictures = smooth(2, 3, 9, 14)
    now = views(pictures, K, torch.eye(4).repeat(2, 1, 1))
    upside_down = torch.diag(torch.tensor([-1.0, -1, 1, 1])).repeat(2, 1, 1)
    neighbour = views(pictures.flip(-1, -2), K, upside_down)
    depth_m = torch.full((1, 2, 9, 14), 3.0)
    assert photometric_loss(depth_m, batch(now)) > 0.1
    assert photometric_loss(depth_m, batch(now, neighbour)) < 1e-4
    missing = replace(neighbour, view_valid=torch.zeros(2, dtype=torch.bool))
    assert torch.equal(photometric_loss(depth_m, batch(now, missing)), photometric_loss(depth_m, batch(now)))


SIZE = (96, 160)


def rendered(frame: Frame, shown: int, world_from_rig: np.ndarray) -> CachedViews:
    """The first `shown` of six cameras; the others are missing."""
    now = views(torch.zeros(6, 3, *SIZE), torch.eye(3), torch.eye(4).repeat(6, 1, 1))
    K, pose, valid, image = now.intrinsics.clone(), now.rig_from_cam, torch.arange(6) < shown, now.image
    for i, view in enumerate(frame.views[:shown]):
        assert view is not None
        image[i] = torch.from_numpy(resize_rgb(view.load_image(), SIZE)).permute(2, 0, 1)
        K[i] = torch.from_numpy(resized_intrinsics(view.camera.K_px, (384, 640), SIZE))
        pose[i] = torch.from_numpy(np.linalg.inv(world_from_rig) @ view.world_from_cam)
    return CachedViews(image=image, intrinsics=K, rig_from_cam=pose, view_valid=valid)


def test_the_true_depth_of_a_rendered_street_fits_best():
    """Where two cameras overlap, also with exposures that differ, and with the next frame, six metres on."""
    source = SyntheticSource()
    frame = source.frame("drive-00/0")
    first, load_truth_m = frame.views[0], frame.load_truth_m
    assert first is not None
    assert load_truth_m is not None
    now = rendered(frame, 2, first.world_from_cam)
    after = rendered(source.frame("drive-00/1"), 1, first.world_from_cam)
    exposed = now.image.float()
    exposed[1] = exposed[1] * 0.8 + 10
    truth_m = torch.full((1, 6, *SIZE), 1000.0)  # the sky is far away
    for i in (0, 1):
        dense_m = torch.from_numpy(load_truth_m[i]()[1::4, 1::4])
        truth_m[0, i] = torch.where(dense_m > 0, dense_m, truth_m[0, i])
    ring, other = batch(now), batch(replace(now, image=exposed.to(torch.uint8)))
    alone = replace(now, view_valid=torch.arange(6) < 1)
    for rigs in (ring, other, batch(alone, after)):
        near, true, far = (photometric_loss(truth_m * scale, rigs) for scale in (0.9, 1.0, 1.1))
        assert 0 < true < 0.8 * min(near, far)
    torch.testing.assert_close(photometric_loss(truth_m, other), photometric_loss(truth_m, ring), rtol=0.1, atol=0)
