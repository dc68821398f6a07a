"""Trainings of a small student for a few steps."""

from dataclasses import replace
from pathlib import Path

import torch

from data_cache.dataset import CachedRigs, collate
from data_cache.shards.reader import CacheReader
from stages.losses.spec import LossSpec
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.binning import AffineBinning
from stages.targets.spec import BinSpec
from stages.train_student import train_student
from stages.training.preflight import TrainingJob
from stages.training.spec import TrainStudentSpec
from stages.training.step import Setting, Training
from support.fakes import CPU
from support.random_rigs import random_rig
from support.tiny_encoder import TINY_ENCODER

STUDENT = StudentSpec(
    encoder="resnet-10",
    input_size=(32, 64),
    near_m=0.5,
    far_m=80.0,
    focal_px=32.0,
    decoder_channels=8,
    attention_width=16,
    pretrained=False,
)
TINY = replace(STUDENT, encoder=TINY_ENCODER)
SPEC = TrainStudentSpec(
    steps=6, batch_rigs=2, warmup_steps=2, checkpoint_every=2, select_every=2, precision="fp32", workers=0
)
RANGE_M = (0.1, 80.0)


def train(cache: Path, folder: Path, spec: TrainStudentSpec = SPEC, weights: LossSpec = LossSpec(), **options):  # noqa: B008
    torch.manual_seed(spec.seed)
    student = Student(options.pop("student", TINY), BinSpec(prob_stride=4))
    ids, selection = ("d/0", "d/1", "d/2", "d/3", "d/4"), options.pop("selection", ())
    reader = CacheReader(cache)
    fresh = options.pop("fresh", False)
    job = TrainingJob(reader, student, ids, selection, folder, spec, weights, RANGE_M, CPU, fresh)
    return train_student(job, **options)


def stop_after(calls: int):
    answers = iter([False] * calls + [True])
    return lambda: next(answers)


def rigs(count: int) -> CachedRigs:
    singles = [random_rig(3, size=STUDENT.input_size)[0] for _ in range(count)]
    named = [
        replace(rig, frame_ids=(f"d/{i}",), lidar_depth_m=1 + 20 * rig.lidar_depth_m) for i, rig in enumerate(singles)
    ]
    return collate(named)


def training(spec: TrainStudentSpec = SPEC, losses: LossSpec = LossSpec(), precision: str = "fp32") -> Training:  # noqa: B008
    torch.manual_seed(0)
    student = Student(STUDENT, BinSpec(count=16, prob_stride=4))
    made = Training(student, 0, Setting(AffineBinning(), losses, RANGE_M, precision), spec, CPU)
    made.learner.train()
    return made
