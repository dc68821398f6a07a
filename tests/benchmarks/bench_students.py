"""Students in their deployed graphs against the teacher, one rig of six: one run, rounds that take turns.

Times are those of random weights and images. Accuracy is read from the ablations of `evidence` in `results/`; what was
measured is written to `results/students.json` and drawn in `docs/students.png`.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_cache.files import write_atomically
from pipeline.recipe.config import load_recipe
from pipeline.recipe.provenance import surroundings
from pipeline.weights.fetch import fetch_weights
from stages.compute.cpu import cpu_flags, flags_text
from stages.compute.devices import resolve_precision
from stages.compute.openvino_cpu import openvino_precisions
from stages.deploy.export import export_program, onnx_model
from stages.deploy.parity import Contender, graph_contenders, int8_contenders, torch_contenders
from stages.deploy.quantize import quantized
from stages.deploy.runtimes import CPU, DeployedRigs, cameras, torch_runner
from stages.evaluation.latency import measure
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.teacher.load import load_teacher

pytestmark = pytest.mark.bench
SIZE = (384, 640)
TEACHER_SIZES = ((392, 644), (518, 854))
"""What the teacher looks at in our recipes, and the short side that it was trained with; multiples of its patch."""
ROUNDS, TEACHER_ROUNDS = 5, 1
HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURE = HERE.parents[1] / "docs/students.png"


@dataclass(frozen=True)
class Named:
    """A student of the table.

    Attributes:
        name: for people.
        encoder, decoder_channels, attention_width: what it is made of.
        accuracy: file in RESULTS and row in it where its accuracy stands, None if it was not measured.
        before: it was a default before.
    """

    name: str
    encoder: str
    decoder_channels: int = 64
    attention_width: int = 0
    accuracy: tuple[str, str] | None = None
    before: bool = False


STUDENTS = (
    Named("nano", "mobilenet-v2", decoder_channels=32, accuracy=("ablation_synthetic_students.json", "nano")),
    Named("small", "mobilenet-v2", decoder_channels=96, accuracy=("ablation_synthetic_students.json", "small")),
    Named("base", "mobilenet-v2", decoder_channels=192, accuracy=("ablation_synthetic_students.json", "base")),
    Named("mobilenet 64", "mobilenet-v2"),
    Named("resnet-18 alone", "resnet-18"),
    Named("lite0", "efficientnet-lite0"),
    Named("lite2", "efficientnet-lite2"),
    Named(
        "small before",
        "resnet-18",
        attention_width=128,
        accuracy=("ablation_synthetic_default.json", "KL + VRKD + completion + photometric"),
        before=True,
    ),
    Named(
        "nano before",
        "resnet-10",
        attention_width=128,
        accuracy=("ablation_synthetic_sizes.json", "resnet-10 (nano)"),
        before=True,
    ),
)


def made(named: Named) -> Student:
    spec = StudentSpec(
        encoder=named.encoder,
        pretrained=False,
        input_size=SIZE,
        near_m=0.5,
        far_m=200.0,
        focal_px=500.0,
        decoder_channels=named.decoder_channels,
        attention_width=named.attention_width,
    )
    torch.manual_seed(0)
    return Student(spec, load_recipe("ddad").bins).eval()


def contenders(student: Student, rig: DeployedRigs) -> Iterator[Contender]:
    """Every way to run it: PyTorch, and its graph (of one camera, if it sees each camera alone), in int8 too."""
    one_camera = student.attention is None
    calibration = list(cameras(rig)) if one_camera else [rig]
    graph = onnx_model(export_program(student, calibration[0].image.shape[1], batch=1), {})
    yield from torch_contenders(student, 0)
    yield from graph_contenders(graph, one_camera=one_camera)
    for one in int8_contenders(quantized(graph, calibration, "cpu"), "cpu", one_camera=one_camera):
        if one.timed:
            yield one


def teachers() -> Iterator[tuple[tuple[int, int], str, str, Callable[[], object]]]:
    """Input, runtime and precision of the teacher, and a call that looks at six images."""
    spec = load_recipe("ddad").teacher_cache
    weights = fetch_weights(spec.weights)
    for size in TEACHER_SIZES:
        images = torch.randint(0, 256, (6, *size, 3), dtype=torch.uint8)
        for runtime in ("torch", "openvino"):
            precision = resolve_precision("auto", CPU)
            if runtime == "openvino" and precision not in openvino_precisions():
                continue
            teacher = load_teacher(
                weights.path,
                name=spec.weights,
                licence=weights.licence,
                weights_sha256=weights.sha256,
                input_size=size,
                device=CPU,
                precision=precision,
                runtime=runtime,
            )
            yield size, runtime, precision, partial(teacher, images)


def accuracy(named: Named) -> dict[str, object]:
    """AbsRel, spread and edges on the test drives of `evidence`, dense truth; nothing if they were not measured."""
    if named.accuracy is None or not (RESULTS / named.accuracy[0]).is_file():
        return {"abs_rel_mean": None, "abs_rel_std": None, "edges_mean": None, "seeds": []}
    rows = json.loads((RESULTS / named.accuracy[0]).read_text())["rows"]
    (row,) = (row for row in rows if row["name"] == named.accuracy[1] and row["lidar_share"] == 1)
    return {key: row[key] for key in ("abs_rel_mean", "abs_rel_std", "edges_mean", "seeds")}


def test_bench_students(capsys):
    rng = np.random.default_rng(0)
    rig = DeployedRigs(rng.integers(0, 256, (1, 6, 3, *SIZE), dtype=np.uint8), np.full((1, 6), 500, np.float32))
    calls: dict[tuple[str, str, str], Callable[[], object]] = {}
    weights_m, gflops = {}, {}
    for named in STUDENTS:
        student = made(named)
        weights_m[named.name] = sum(p.numel() for p in student.parameters()) / 1e6
        with FlopCounterMode(display=False) as counter:
            torch_runner(student, "fp32")(rig)
        gflops[named.name] = counter.get_total_flops() / 1e9
        for one in contenders(student, rig):
            calls[named.name, one.runtime, one.precision] = partial(one.run, rig)
    looks = {("x".join(map(str, size)), runtime, precision): call for size, runtime, precision, call in teachers()}
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in (*calls, *looks)}
    for i in range(1 + ROUNDS):  # the first one warms up
        for key, call in {**calls, **(looks if i <= TEACHER_ROUNDS else {})}.items():
            ms = measure(call, CPU, warmup=0, repeats=1).p50_ms
            times[key] += [ms] * (i > 0)
    ms = {key: statistics.median(values) for key, values in times.items()}
    best = {name: min((key for key in ms if key[0] == name), key=lambda key: ms[key]) for name, _, _ in ms}
    rows = [
        {
            "name": named.name,
            "encoder": named.encoder,
            "decoder_channels": named.decoder_channels,
            "attention_width": named.attention_width,
            "runtime": runtime,
            "precision": precision,
            "ms": ms[name, runtime, precision],
            "gflops": gflops[name],
            "parameters_m": weights_m[name],
            **accuracy(named),
        }
        for named in STUDENTS
        for name, runtime, precision in calls
        if name == named.name
    ]
    found = {
        "rows": rows,
        "teacher": [
            {"input": size, "runtime": runtime, "precision": precision, "ms": ms[size, runtime, precision]}
            for size, runtime, precision in looks
        ],
        "command": 'make bench ARGS="-k bench_students"',
        **{key: value for key, value in surroundings().items() if key != "git_commit"},
        "commit": surroundings()["git_commit"],
        "cpu_flags": flags_text(cpu_flags()),
        "threads": torch.get_num_threads(),
    }
    write_atomically(RESULTS / "students.json", json.dumps(found, indent=1) + "\n")
    draw(rows)
    recipe_input, native = ("x".join(map(str, size)) for size in TEACHER_SIZES)
    with capsys.disabled():
        print(
            f"\none rig of six {SIZE[0]}x{SIZE[1]}, {torch.get_num_threads()} threads, median of {ROUNDS}, CPU:"
            f" {flags_text(cpu_flags())}"
        )
        for size in (recipe_input, native):
            print(f"teacher {size}: {ms[best[size]]:.0f} ms ({', '.join(best[size][1:])})")
        print(
            "| student | M | GFLOPs | runtime | precision | ms | times the teacher at recipe input | at native input |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, runtime, precision in calls:
            own = ms[name, runtime, precision]
            print(
                f"| {name} | {weights_m[name]:.1f} | {gflops[name]:.0f} | {runtime} | {precision} | {own:.0f}"
                f" | {ms[best[recipe_input]] / own:.1f} | {ms[best[native]] / own:.1f} |"
            )


def draw(rows: list[dict[str, object]]) -> None:
    """AbsRel over the fastest time in float (circles) and in int8 (squares); students of before in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes, small = figure.subplots(), {"textcoords": "offset points", "fontsize": 8}
    for named in STUDENTS:
        own = [row for row in rows if row["name"] == named.name and row["abs_rel_mean"] is not None]
        for int8, marker in ((False, "o"), (True, "s")):
            points = [row for row in own if ("int8" in str(row["precision"])) == int8]
            if not points:
                continue
            row = min(points, key=lambda row: float(str(row["ms"])))
            x, y, spread = row["ms"], row["abs_rel_mean"], row["abs_rel_std"] or 0
            colour = "0.6" if named.before else "tab:blue"
            axes.errorbar(x, y, yerr=spread, fmt=marker, color=colour, capsize=2)
            axes.annotate(f"{named.name}{', int8' if int8 else ''}", (x, y), (7, -11 if int8 else 5), **small)
    axes.margins(y=0.15)
    axes.axvline(100, color="0.8", linewidth=1)
    axes.annotate("10 Hz", (100, axes.get_ylim()[1]), (3, -10), color="0.5", **small)
    axes.set(
        xlim=(0, 420), xlabel="ms per rig of six 384 x 640, two cores", ylabel="AbsRel in fp32, dense truth, evidence"
    )
    figure.savefig(FIGURE)
