"""One rig of six through teacher and student, and one training step, in one run on one machine."""

import pytest
import torch

from pipeline.recipe.config import load_recipe
from pipeline.weights.fetch import fetch_weights
from stages.compute.devices import autocast, place, resolve_device, resolve_precision
from stages.evaluation.latency import measure
from stages.losses.terms import scale_invariant_log
from stages.student.model import Student
from stages.teacher.transformers_depth import TransformersTeacher

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("name", ["demo", "pandaset", "ddad"])
def test_bench_rig(name, capsys):
    recipe = load_recipe(name)
    weights = fetch_weights(recipe.teacher_cache.weights)
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    teacher = TransformersTeacher(
        weights.path,
        name=recipe.teacher_cache.weights,
        licence=weights.licence,
        weights_sha256=weights.sha256,
        input_size=recipe.teacher_cache.input_size,
        device=device,
        precision=precision,
    )
    images = torch.randint(0, 256, (6, *teacher.input_size, 3), dtype=torch.uint8)
    teacher_time = measure(lambda: teacher(images), device, warmup=1, repeats=5)

    student = Student(recipe.student, recipe.bins)
    place(student, device)
    image = torch.rand(1, 6, 3, *recipe.student.input_size, device=device)
    focal_px = torch.full((1, 6), recipe.student.focal_px, device=device)
    there = torch.ones(1, 6, dtype=torch.bool, device=device)

    def forward() -> torch.Tensor:
        with autocast(device, precision):
            return student(image, focal_px, there).depth_m

    def step() -> None:
        student.zero_grad()
        depth_m = forward()
        scale_invariant_log(depth_m, depth_m.detach() + 1).backward()

    step_time = measure(step, device, warmup=2, repeats=5)
    student.eval()
    with torch.inference_mode():
        student_time = measure(forward, device, warmup=3, repeats=20)
    with capsys.disabled():
        print(
            f"\n{name}, {precision} on {device}, {torch.get_num_threads()} threads, ms per rig of six:"
            f" teacher {teacher_time.p50_ms:.0f} at {teacher.input_size},"
            f" student {student_time.p50_ms:.0f} at {recipe.student.input_size}"
            f" ({teacher_time.p50_ms / student_time.p50_ms:.1f} times faster),"
            f" forward and backward {step_time.p50_ms:.0f}"
        )
