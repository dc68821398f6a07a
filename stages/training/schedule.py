"""The schedule of stage two: learning rate, frames and random numbers of a step, as functions of (seed, step) alone.

Nothing else in stage two draws random numbers, so no generator state is saved, and the data of a step depends neither
on the number of processes nor on that of loader workers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from data_cache.errors import SettingError
from stages.training.spec import TrainStudentSpec

COLOUR_SPREAD = 0.2
GROUP_APART = 500_000
"""Epochs between the random numbers of two groups of frames."""
T = TypeVar("T")


@dataclass(frozen=True)
class Draw:
    """The random augmentation of one frame of a step.

    Attributes:
        mirrored: whether the rig is mirrored.
        brightness, contrast: factors on brightness and contrast.
    """

    mirrored: bool
    brightness: float
    contrast: float


def learning_rate(step: int, spec: TrainStudentSpec) -> float:
    """Learning rate of the step that follows `step` finished steps: linear warm-up, then half a cosine to zero."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    share = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def sample_order(seed: int, groups: Sequence[Sequence[int]], batch_rigs: int, steps: range) -> list[list[int]]:
    """Positions of the frames of each step, the groups taking turns within a step.

    Each group is gone through in consecutive epochs, each a permutation drawn from (seed, epoch, group).

    Args:
        seed: of the permutations.
        groups: positions; one group, or those with LiDAR and those without.
        batch_rigs: frames of a step, at least as many as there are groups.
        steps: which steps.
    """
    permutations: dict[tuple[int, int], list[int]] = {}
    order = []
    for step in steps:
        batch = []
        for place in range(batch_rigs):
            turn, which = divmod(place, len(groups))
            group = groups[which]
            size = len(range(which, batch_rigs, len(groups)))
            epoch, index = divmod(step * size + turn, len(group))
            if (epoch, which) not in permutations:
                generator = _generator(seed, which * GROUP_APART + epoch, 0)
                permutations[epoch, which] = torch.randperm(len(group), generator=generator).tolist()
            batch.append(group[permutations[epoch, which][index]])
        order.append(batch)
    return order


def draws(spec: TrainStudentSpec, step: int) -> list[Draw]:
    """The augmentation of each frame of a step; brightness and contrast lie within 20 % of 1."""
    generator = _generator(spec.seed, step, 1)
    turned = (torch.rand(spec.batch_rigs, generator=generator) < 0.5).tolist()
    found = []
    for mirrored in turned:
        brightness, contrast = 1.0, 1.0
        if spec.jitter:
            brightness, contrast = (1 + (torch.rand(2, generator=generator) * 2 - 1) * COLOUR_SPREAD).tolist()
        found.append(Draw(mirrored and spec.flip, brightness, contrast))
    return found


def split(batch: list[T], rank: int, process_count: int, accumulate: int) -> list[list[T]]:
    """The passes of one process: a step's frames are cut into `accumulate` equal parts, and each part among processes.

    The parts do not depend on the number of processes, since batch norm takes statistics over a whole part.

    Raises:
        SettingError: if the frames cannot be divided evenly.
    """
    size, rest = divmod(len(batch), process_count * accumulate)
    if rest:
        raise SettingError(
            f"train_student.batch_rigs: expected a multiple of {process_count} processes x accumulate = {accumulate},"
            f" got {len(batch)}"
        )
    begins = [(i * process_count + rank) * size for i in range(accumulate)]
    return [batch[begin : begin + size] for begin in begins]


def _generator(seed: int, index: int, purpose: int) -> torch.Generator:
    """A generator for one epoch or step."""
    return torch.Generator().manual_seed((seed * 2 + purpose) * 1_000_003 + index)
