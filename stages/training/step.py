"""One optimiser step of stage two, and the state that it changes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_cache.dataset import CachedRigs, collate, map_rigs, single
from data_cache.errors import SurroundError
from stages.compute.devices import place
from stages.compute.parallel import any_says, process_count, rank, share_batch_statistics, summed
from stages.losses.objective import Learner, loss_terms
from stages.losses.spec import LossSpec, weighted_sum
from stages.losses.terms import LossTerms
from stages.student.model import Student
from stages.targets.binning import Binning
from stages.training.augment import jitter_colours, mirror, thin_lidar
from stages.training.schedule import Draw, draws, learning_rate, split
from stages.training.spec import TrainStudentSpec

LEARNER, AVERAGED, OPTIMIZER, SCALER = "learner.", "averaged.", "optimizer.", "scaler."


class TrainingError(SurroundError):
    """Training cannot go on."""


@dataclass(frozen=True)
class Setting:
    """Settings of the losses.

    Attributes:
        binning: how the teacher's bins in the cache were cut.
        losses: weights of the terms.
        depth_range_m: LiDAR depths outside are ignored.
        precision: precision of the student's forward pass.
    """

    binning: Binning
    losses: LossSpec
    depth_range_m: tuple[float, float]
    precision: str


class _Objective(nn.Module):
    """The learner with its losses, so that one call is the whole forward pass, as DDP requires."""

    def __init__(self, learner: Learner, setting: Setting):
        super().__init__()
        self.learner, self.setting = learner, setting

    def forward(self, rigs: CachedRigs, image: Tensor) -> LossTerms:
        return _terms(self.learner, self.setting, rigs, image)


def _terms(learner: Learner, how: Setting, rigs: CachedRigs, image: Tensor) -> LossTerms:
    return loss_terms(learner, how.binning, rigs, image, how.losses, how.depth_range_m, how.precision)


class Training:
    """Learner, optimiser, loss scale and averaged student; `step` updates them.

    Attributes:
        learner: the student and, for feature distillation, its adapter.
        optimizer: AdamW.
        scaler: loss scale for fp16; does nothing in other precisions.
        averaged: moving average of the student, None without `ema_decay`.
    """

    def __init__(
        self, student: Student, token_channels: int, setting: Setting, spec: TrainStudentSpec, device: torch.device
    ):
        """Move everything to `device`; several processes must have been joined (stages/compute/parallel.py) before.

        Args:
            student: the student to train.
            token_channels: channels of the teacher's tokens, 0 without feature distillation.
            setting: settings of the losses.
            spec: settings of the steps.
            device: device of this process.
        """
        self.spec, self.setting, self.device = spec, setting, device
        average = get_ema_multi_avg_fn(spec.ema_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(student, multi_avg_fn=average, use_buffers=True) if spec.ema_decay else None
        if self.averaged is not None:
            place(self.averaged, device)
        self.learner = Learner(student, token_channels)
        share_batch_statistics(self.learner, device)
        place(self.learner, device)
        # Not fused: fused steps are not reproducible to the byte after a resume.
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(), spec.learning_rate, weight_decay=spec.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=setting.precision == "fp16")
        if spec.compile:
            student.compile()
        self._objective: nn.Module = _Objective(self.learner, setting)
        if process_count() > 1:
            # Without the LiDAR term some parameters may have no gradient in a step.
            self._objective = DistributedDataParallel(
                self._objective, find_unused_parameters=not setting.losses.supervised
            )

    @property
    def student(self) -> Student:
        """The student to evaluate and save: the averaged one, if there is one."""
        if self.averaged is None:
            return self.learner.student
        return cast("Student", self.averaged.module)

    def step(self, passes: Sequence[CachedRigs], step: int) -> LossTerms:
        """Take one optimiser step on this process's share of the frames.

        Args:
            passes: its frames on `device`, one entry for each backward pass, of equal sizes.
            step: number of optimiser steps before this one.

        Returns:
            The terms without gradients, as means over the passes of this process.

        Raises:
            TrainingError: in every process, if a loss is not finite in any of them (the message names terms and
                frames), or if a gradient is not finite (in fp16: at any loss scale). No weight has changed then.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.spec)
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        shares = split(draws(self.spec, step), rank(), process_count(), len(passes))
        for i, (rigs, share) in enumerate(zip(passes, shares, strict=True)):
            last = i == len(passes) - 1
            ddp = self._objective if isinstance(self._objective, DistributedDataParallel) else None
            with ddp.no_sync() if ddp is not None and not last else nullcontext():
                augmented, image = augment(rigs, share, self.spec.lidar_share)
                terms = self._objective(augmented, image)
                total = weighted_sum(terms, self.setting.losses)
                if any_says(not bool(torch.isfinite(total)), self.device):
                    raise self._not_finite(terms, augmented, image, step)
                self.scaler.scale(total / len(passes)).backward()  # type: ignore[no-untyped-call]
            found.append(terms)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.spec.clip_norm)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):  # in fp16 the scaler itself skips such a step
            frames = ", ".join(frame_id for rigs in passes for frame_id in rigs.frame_ids)
            raise TrainingError(
                f"step {step + 1}: a gradient is not finite though the losses are: {term_values(_mean(found))}; frames"
                f" {frames}. Lower train_student.learning_rate or look at these frames; the last saved state is kept"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:  # the scaler halves it at each skipped step
            raise TrainingError(
                f"step {step + 1}: gradients have not been finite for many steps in fp16, down to a loss scale of"
                f" {self.scaler.get_scale()}; set train_student.precision to bf16 or fp32, or lower"
                " train_student.learning_rate. The last saved state is kept"
            )
        if self.averaged is not None:
            self.averaged.update_parameters(self.learner.student)
        return _mean(found)

    def _not_finite(self, terms: LossTerms, rigs: CachedRigs, image: Tensor, step: int) -> TrainingError:
        """The error for a loss that is not finite: names the terms, and the frames that alone cause it, or all.

        All processes call this together, since the losses count frames over all of them.
        """
        how, alone = self.setting, []
        self.learner.eval()
        with torch.no_grad():
            for i, frame_id in enumerate(rigs.frame_ids):
                one = replace(map_rigs(itemgetter(slice(i, i + 1)), rigs), frame_ids=(frame_id,))
                own = _terms(self.learner, how, one, image[i : i + 1])
                if not torch.isfinite(weighted_sum(own, how.losses)):
                    alone.append(frame_id)
        self.learner.train()
        if not alone and torch.isfinite(weighted_sum(terms, how.losses)):
            return TrainingError(f"step {step + 1}: a loss of another process is not finite; see its message")
        return TrainingError(
            f"step {step + 1}: loss is not finite: {term_values(terms)}; frames {', '.join(alone or rigs.frame_ids)}."
            " Lower train_student.learning_rate or look at these frames; the last saved state is kept"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next steps depend on, by name; the inverse of `restore`."""
        found = {f"{LEARNER}{name}": value for name, value in self.learner.state_dict().items()}
        if self.averaged is not None:
            found |= {f"{AVERAGED}{name}": value for name, value in self.averaged.state_dict().items()}
        found |= {f"{OPTIMIZER}{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if scale := self.scaler.state_dict():
            found |= {f"{SCALER}{name}": torch.tensor(value) for name, value in scale.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the state to that of `tensors`, made by the method of that name.

        Raises:
            RuntimeError: if they belong to another architecture or other settings.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.learner.load_state_dict(part(LEARNER))
        if self.averaged is not None:
            self.averaged.load_state_dict(part(AVERAGED))
        restore_optimizer(self.optimizer, part(OPTIMIZER))
        if scale := part(SCALER):
            self.scaler.load_state_dict({name: value.item() for name, value in scale.items()})


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, by name; the inverse of `restore_optimizer`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, slots in state.items() for name, value in slots.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser back what `optimizer_tensors` took from one with the same parameters."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def augment(rigs: CachedRigs, share: Sequence[Draw], lidar_share: float) -> tuple[CachedRigs, Tensor]:
    """Augmented frames, and their images as RGB in [0, 1] with jittered colours.

    Args:
        rigs: frames from the cache.
        share: the random draw for each frame.
        lidar_share: share of LiDAR pixels that are kept.
    """
    singles = [thin_lidar(single(rigs, i), lidar_share) for i in range(len(share))]
    rigs = collate([mirror(rig) if draw.mirrored else rig for rig, draw in zip(singles, share, strict=True)])
    image = rigs.image.float() / 255
    jittered = [jitter_colours(rig, draw.brightness, draw.contrast) for rig, draw in zip(image, share, strict=True)]
    return rigs, torch.stack(jittered)


def on_device(device: torch.device, rigs: CachedRigs) -> CachedRigs:
    """Copy the rigs to `device`."""
    return map_rigs(lambda tensor: tensor.to(device, non_blocking=True), rigs)


def term_values(terms: LossTerms) -> dict[str, float]:
    """The terms that were computed, by name."""
    return {f.name: term.item() for f in fields(terms) if (term := getattr(terms, f.name)) is not None}


def mean_over_processes(terms: LossTerms) -> LossTerms:
    """The terms of a step over the frames of all processes; every process must call this."""
    return _mean([terms], lambda values: summed(values[0]) / process_count())


def _mean(
    found: Sequence[LossTerms],
    mean: Callable[[list[Tensor]], Tensor] = lambda values: torch.stack(values).detach().mean(0),
) -> LossTerms:
    values = {f.name: [getattr(terms, f.name) for terms in found] for f in fields(LossTerms)}
    return LossTerms(**{name: mean(terms) for name, terms in values.items() if terms[0] is not None})
