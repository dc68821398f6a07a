"""Wall time of one rig through student and teacher, in one harness."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from stages.devices import synchronize


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and 95th percentile."""

    p50_ms: float
    p95_ms: float


def measure(call: Callable[[], object], device: torch.device, *, warmup: int, repeats: int) -> Timing:
    """Time `call` after warm-up, synchronised before and after each repeat."""
    milliseconds = []
    for i in range(warmup + repeats):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        if i >= warmup:
            milliseconds.append(1e3 * (time.perf_counter() - begin))
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return Timing(float(p50), float(p95))
