import numpy as np
import pytest
import torch
from support.rings import K_PX, generator, place, smooth

from data_cache.frames.geometry import project, unproject
from stages.losses.reprojection import Cameras, reproject, sample


def warp(
    image: torch.Tensor, depth_m: torch.Tensor, K_target: torch.Tensor, K_source: torch.Tensor, source: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of sources that stand at `source` as cameras at the origin would see them."""
    there, origin = torch.ones(len(image), dtype=torch.bool), torch.eye(4).expand(len(image), 4, 4)
    landed = reproject(depth_m, Cameras(K_target, origin, there), Cameras(K_source, source.expand_as(origin), there))
    return sample(image, landed.grid), landed.seen


def test_the_identity_gives_the_image_back():
    image = torch.rand(2, 3, 5, 7, generator=generator())
    depth_m = 0.5 + 50 * torch.rand(2, 5, 7, generator=generator(1))
    K = K_PX.repeat(2, 1, 1)
    warped, seen = warp(image, depth_m, K, K, torch.eye(4))
    torch.testing.assert_close(warped, image, atol=1e-5, rtol=0)
    assert seen[:, 1:-1, 1:-1].all()


def test_a_wall_seen_from_the_side_by_hand():
    """A wall 4 m ahead, fx 8, fy 4, the source 1 m to the right and 1 m above.

    A point falls 8 * 1 / 4 = 2 pixels further left and 4 * 1 / 4 = 1 pixel lower there. A quarter of the way is half a
    pixel to the left: the mean of two columns.
    """
    image = torch.rand(1, 3, 4, 7, generator=generator())
    depth_m, K = torch.full((1, 4, 7), 4.0), K_PX[None]
    warped, seen = warp(image, depth_m, K, K, place(1, -1))
    torch.testing.assert_close(warped[..., :3, 2:], image[..., 1:, :5], atol=1e-5, rtol=0)
    assert seen[0].tolist() == [[False] * 2 + [True] * 5] * 3 + [[False] * 7]
    warped, _ = warp(image, depth_m, K, K, place(0.25))
    torch.testing.assert_close(warped[..., 1:], (image[..., 1:] + image[..., :-1]) / 2, atol=1e-5, rtol=0)


def test_another_lens_turned_upside_down_by_hand():
    """Target: fx 8, cx 3, fy 4, cy 1.5. Source, rolled by 180 degrees: fx 16, cx 2.5, fy 4, cy 2.5.

    u becomes 2.5 - 2 (u - 3): the centre 2.5 of column 2 falls on 3.5, that of column 3 on 1.5, others outside. v
    becomes 4 - v: row 0 shows row 3 and row 2 shows row 1, row 3 shows row 0.
    """
    image = torch.rand(1, 3, 4, 5, generator=generator())
    K_target = torch.tensor([[[8.0, 0, 3], [0, 4, 1.5], [0, 0, 1]]])
    K_source = torch.tensor([[[16.0, 0, 2.5], [0, 4, 2.5], [0, 0, 1]]])
    warped, seen = warp(
        image, torch.full((1, 4, 5), 7.0), K_target, K_source, torch.diag(torch.tensor([-1.0, -1, 1, 1]))
    )
    assert seen[0].tolist() == [[False, False, True, True, False]] * 4
    torch.testing.assert_close(warped[..., 2], image[..., 3].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(warped[..., 3], image[..., 1].flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_colours_come_from_where_the_geometry_module_projects_to(seed):
    """Red and green of the source are u and v: the warped image says where each of its pixels came from."""
    size = (H, W) = (20, 30)
    K_source = torch.tensor([[22.0, 0.3, 13], [0, 25, 9], [0, 0, 1]])
    K_target = torch.tensor([[19.0, -0.2, 16], [0, 17, 11], [0, 0, 1]])
    depth_m = 3 + 5 * smooth(1, H, W, seed=seed)
    pose = place(0.4, -0.2, 0.3 * (-1) ** seed, 0.2 * seed - 0.3)
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    image = torch.stack([u, v, torch.zeros_like(u)])[None]
    warped, seen = warp(image, depth_m, K_target[None], K_source[None], pose)
    points = unproject(depth_m[0].double().numpy(), K_target.double().numpy()).reshape(-1, 3)
    projected = project(points, np.linalg.inv(pose.double().numpy()), K_source.double().numpy(), size)
    assert 100 < len(projected.index) < H * W
    assert seen.flatten().nonzero().flatten().tolist() == projected.index.tolist()
    u_px, v_px = projected.u_px.clip(0.5, W - 0.5), projected.v_px.clip(0.5, H - 0.5)
    np.testing.assert_allclose(warped[0, 0].flatten()[projected.index], u_px, atol=1e-3)
    np.testing.assert_allclose(warped[0, 1].flatten()[projected.index], v_px, atol=1e-3)


def test_what_lies_behind_the_source_is_not_seen():
    image, depth_m = smooth(1, 3, 4, 7), torch.full((1, 4, 7), 4.0)
    depth_m[0, 1, 3] = 5
    warped, seen = warp(image, depth_m, K_PX[None], K_PX[None], place(z_m=4.0))
    assert seen[0].nonzero().tolist() == [[1, 3]]
    assert warped.isfinite().all()


def test_the_depth_in_the_other_camera_by_hand():
    """The other camera stands 1 m ahead, turned right by 90 degrees: z becomes x, so 4 m at fx 8 become (u - cx) / 2.

    Pixel centres 0.5 to 6.5, cx 3.25: columns 3 to 6 are ahead of it.
    """
    there = torch.ones(1, dtype=torch.bool)
    target = Cameras(K_PX[None], torch.eye(4)[None], there)
    source = Cameras(K_PX[None], place(z_m=1.0, yaw=np.pi / 2)[None], there)
    landed = reproject(torch.full((1, 3, 7), 4.0), target, source)
    torch.testing.assert_close(
        landed.depth_m[0, 1], torch.tensor([1, 1, 1, 0.125, 0.625, 1.125, 1.625]), atol=1e-5, rtol=0
    )


def test_a_missing_camera_sees_nothing_and_is_not_seen():
    K, poses = K_PX.expand(3, 3, 3), torch.eye(4).expand(3, 4, 4)
    targets = Cameras(K, poses, torch.tensor([True, False, True]))
    sources = Cameras(K, poses, torch.tensor([True, True, False]))
    seen = reproject(torch.full((3, 3, 7), 4.0), targets, sources).seen
    assert seen.all((1, 2)).tolist() == [True, False, False]
    assert not seen[1:].any()
