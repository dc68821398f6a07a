"""All that has to be run on a CUDA GPU once, in one call of at most eight minutes and without network: `make gpu`.

    python tests/benchmarks/gpu.py [--device cuda] [--run FOLDER] [--json FILE]

Any Python that has the dependencies will do; where pytest or the packages for ONNX are missing, a row says so. The
teacher's weights come from the folder in SURROUND_WEIGHTS. Each part runs in a process of its own: what it has found is
kept when it fails, crashes, or does not end in time, and the others go on. They stand in `gpu_data.py`,
`gpu_latency.py` and `gpu_stages.py`.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATHS = (str(ROOT), str(ROOT / "tests"))
OK, FAILED, MISSING = "ok", "FAILED", "not installed"
DEVICE_OF_TESTS = "SURROUND_CUDA_TESTS"
"""Names the device that tests/stages/test_cuda.py runs on, `cuda` where it is not set."""


class NotInstalledError(Exception):
    """An optional package is not there; the text says how to get it. That is a row, and no failure."""


@dataclass(frozen=True)
class Found:
    """One row of the table.

    Attributes:
        what: was measured or tried.
        value, unit: None and empty where there is no number.
        note: what belongs to the number, or why there is none.
        state: OK, FAILED or MISSING.
    """

    what: str
    value: float | None = None
    unit: str = ""
    note: str = ""
    state: str = OK


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        rendered: frames of the synthetic drive.
        copies: of each of them in the data set that the parts read.
        image_scale: of its camera images, 384 x 640 pixels at 1.
        student, teachers: (H, W) of their inputs; stage one and training use the first of the teachers.
        encoders: of the students that are timed; the first one is trained.
        batches, stage_one_batches: images per forward pass of the teacher alone, and those of them for stage one, too.
        readers: threads that read frames.
        repeats: of what is timed call by call, and rounds of what takes longer.
        steps, batch_rigs, workers: of a training.
        product_side: of the two matrices whose product says how fast the device is.
        patience: by how much the time budgets of the parts are multiplied; a CPU may be slow, or shared.
    """

    rendered: int
    copies: int
    image_scale: float
    student: tuple[int, int]
    teachers: tuple[tuple[int, int], ...]
    encoders: tuple[str, ...]
    batches: tuple[int, ...]
    stage_one_batches: tuple[int, ...]
    readers: tuple[int, ...]
    repeats: int
    rounds: int
    steps: int
    batch_rigs: int
    workers: int
    product_side: int
    patience: int


FULL = Sizes(
    rendered=4,
    copies=12,
    image_scale=2.5,
    student=(384, 640),
    teachers=((392, 644), (518, 854)),
    encoders=("mobilenet-v2", "resnet-18"),
    batches=(6, 12, 24, 48),
    stage_one_batches=(12, 48),
    readers=(2, 4, 8),
    repeats=20,
    rounds=5,
    steps=24,
    batch_rigs=4,
    workers=4,
    product_side=4096,
    patience=1,
)
TRIAL = Sizes(
    rendered=2,
    copies=1,
    image_scale=1.25,
    student=(32, 64),
    teachers=((56, 84), (70, 98)),
    encoders=("mobilenet-v2",),
    batches=(6,),
    stage_one_batches=(6,),
    readers=(1, 2),
    repeats=1,
    rounds=1,
    steps=6,
    batch_rigs=2,
    workers=1,
    product_side=128,
    patience=3,
)


