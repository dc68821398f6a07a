"""The teacher's output on images, reduced to the small products that the cache keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data_cache.errors import FrameError, SettingError
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.identity import CacheIdentity
from data_cache.shards.records import FrameRecord, unpack_depth_m
from data_cache.shards.schema import bin_table
from stages.caching.teacher_input import PreparedFrame
from stages.targets import bins, relations
from stages.targets.binning import Binning
from stages.targets.local_fit import LocalBinning
from stages.targets.space import to_disparity
from stages.targets.spec import BinSpec
from stages.teacher.base import Teacher

CONSTANT_NOTE = "looks constant to the teacher"
UNCORRECTED_NOTE = "keeps affine bins"
"""Where LiDAR was to correct the bins and has no fit in a view."""


@dataclass(frozen=True, eq=False)
class SeenView:
    """The teacher's products for one view.

    Attributes:
        u: position among the bins in [0, 1], larger is nearer, see stages/targets/binning.py.
        tokens: pooled features of unit length.
        finite: whether the whole output is finite.
        constant: whether u is the same everywhere, as behind a covered lens.
        corrected: whether LiDAR has corrected u; None where the strategy does not ask for it.
    """

    u: Float[Tensor, "h w"]
    tokens: Float[Tensor, "P C"]
    finite: bool
    constant: bool
    corrected: bool | None = None


def look(
    teacher: Teacher, images: Sequence[UInt8[np.ndarray, "H W 3"]], prob_size: tuple[int, int], binning: Binning
) -> list[SeenView]:
    """Run the teacher on a batch of images of its input size.

    Raises:
        SettingError: if the batch does not fit into the GPU's memory.
    """
    try:
        output = teacher(torch.from_numpy(np.stack(images)))
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"the GPU has too little memory for {len(images)} images of {list(teacher.input_size)} at once;"
            " lower teacher_cache.batch_images"
        ) from error
    disparity = to_disparity(output.prediction, teacher.space)
    u = binning(disparity, prob_size).cpu()
    tokens = relations.pool_tokens(output.features).cpu()
    finite = torch.isfinite(disparity).flatten(1).all(1).cpu() & torch.isfinite(tokens).flatten(1).all(1)
    constant = (u == u[:, :1, :1]).flatten(1).all(1)
    return [
        SeenView(u[i], tokens[i], *flags)
        for i, flags in enumerate(zip(finite.tolist(), constant.tolist(), strict=True))
    ]


def corrected(frame: PreparedFrame, seen: Sequence[SeenView], binning: Binning) -> list[SeenView]:
    """The views with u corrected by the frame's LiDAR, if the strategy does that."""
    if not isinstance(binning, LocalBinning) or not all(view.finite for view in seen):
        return list(seen)
    lidar_depth_m = torch.from_numpy(unpack_depth_m(frame.lidar_depth[frame.view_valid]))
    fit = binning.correct(frame.id, torch.stack([view.u for view in seen]), lidar_depth_m)
    flags = fit.corrected.tolist()
    return [replace(view, u=fit.u[i], corrected=flags[i]) for i, view in enumerate(seen)]


def frame_record(frame: PreparedFrame, seen: Sequence[SeenView], identity: CacheIdentity, spec: BinSpec) -> FrameRecord:
    """Combine a frame with the teacher's products for its views; missing views hold zeros.

    Raises:
        FrameError: if the teacher's output is not finite.
    """
    if not all(view.finite for view in seen):
        raise FrameError(f"teacher {identity.teacher_name} gave values that are not finite")
    there = np.flatnonzero(frame.view_valid)
    said = bins.encode(torch.stack([view.u for view in seen]), spec)
    stored = {name: np.zeros(array.shape, array.dtype) for name, array in bin_table(identity).items()}
    for name, array in stored.items():
        array[there] = getattr(said, name).numpy()
    # Tokens of a missing view are zeros, so its relations are, too: gaps are never bridged.
    tokens = torch.zeros(identity.view_count, *seen[0].tokens.shape)
    tokens[there] = torch.stack([view.tokens for view in seen])
    return FrameRecord(
        image=frame.image,
        lidar_depth=frame.lidar_depth,
        bins=ENCODINGS[identity.encoding](**stored),
        relation=relations.ring_relations(tokens).numpy().astype(np.float16),
        view_valid=frame.view_valid,
        intrinsics=frame.intrinsics,
        world_from_cam=frame.world_from_cam,
        tokens=tokens.numpy().astype(np.float16) if identity.token_channels else None,
    )
