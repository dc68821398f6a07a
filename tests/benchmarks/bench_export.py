"""One rig of six at full size in PyTorch, onnxruntime and OpenVINO, in turns: times, and differences to PyTorch.

Weights and images are random: times are those of any student of this shape, differences are not. `surround export`
prints the same table for a trained student on real frames, with what int8 costs in accuracy.
"""

import numpy as np
import pytest
import torch

from pipeline.recipe.config import load_recipe
from pipeline.runs.export import parity_table
from stages.deploy.export import export_program, onnx_model
from stages.deploy.parity import MeasuredRig, compare, graph_contenders, int8_contenders, torch_contenders
from stages.deploy.quantize import quantized
from stages.deploy.runtimes import DeployedRigs, torch_runner
from stages.student.model import Student
from stages.student.spec import StudentSpec

pytestmark = pytest.mark.bench
SIZE = (384, 640)
ROUNDS = 10


@pytest.mark.parametrize("encoder", ["resnet-18", "resnet-10"])
def test_bench_export(encoder, capsys):
    spec = StudentSpec(encoder=encoder, pretrained=False, input_size=SIZE, near_m=0.5, far_m=200.0, focal_px=500.0)
    torch.manual_seed(0)
    student = Student(spec, load_recipe("ddad").bins).eval()
    rng = np.random.default_rng(0)
    rig = DeployedRigs(rng.integers(0, 256, (1, 6, 3, *SIZE), dtype=np.uint8), np.full((1, 6), 500, np.float32))
    graph = onnx_model(export_program(student, 6, batch=1), {})
    contenders = [*torch_contenders(student, 4 * sum(p.numel() for p in student.parameters()))]
    contenders += graph_contenders(graph)
    contenders += int8_contenders(quantized(graph, [rig], "cpu"), "cpu")
    found = compare(
        torch_runner(student, "fp32"),
        contenders,
        [MeasuredRig(rig, np.zeros((6, *SIZE), np.float32), dense=False)],
        batch=1,
        range_m=(0.1, 200.0),
        rounds=ROUNDS,
    )
    with capsys.disabled():
        threads = torch.get_num_threads()
        print(f"\n{encoder}, a rig of six {SIZE[0]}x{SIZE[1]}, {threads} threads, median of {ROUNDS} rounds")
        print(parity_table(found, "no truth"))
