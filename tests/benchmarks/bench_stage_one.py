"""Stage one against the bare teacher, in PyTorch and in OpenVINO, in one run on the same frames."""

import time
from dataclasses import dataclass, field, replace

import pytest
import torch
from benchmarks.measuring import Cost, counted, in_batches, look_only, spread_text, write_cache
from support.real_drives import pandaset, repeated

from pipeline.runs.stage_one import StageOne
from stages.compute.devices import resolve_precision

pytestmark = pytest.mark.bench
FRAMES = 2
ROUNDS = 2
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, eq=False)
class Opened:
    """Stage one in one runtime, and what was measured of it."""

    stage: StageOne
    opening_s: float
    bare: list[Cost] = field(default_factory=list)
    whole: list[Cost] = field(default_factory=list)


def opened(runtime: str, precision: str) -> Opened:
    recipe = pandaset()
    spec = replace(recipe.teacher_cache, runtime=runtime, precision=precision, device="cpu")
    begin = time.perf_counter()
    stage = repeated(replace(recipe, teacher_cache=spec), FRAMES)
    return Opened(stage, time.perf_counter() - begin)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bench_stage_one(precision, capsys):
    """In turns, so that what else runs on the machine meets all four alike; factors of wall time, round by round."""
    pytest.importorskip("openvino", reason="pip install 'surround-distill[openvino]'")
    if precision == "bf16" and resolve_precision("auto", torch.device("cpu")) != "bf16":
        pytest.skip("this CPU has no fast bf16")
    measured = {runtime: opened(runtime, precision) for runtime in ("torch", "openvino")}
    batches = in_batches(measured["torch"].stage, FRAMES)
    for one in measured.values():
        look_only(one.stage, batches[: one.stage.lanes])
    for _ in range(ROUNDS):
        for one in measured.values():
            with counted(one.bare, FRAMES):
                look_only(one.stage, batches)
        for one in measured.values():
            with counted(one.whole, FRAMES):
                write_cache(one.stage)
    eager = measured["torch"].bare
    stage = measured["torch"].stage
    with capsys.disabled():
        print(
            f"\n{stage.teacher.name} {list(stage.teacher.input_size)} {precision}, {stage.lanes} lanes,"
            f" {FRAMES} frames, {ROUNDS} rounds, median (least to most), {torch.backends.cpu.get_cpu_capability()}\n"
            "| | frames/s | times the bare PyTorch teacher | processor seconds a frame |\n| --- | --- | --- | --- |"
        )
        for runtime, one in measured.items():
            for name, costs in (("bare forward pass", one.bare), ("stage one", one.whole)):
                rates = spread_text([1 / c.wall_s for c in costs])
                factors = spread_text([e.wall_s / c.wall_s for e, c in zip(eager, costs, strict=True)])
                print(f"| {name}, {runtime} | {rates} | {factors} | {spread_text([c.cpu_s for c in costs])} |")
        print(", ".join(f"{runtime} opened in {one.opening_s:.1f} s" for runtime, one in measured.items()))
