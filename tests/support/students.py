"""Untrained students, students as after some training, and runs that hold one."""

from pathlib import Path

import torch
from torch import nn

from stages.student.checkpoint import Lineage
from stages.student.cross_view import RingAttention
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.spec import BinSpec
from support.fakes import STUDENT_SIZE, FakeSource
from support.surround import surround

LINEAGE = Lineage("tiny", "none", "c0ffee" * 10, "home", (0.1, 80.0), 1234)
NEAR = FakeSource(4, name="near", missing={"d/2": (1,)}, broken={"d/3": "image missing: x"})
MEMORY_RECIPE = """
[data]
source = "{source}"
test = ["d[1:]"]
train = ["d[:1]"]
[teacher_cache]
input_size = [42, 70]
[bins]
count = 32
[student]
input_size = [96, 160]
near_m = 1.0
far_m = 50.0
focal_px = 99.0
[train_student]
steps = 1
batch_rigs = 1
[eval]
precision = "fp32"
"""
"""A recipe of a source in memory, to be put into `pipeline.runs.splits.open_source`."""


def student() -> Student:
    """Small and untrained, the same each time."""
    torch.manual_seed(0)
    spec = StudentSpec(input_size=STUDENT_SIZE, near_m=0.5, far_m=80.0, focal_px=32.0, decoder_channels=8, pretrained=False)  # fmt: skip # noqa: E501
    return Student(spec, BinSpec()).eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def opened(attention: RingAttention) -> RingAttention:
    """The module after some training: what it says is no longer zero."""
    with torch.no_grad():
        attention.outward.weight.copy_(random(*attention.outward.weight.shape, seed=5))
    return attention.eval()


def trained(student: Student) -> Student:
    """A student whose batch norms have seen something, each channel something else."""
    for i, norm in enumerate(m for m in student.modules() if isinstance(m, nn.BatchNorm2d)):
        shape = norm.weight.shape
        norm.running_mean.copy_(0.3 * random(*shape, seed=4 * i))
        norm.running_var.copy_(random(*shape, seed=4 * i + 1).exp())
        norm.weight.data.copy_(1 + 0.3 * random(*shape, seed=4 * i + 2))
        norm.bias.data.copy_(0.3 * random(*shape, seed=4 * i + 3))
    return student


def run_predict(folder: Path, *arguments: object) -> tuple[int, str]:
    """`surround predict` by the student of a run folder."""
    return surround("predict", folder / "run/student/last.safetensors", "--out", folder / "out", *arguments)


def writing(*kinds: str) -> list[str]:
    """Its options for some kinds of files."""
    return [word for kind in kinds for word in ("--write", kind)]
