"""Cached rigs full of noise, whose cameras look anywhere."""

from dataclasses import replace

import numpy as np
import torch

from data_cache.dataset import CachedRigs, CachedViews
from data_cache.frames.rig import pose_from_quaternion
from stages.targets.bins import encode
from stages.targets.relations import pool_tokens, ring_relations
from stages.targets.spec import BinSpec

BINS = BinSpec(count=16)


def random_views(view_count: int, size: tuple[int, int], generator: torch.Generator) -> CachedViews:
    """Cameras that look anywhere, all different, the last one missing."""
    intrinsics = torch.tensor([[8.0, 0.5, 6], [0, 9, 4], [0, 0, 1]]).repeat(view_count, 1, 1)
    intrinsics[:, 0, 2] += torch.arange(view_count) / 4
    intrinsics[:, 0, 0] += torch.arange(view_count)
    quaternions = torch.randn(view_count, 4, generator=generator).tolist()
    places_m = torch.randn(view_count, 3, generator=generator).tolist()
    poses = [pose_from_quaternion(tuple(q), tuple(m)) for q, m in zip(quaternions, places_m, strict=True)]
    return CachedViews(
        image=torch.randint(0, 256, (view_count, 3, *size), dtype=torch.uint8, generator=generator),
        intrinsics=intrinsics,
        rig_from_cam=torch.from_numpy(np.stack(poses)).float(),
        view_valid=torch.arange(view_count) < max(view_count - 1, 1),
    )


def random_rig(
    view_count: int = 6, encoding: str = "window", *, size: tuple[int, int] = (8, 12)
) -> tuple[CachedRigs, torch.Tensor]:
    """A rig without its last camera, and the teacher features that its relations were computed from."""
    generator = torch.Generator().manual_seed(view_count)
    features = torch.randn(view_count, 4, 6, 10, generator=generator)
    small = (size[0] // 4, size[1] // 4)
    u = torch.rand(view_count, *small, generator=generator)
    rig = CachedRigs(
        **vars(random_views(view_count, size, generator)),
        frame_ids=("d/0",),
        lidar_depth_m=torch.rand(view_count, *size, generator=generator),
        bins=encode(u, replace(BINS, encoding=encoding)),
        relation=ring_relations(pool_tokens(features)),
        tokens=pool_tokens(features),
        neighbour=random_views(view_count, size, generator),
    )
    return rig, features