@dataclass(frozen=True)
class Setting:
    """What every part is told: `cuda` or `cpu`, and the folder for its files."""

    device: str
    folder: Path

    @property
    def sizes(self) -> Sizes:
        """Of the device: those of a CPU are only for trying every line."""
        return TRIAL if self.device == "cpu" else FULL

    @property
    def scratch(self) -> Path:
        """What is removed at the end."""
        return self.folder / "scratch"


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: in the table.
        function: module:name of a generator that takes a Setting and yields Found.
        budget_s: it is killed at the sum of the budgets of the parts up to itself, so that what others leave over is
            its own.
    """

    name: str
    function: str
    budget_s: float


PARTS = (
    Part("frames", "benchmarks.gpu_data:frames", 45),
    Part("tests", "benchmarks.gpu_data:tests", 50),
    Part("latency", "benchmarks.gpu_latency:latency", 45),
    Part("stage one", "benchmarks.gpu_stages:stage_one", 65),
    Part("training", "benchmarks.gpu_stages:training", 50),
    Part("resume", "benchmarks.gpu_stages:resume", 65),
    Part("torchrun", "benchmarks.gpu_stages:torchrun", 35),
    Part("onnx", "benchmarks.gpu_latency:onnx", 40),
    Part("compile", "benchmarks.gpu_latency:compiled", 80),
)
"""Later ones read what `frames` has made; the one that needs longest is last."""


def attempt(what: str, measure: Callable[[], Iterator[Found]]) -> Iterator[Found]:
    """The rows of a measurement; one more in place of the rest if it fails."""
    try:
        yield from measure()
    except NotInstalledError as error:
        yield Found(what, note=str(error), state=MISSING)
    except Exception as error:
        traceback.print_exc()  # into the log of the part
        yield Found(what, note=_one_line(f"{type(error).__name__}: {error}"), state=FAILED)


def run_parts(parts: Sequence[Part], setting: Setting, say: Callable[[str], object]) -> Iterator[tuple[Part, Found]]:
    """Run parts one after the other, each in a process group that has ended when the next one begins."""
    begin, until_s = time.monotonic(), 0.0
    for part in parts:
        until_s += part.budget_s * setting.sizes.patience
        began = time.monotonic()
        say(part.name)
        for found in _run_part(part, setting, begin + until_s - began):
            yield part, found
        yield part, Found("time in all", time.monotonic() - began, "s")


def _run_part(part: Part, setting: Setting, limit_s: float) -> Iterator[Found]:
    stem = part.name.replace(" ", "-")
    rows, log = setting.folder / f"{stem}.jsonl", setting.folder / f"{stem}.log"
    rows.write_text("")
    # Nothing may wait for a network that is not there; weights are looked for on this machine alone.
    paths = [*PATHS, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths), "SURROUND_QUIET": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", setting.device, "--run", str(setting.folder)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--part", part.function, "--rows", str(rows)],
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    yield from (Found(**json.loads(line)) for line in rows.read_text().splitlines())
    if code is None:
        yield Found("the rest", note=f"did not end within {limit_s:.0f} s, see {log}", state=FAILED)
    elif code != 0:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
        yield Found("the rest", note=_one_line(f"{how}, see {log}: {last}"), state=FAILED)


def _part_process(function: str, setting: Setting, rows: Path) -> None:
    """What such a process does: a line of JSON for each row, at once."""
    module, _, name = function.partition(":")
    with rows.open("a") as stream:
        for found in attempt("all of it", lambda: (yield from getattr(importlib.import_module(module), name)(setting))):
            stream.write(json.dumps(asdict(found)) + "\n")
            stream.flush()


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def table(rows: Sequence[tuple[Part, Found]]) -> str:
    """Rows in Markdown."""
    lines = ["| part | what | | | |", "| --- | --- | ---: | --- | --- |"]
    for part, found in rows:
        value = found.state if found.value is None else f"{found.value:.4g}"
        lines.append(f"| {part.name} | {found.what} | {value} | {found.unit} | {found.note} |")
    return "\n".join(lines)


def refusal(device: str) -> str:
    """Why this cannot be run with this Python on this device, with the remedy; empty if it can."""
    try:
        import torch
    except ImportError as error:
        return f"{sys.executable}: {error}; name a Python that has torch and the dependencies: make gpu PYTHON=..."
    if device == "cuda" and not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no CUDA GPU; take a machine with one and a CUDA build of torch. To try"
            " every line in small sizes, whose figures mean nothing: make gpu DEVICE=cpu"
        )
    return ""


def machine(device: str) -> dict[str, object]:
    """What the figures were measured on."""
    import torch

    from pipeline.recipe.provenance import surroundings

    found: dict[str, object] = {**surroundings(), "device": device, "threads": torch.get_num_threads()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "gpu_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        }
    return found


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """The command; 0 if nothing failed, 1 if something did, 2 if it cannot be run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--run", type=Path, default=Path("runs/gpu"), help="folder for logs and the JSON")
    parser.add_argument("--json", type=Path, help="file to write; gpu.json in the run folder without it")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # these two are for the processes that it starts
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    setting = Setting(options.device, options.run.absolute())
    if options.part:
        _part_process(options.part, setting, options.rows)
        return 0
    if why := refusal(options.device):
        print(f"Error: {why}", file=sys.stderr)
        return 2
    from data_cache.files import write_atomically
    from pipeline.report.results_file import json_text

    shutil.rmtree(setting.scratch, ignore_errors=True)
    setting.scratch.mkdir(parents=True)
    path = (options.json or setting.folder / "gpu.json").absolute()
    rows: list[tuple[Part, Found]] = []
    total_s = setting.sizes.patience * sum(part.budget_s for part in parts)
    head = {"machine": machine(options.device), "sizes": asdict(setting.sizes)}
    print(f"{len(parts)} parts, {total_s / 60:.0f} minutes at most; logs in {setting.folder}", file=sys.stderr)
    try:
        for part, found in run_parts(parts, setting, lambda name: print(f"  {name}", file=sys.stderr, flush=True)):
            rows.append((part, found))
            # After each row: what is known stays if this process is killed.
            write_atomically(path, json_text({**head, "rows": [{"part": p.name, **asdict(f)} for p, f in rows]}))
    finally:
        shutil.rmtree(setting.scratch, ignore_errors=True)
    print(table(rows))
    failed = [found for _, found in rows if found.state == FAILED]
    if options.device == "cpu":
        print("These are figures of tiny sizes on a CPU: they show that every line runs, and nothing else.")
    print(f"{path}: {len(rows)} rows, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    # Under the name that the parts import it by: there is one NotInstalledError then.
    sys.path[:0] = PATHS
    from benchmarks.gpu import main as run

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the part under way
    sys.exit(run())
