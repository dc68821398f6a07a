"""Students of every size against the teacher, one rig of six: one run, one harness, rounds that take turns."""

import statistics
from collections.abc import Callable

import pytest
import torch
from benchmarks.measuring import noise_rig
from torch.utils.flop_counter import FlopCounterMode

from pipeline.recipe.config import load_recipe
from pipeline.weights.fetch import fetch_weights
from stages.compute.devices import place, resolve_device, resolve_precision
from stages.evaluation.latency import measure
from stages.inference.predict import forward_rig
from stages.student.encoder import ENCODERS
from stages.student.fold import folded
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.teacher.transformers_depth import TransformersTeacher

pytestmark = pytest.mark.bench
STUDENT_SIZE = (384, 640)
RECIPE_SIZE, NATIVE_SIZE = (392, 644), (518, 854)
"""What the teacher looks at in our recipes, and the short side that it was trained with; multiples of its patch."""
NAMES = {"resnet-10": "nano", "resnet-18": "small", "resnet-34": "base"}
ROUNDS = 5


def gigaflops(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_bench_students(capsys):
    recipe = load_recipe("ddad")
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    weights = fetch_weights(recipe.teacher_cache.weights)
    rig = noise_rig(STUDENT_SIZE)
    contenders: dict[str, tuple[float, Callable[[], object]]] = {}
    for size in (NATIVE_SIZE, RECIPE_SIZE):
        teacher = TransformersTeacher(
            weights.path,
            name=recipe.teacher_cache.weights,
            licence=weights.licence,
            weights_sha256=weights.sha256,
            input_size=size,
            device=device,
            precision=precision,
        )
        images = torch.randint(0, 256, (6, *size, 3), dtype=torch.uint8)
        contenders[f"teacher {size[0]}x{size[1]}"] = (
            millions(teacher.model),
            lambda teacher=teacher, images=images: teacher(images),
        )
    for encoder in ENCODERS:
        spec = StudentSpec(
            encoder=encoder, pretrained=False, input_size=STUDENT_SIZE, near_m=0.5, far_m=200.0, focal_px=500.0
        )
        student = Student(spec, recipe.bins).eval()
        parameters = millions(student)
        for name, model in (
            (encoder, folded(student)),
            *([("resnet-18, not folded", student)] * (encoder == "resnet-18")),
        ):
            place(model, device)
            title = f"{NAMES[encoder]} ({name})" if encoder in NAMES else name
            contenders[title] = (parameters, lambda model=model: forward_rig(model, rig, device, precision))
    flops = {name: gigaflops(call) for name, (_, call) in contenders.items()}  # the first call of each warms it up, too
    repeats = 20 if device.type == "cuda" else 1
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (_, call) in contenders.items():
            times[name].append(measure(call, device, warmup=repeats // 5, repeats=repeats).p50_ms)
    ms = {name: statistics.median(values) for name, values in times.items()}
    native, recipe_input = list(ms)[:2]
    with capsys.disabled():
        print(
            f"\none rig of six, {precision} on {device}, {torch.get_num_threads()} threads, students at"
            f" {STUDENT_SIZE[0]}x{STUDENT_SIZE[1]}, probabilities at 1/{recipe.bins.prob_stride};"
            f" median of {ROUNDS} rounds"
        )
        print("| | M parameters | GFLOPs per rig | ms p50 | times faster than at recipe input | than at native input |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, (parameters, _) in contenders.items():
            print(
                f"| {name} | {parameters:.1f} | {flops[name]:.0f} | {ms[name]:.0f}"
                f" | {ms[recipe_input] / ms[name]:.1f} | {ms[native] / ms[name]:.1f} |"
            )
