"""What sigma costs: a student that also says how sure it is beside one that does not, in turns.

`make bench ARGS="-k bench_confidence"`; random weights and images, which say nothing about accuracy.
"""

import time

import numpy as np
import pytest
import torch

from data_cache.frames.views import RigViews
from pipeline.recipe.config import load_recipe
from stages.compute.devices import place, resolve_precision
from stages.inference.predict import predict_rig, predict_rig_sigma
from stages.student.fold import folded
from stages.student.model import Student

pytestmark = pytest.mark.bench
CPU = torch.device("cpu")
ROUNDS = 8


def processor_ms(call) -> float:
    begin = time.process_time()
    call()
    return 1e3 * (time.process_time() - begin)


@pytest.mark.parametrize("recipe_name", ["evidence", "pandaset"])
def test_bench_confidence_cost(recipe_name, capsys):
    """Processor time, which other jobs on the same cores change less than wall time."""
    recipe = load_recipe(recipe_name, ["student.pretrained=false"])
    student = folded(Student(recipe.student, recipe.bins).eval())
    place(student, CPU)
    height, width = recipe.student.input_size
    image = np.random.default_rng(0).integers(0, 256, (6, height, width, 3), dtype=np.uint8)
    K_px = np.tile(np.diag([recipe.student.focal_px, recipe.student.focal_px, 1]).astype(np.float32), (6, 1, 1))
    rig = RigViews(
        image, np.zeros((6, height, width), np.float32), K_px, np.tile(np.eye(4), (6, 1, 1)), np.ones(6, bool)
    )
    lines = [
        f"{recipe_name}, six images of {height} x {width}, {torch.get_num_threads()} threads, processor ms per rig"
    ]
    for precision in dict.fromkeys(("fp32", resolve_precision("auto", CPU))):
        plain, sure = [], []
        for i in range(1 + ROUNDS):
            first = processor_ms(lambda p=precision: predict_rig(student, rig, CPU, p))
            second = processor_ms(lambda p=precision: predict_rig_sigma(student, rig, CPU, p, 1.0))
            if i:
                plain.append(first)
                sure.append(second)
        change = np.median(np.array(sure) / np.array(plain)) - 1
        lines.append(
            f"  {precision}: depth {np.median(plain):.1f}, depth and sigma {np.median(sure):.1f}, {100 * change:+.1f} %"
        )
    with capsys.disabled():
        print("", *lines, sep="\n")
