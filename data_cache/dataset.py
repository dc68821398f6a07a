"""Cached frames as torch tensors: a frame joined with what the teacher said about it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_cache.reader import CacheReader
from data_cache.schema import StoredBins, map_arrays, unpack_depth_m


@dataclass(frozen=True, eq=False)
class CachedRigs:
    """One frame (no leading axis) or a batch of frames (leading B).

    Attributes:
        frame_ids: one per frame.
        image: RGB bytes.
        lidar_depth_m: metres, 0 = no return.
        bins: the teacher's probabilities as stored; stages/bins.py decodes them.
        relation: the teacher's view relations.
        tokens: the teacher's pooled features; C = 0 where the cache has none.
        focal_px: fx of each view at the size of `image`.
        view_valid: False for missing cameras.
    """

    frame_ids: tuple[str, ...]
    image: UInt8[Tensor, "*B V 3 H W"]
    lidar_depth_m: Float[Tensor, "*B V H W"]
    bins: StoredBins[Tensor]
    relation: Float[Tensor, "*B V P P"]
    tokens: Float[Tensor, "*B V P C"]
    focal_px: Float[Tensor, "*B V"]
    view_valid: Bool[Tensor, "*B V"]


class CachedFrames(Dataset[CachedRigs]):
    """Frames of a cache by position in `frame_ids`."""

    def __init__(self, reader: CacheReader, frame_ids: Sequence[str]):
        """Serve these frames of `reader`."""
        self.reader, self.frame_ids = reader, tuple(frame_ids)

    def __len__(self) -> int:
        return len(self.frame_ids)

    def __getitem__(self, position: int) -> CachedRigs:
        frame_id = self.frame_ids[position]
        record = self.reader.read(frame_id)
        # A missing camera has no focal length and no image; 1 keeps its meaningless depths finite, and the picture of
        # another camera keeps black frames out of batch statistics. Its `view_valid` keeps it out of every loss.
        focal_px = np.where(record.view_valid, record.intrinsics[:, 0, 0], 1.0)
        shown = np.where(record.view_valid, np.arange(len(focal_px)), np.argmax(record.view_valid))
        tokens = record.tokens if record.tokens is not None else np.zeros((*record.relation.shape[:2], 0), np.float16)
        return CachedRigs(
            frame_ids=(frame_id,),
            image=torch.from_numpy(record.image[shown]).permute(0, 3, 1, 2),
            lidar_depth_m=torch.from_numpy(unpack_depth_m(record.lidar_depth)),
            bins=map_arrays(_tensor, record.bins),
            relation=torch.from_numpy(record.relation).float(),
            tokens=torch.from_numpy(tokens).float(),
            focal_px=torch.from_numpy(focal_px).float(),
            view_valid=torch.from_numpy(record.view_valid),
        )


def collate(rigs: Sequence[CachedRigs]) -> CachedRigs:
    """Stack frames into a batch."""
    tensors = {
        field.name: torch.stack([getattr(rig, field.name) for rig in rigs])
        for field in fields(CachedRigs)
        if field.name not in ("frame_ids", "bins")
    }
    return CachedRigs(
        frame_ids=tuple(frame_id for rig in rigs for frame_id in rig.frame_ids),
        bins=map_arrays(lambda *arrays: torch.stack(arrays), *(rig.bins for rig in rigs)),
        **tensors,
    )


def _tensor(array: np.ndarray) -> Tensor:
    # uint16 tensors can hardly be indexed or stacked.
    return torch.from_numpy(array.astype(np.int32) if array.dtype == np.uint16 else array)


def batches(dataset: CachedFrames, order: Sequence[list[int]], workers: int) -> Iterator[CachedRigs]:
    """Batches in the given order of positions; the order does not depend on the number of workers.

    Workers are spawned, never forked: forked ones deadlock with some codecs once the parent has read.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="spawn" if workers else None,
    )
    return iter(loader)
