"""One rig of six at full size in PyTorch, onnxruntime and OpenVINO, in turns: times, and differences to PyTorch.

Students that see each camera alone are exported as a graph of a rig and as a graph of one camera. Weights and images
are random: times are those of any student of this shape, differences are not. `surround export` prints the same table
for a trained student on real frames, with what int8 costs in accuracy.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.recipe.config import load_recipe
from pipeline.runs.export import parity_table
from stages.deploy.export import export_program, onnx_model
from stages.deploy.parity import Contender, MeasuredRig, compare, graph_contenders, int8_contenders, torch_contenders
from stages.deploy.quantize import quantized
from stages.deploy.runtimes import DeployedRigs, cameras, torch_runner
from stages.student.model import Student
from stages.student.spec import StudentSpec

pytestmark = pytest.mark.bench
SIZE = (384, 640)
ROUNDS = 10


def spec_of(encoder: str) -> StudentSpec:
    """ResNets with the attention that they were measured with before, the others without."""
    return StudentSpec(
        encoder=encoder,
        pretrained=False,
        input_size=SIZE,
        near_m=0.5,
        far_m=200.0,
        focal_px=500.0,
        attention_width=128 if encoder.startswith("resnet") else 0,
    )


def exported(student: Student, rig: DeployedRigs) -> Iterator[Contender]:
    """The graph of a rig and, of a student that sees each camera alone, that of one camera; each in int8, too."""
    for one_camera in (False, True) if student.attention is None else (False,):
        calibration = list(cameras(rig)) if one_camera else [rig]
        graph = onnx_model(export_program(student, calibration[0].image.shape[1], batch=1), {})
        yield from graph_contenders(graph, one_camera=one_camera)
        yield from int8_contenders(quantized(graph, calibration, "cpu"), "cpu", one_camera=one_camera)


@pytest.mark.parametrize(
    "encoder", ["resnet-18", "resnet-10", "efficientnet-lite0", "efficientnet-lite2", "mobilenet-v2"]
)
def test_bench_export(encoder, capsys):
    torch.manual_seed(0)
    student = Student(spec_of(encoder), load_recipe("ddad").bins).eval()
    rng = np.random.default_rng(0)
    rig = DeployedRigs(rng.integers(0, 256, (1, 6, 3, *SIZE), dtype=np.uint8), np.full((1, 6), 500, np.float32))
    file_bytes = 4 * sum(parameter.numel() for parameter in student.parameters())
    found = compare(
        torch_runner(student, "fp32"),
        [*torch_contenders(student, file_bytes), *exported(student, rig)],
        [MeasuredRig(rig, np.zeros((6, *SIZE), np.float32), dense=False)],
        batch=1,
        range_m=(0.1, 200.0),
        rounds=ROUNDS,
    )
    with capsys.disabled():
        threads = torch.get_num_threads()
        print(f"\n{encoder}, a rig of six {SIZE[0]}x{SIZE[1]}, {threads} threads, median of {ROUNDS} rounds")
        print(parity_table(found, "no truth"))
