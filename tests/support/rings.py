"""Rigs whose cameras overlap, made by hand: what tests of losses between cameras start from."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import interpolate

from data_cache.dataset import CachedRigs, CachedViews, collate
from data_cache.shards.encodings import ClosedFormBins

K_PX = torch.tensor([[8.0, 0, 3.25], [0, 4, 1.5], [0, 0, 1]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise in [0, 1] with a grain of three pixels."""
    coarse = torch.rand(*shape[:-2], shape[-2] // 3 + 2, shape[-1] // 3 + 2, generator=generator(seed))
    size = (shape[-2], shape[-1])
    flat = interpolate(coarse.reshape(-1, 1, *coarse.shape[-2:]), size, mode="bicubic", align_corners=True)
    return flat.clamp(0, 1).reshape(shape)


def place(x_m: float = 0.0, y_m: float = 0.0, z_m: float = 0.0, yaw: float = 0.0) -> torch.Tensor:
    """Pose of a camera turned to the right by `yaw` radians."""
    pose = torch.eye(4)
    c, s = np.cos(yaw), np.sin(yaw)
    pose[:3] = torch.tensor([[c, 0, s, x_m], [0, 1, 0, y_m], [-s, 0, c, z_m]])
    return pose


def views(rgb: torch.Tensor, intrinsics: torch.Tensor, rig_from_cam: torch.Tensor) -> CachedViews:
    return CachedViews(
        image=(rgb * 255).round().to(torch.uint8),
        intrinsics=intrinsics.expand(len(rgb), 3, 3),
        rig_from_cam=rig_from_cam,
        view_valid=torch.ones(len(rgb), dtype=torch.bool),
    )


def batch(now: CachedViews, neighbour: CachedViews | None = None) -> CachedRigs:
    """A batch of one rig about which LiDAR and teacher say nothing."""
    V, _, H, W = now.image.shape
    rig = CachedRigs(
        **vars(now),
        frame_ids=("d/0",),
        lidar_depth_m=torch.zeros(V, H, W),
        bins=ClosedFormBins(torch.zeros(V, 1, 1, dtype=torch.int32)),
        relation=torch.zeros(V, 60, 60),
        tokens=torch.zeros(V, 60, 0),
        neighbour=neighbour,
    )
    return collate([rig])


def surround(view_count: int = 4, size: tuple[int, int] = (9, 22), *, neighbour: bool = True) -> CachedRigs:
    """Wide cameras all around that overlap, pictures of noise, a neighbour half a metre further on."""
    H, W = size
    yaw = [2 * np.pi * i / view_count + 0.05 * i for i in range(view_count)]
    K = torch.tensor([[0.15 * W, 0, 0.55 * W], [0, 0.2 * W, 0.4 * H], [0, 0, 1]]).repeat(view_count, 1, 1)
    K[:, 0, 0] += torch.arange(view_count) / 4
    poses = torch.stack([place(0.3 * np.sin(a), 0.02 * i, 0.3 * np.cos(a), a) for i, a in enumerate(yaw)])
    moved = poses.clone()
    moved[:, 2, 3] += 0.5
    pictures = smooth(2, view_count, 3, H, W, seed=view_count)
    return batch(views(pictures[0], K, poses), views(pictures[1], K, moved) if neighbour else None)


def without(rigs: CachedRigs, view: int) -> CachedRigs:
    valid = rigs.view_valid.clone()
    valid[:, view] = False
    return replace(rigs, view_valid=valid)
