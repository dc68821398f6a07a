"""The section `train_student` of a recipe."""

import math
from dataclasses import dataclass

from stages.compute.devices import require_known


@dataclass(frozen=True, kw_only=True)
class TrainStudentSpec:
    """How stage two runs.

    Attributes:
        seed: seed of the sample order and the augmentation.
        steps: optimiser steps in total.
        batch_rigs: frames per step, over all processes.
        accumulate: passes into which the frames of a step are split, to save memory; statistics of batch norm and
            means over views are then those of a pass.
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW, linear warm-up then cosine to 0, gradient norm.
        ema_decay: share of the averaged student that stays at each step, e.g. 0.999; the averaged student is then
            evaluated and saved. 0 turns averaging off.
        flip, jitter: augmentation by mirroring and by colour jitter.
        lidar_share: share of LiDAR pixels that teach; drawn once per frame, the same in every run.
        checkpoint_every: steps between saved states; a kill loses at most these.
        keep_last: number of saved states kept; older ones serve if the newest cannot be read.
        keep_best: keep, and later evaluate, the best student on the selection split, if the recipe names one.
        select_every: steps between evaluations on the selection split.
        workers: loader processes per training process, 0 to read in the training process itself.
        stage_to: folder on a local disk to which the needed shards are copied first; empty to read in place.
        compile: compile the student with torch.compile.
        precision, device: auto, or as named in stages/compute/devices.py.
    """

    seed: int = 0
    steps: int
    batch_rigs: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    flip: bool = True
    jitter: bool = True
    lidar_share: float = 1.0
    checkpoint_every: int = 200
    keep_last: int = 2
    keep_best: bool = True
    select_every: int = 200
    workers: int = 1
    stage_to: str = ""
    compile: bool = False
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        require_known(self.device, self.precision)
        for name in ("steps", "batch_rigs", "accumulate", "checkpoint_every", "keep_last", "select_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("seed", "warmup_steps", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 or more and less than 1, got {self.ema_decay}")
        if not 0 < self.lidar_share <= 1:
            raise ValueError(f"lidar_share: expected more than 0 and at most 1, got {self.lidar_share}")
        if self.batch_rigs % self.accumulate:
            raise ValueError(f"accumulate: expected a divisor of batch_rigs = {self.batch_rigs}, got {self.accumulate}")


HOW_NOT_WHAT = ("checkpoint_every", "keep_last", "workers", "stage_to", "device")
"""Settings in which two runs may differ and still be the same run."""
