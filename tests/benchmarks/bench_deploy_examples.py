"""The programs of `examples/deploy` beside this program: start-up, peak memory, latency; in turns, each a process.

Every process opens the same student of random weights, then looks ROUNDS times at the same six images and says how long
a look took, from files to metres at the size of the images. Start-up is what comes before the first look. Wall time
feels other jobs on the same cores, processor time (of all threads) hardly does.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.data_sets.loose_images import write_rig
from support.deploy_examples import EXAMPLES, built_cpp, missing_for_cpp

from pipeline.recipe.config import load_recipe
from pipeline.report.markdown import Table, markdown_table
from stages.deploy.export import export_program, onnx_model
from stages.deploy.quantize import quantized
from stages.deploy.runtimes import DeployedRigs, cameras
from stages.student.checkpoint import Lineage, save_student
from stages.student.model import Student
from stages.student.spec import StudentSpec

pytestmark = pytest.mark.bench
SIZE, IMAGE_SIZE = (384, 640), (1080, 1920)
CAMERAS = ("front", "front_right", "back_right", "back", "back_left", "front_left")
FOCAL_PX = 1500.0
TURNS, ROUNDS = 3, 5
PREDICT = """
import statistics, sys, time
from pipeline.api import load_rig, load_student
checkpoint, rig_file, precision, rounds, *images = sys.argv[1:]
student, rig = load_student(checkpoint, "cpu", precision), load_rig(rig_file)
print("ready", flush=True)
times_s = []
for _ in range(int(rounds)):
    begin = time.perf_counter()
    student.predict(images, rig)
    times_s.append(time.perf_counter() - begin)
print(f"depth of 6 images in {1e3 * statistics.median(times_s):.1f} ms: kept in memory")
"""
LAUNCHER = """
import json, os, resource, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
assert process.stdout.readline() == "ready\\n"
ready_s = time.perf_counter() - begin
ready_cpu_s = sum(map(int, open(f"/proc/{process.pid}/stat").read().rpartition(")")[2].split()[11:13]))
ready_cpu_s /= os.sysconf("SC_CLK_TCK")
said = process.stdout.read()
assert process.wait() == 0
used = resource.getrusage(resource.RUSAGE_CHILDREN)
look_ms = float(said.split(" in ")[1].split()[0])
look_cpu_s = used.ru_utime + used.ru_stime - ready_cpu_s
print(json.dumps([ready_s, ready_cpu_s, used.ru_maxrss / 1e3, look_ms, look_cpu_s]))
"""
"""A small process between: the peak of a child is never below what its parent had in memory when it was forked."""


def measured(command: list[object]) -> list[float]:
    """Seconds until it was ready, wall and processor; peak in MB; its median look in ms; processor seconds after."""
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[float] = json.loads(done.stdout)
    return found


def write_graphs(folder: Path, student: Student) -> dict[str, Path]:
    """Of a rig; of one camera; of one camera in int8."""
    about = {"format": "surround-export/1", "input_size": SIZE, "cameras": CAMERAS, "batch": 1, "views_per_call": 6}
    one = about | {"views_per_call": 1}
    rng = np.random.default_rng(0)
    rig = DeployedRigs(rng.integers(0, 256, (1, 6, 3, *SIZE), dtype=np.uint8), np.full((1, 6), 500, np.float32))
    graphs = {
        "one graph of the rig": onnx_model(export_program(student, 6, 1), about),
        "a core each": onnx_model(export_program(student, 1, 1), one),
    }
    graphs["a core each, int8"] = quantized(graphs["a core each"], list(cameras(rig)), "cpu")
    paths = {name: folder / f"{i}.onnx" for i, name in enumerate(graphs)}
    for name, path in paths.items():
        path.write_bytes(graphs[name])
    return paths


def commands(folder: Path) -> Mapping[str, list[object]]:
    """The programs to measure, by name."""
    torch.manual_seed(0)
    spec = StudentSpec(pretrained=False, input_size=SIZE, near_m=0.5, far_m=200.0, focal_px=500.0)
    student = Student(spec, load_recipe("ddad").bins).eval()
    save_student(folder / "s.safetensors", student, Lineage("none", "none", "0" * 64, "none", (0.1, 80.0), 0))
    rng = np.random.default_rng(0)
    photos = {name: folder / f"{name}.ppm" for name in CAMERAS}
    for path in photos.values():
        blobs = Image.fromarray(rng.integers(0, 256, (27, 48, 3), dtype=np.uint8))
        blobs.resize(IMAGE_SIZE[::-1], Image.Resampling.BILINEAR).save(path)
    intrinsics = [[FOCAL_PX, 0, 960], [0, FOCAL_PX, 540], [0, 0, 1]]
    size = {"width": IMAGE_SIZE[1], "height": IMAGE_SIZE[0]}
    rig = write_rig(folder, *({"name": name, "intrinsics": intrinsics, **size} for name in CAMERAS))
    graphs = write_graphs(folder, student)
    told = [
        "--out",
        folder / "out",
        "--repeat",
        ROUNDS,
        *(f"{name}={FOCAL_PX}:{path}" for name, path in photos.items()),
    ]
    found: dict[str, list[object]] = {}
    for precision in ("fp32", "auto"):
        python = [sys.executable, "-c", PREDICT, folder / "s.safetensors", rig, precision, ROUNDS, *photos.values()]
        found[f"surround predict, {precision}"] = python
    found |= {
        f"depth.py, {name}": [sys.executable, EXAMPLES / "depth.py", path, *told] for name, path in graphs.items()
    }
    if not missing_for_cpp():
        program = built_cpp(folder / "build")
        found |= {f"depth.cpp, {name}": [program, path, *told] for name, path in graphs.items()}
    return found


def test_bench_deploy_examples(tmp_path, capsys):
    programs = commands(tmp_path)
    turns: dict[str, list[list[float]]] = {name: [] for name in programs}
    for _ in range(TURNS):
        for name, command in programs.items():
            turns[name].append(measured(command))
    rows = []
    for name, found in turns.items():
        ready_s, ready_cpu_s, peak_mb, look_ms, look_cpu_s = (
            statistics.median(column) for column in zip(*found, strict=True)
        )
        cells = (
            f"{ready_s:.2f}",
            f"{ready_cpu_s:.2f}",
            f"{peak_mb:.0f}",
            f"{look_ms:.0f}",
            f"{1e3 * look_cpu_s / ROUNDS:.0f}",
        )
        rows.append((name, *cells))
    header = ("program", "start-up, s", "of CPU", "peak, MB", "look, ms", "of CPU")
    with capsys.disabled():
        threads = torch.get_num_threads()
        print(
            f"\nsix images of {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}, student at {SIZE[0]} x {SIZE[1]}, {threads} threads,"
        )
        print(
            f"median of {TURNS} turns of {ROUNDS} looks" + (f"; no C++: {missing_for_cpp()}" * bool(missing_for_cpp()))
        )
        print(markdown_table(Table("", "", header, tuple(rows))))
