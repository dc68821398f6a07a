"""Whether a cache holds what it should: content beyond checksums, and the teacher asked again."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_cache.reader import CacheReader
from data_cache.schema import DamagedCacheError, FrameRecord
from data_cache.sources import Source
from stages import bins
from stages.bins import BinSpec, WindowedProb
from stages.look import frame_record, look
from stages.prepare import prepare_frame
from stages.teacher.base import Teacher
from stages.teacher_cache import CONSTANT_NOTE

SUM_TOLERANCE = 2e-3
"""Float16 probabilities of 64 bins sum to one within this."""


@dataclass(frozen=True)
class Recomputed:
    """How a stored frame differs from what the teacher says now.

    Attributes:
        prob_mean, prob_max: absolute difference of bin probabilities, over pixels and bins.
        top_bin_changed: share of pixels whose most probable bin is another one.
        relation_max: absolute difference of view relations.
        inputs_equal: whether image, LiDAR depth, intrinsics and poses are the same to the byte.
    """

    frame_id: str
    prob_mean: float
    prob_max: float
    top_bin_changed: float
    relation_max: float
    inputs_equal: bool
