"""Checkpoints: safetensors and plain data, no pickles; each is replaced in one step or not at all."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data_cache.errors import SurroundError
from data_cache.files import WriteError, replace_atomically
from stages.bins import TEACHER_FIELDS, BinSpec
from stages.student.model import Student, StudentSpec

FORMAT = "surround-student/1"
STATE_FORMAT = "surround-training-state/2"
HEADER = "surround"
LEARNER = "learner."


class CheckpointError(SurroundError):
    """A checkpoint cannot be read, written or used here."""


@dataclass(frozen=True)
class Lineage:
    """Where a student comes from; travels inside its checkpoint.

    Attributes:
        teacher, teacher_licence: who taught it and under which licence.
        cache_id: identity hash of the cache it learnt from.
        dataset: source of the frames.
        depth_range_m: nearest and farthest LiDAR depth it was trained on.
        steps: optimiser steps taken.
    """

    teacher: str
    teacher_licence: str
    cache_id: str
    dataset: str
    depth_range_m: tuple[float, float]
    steps: int


@dataclass(frozen=True, eq=False)
class LoadedStudent:
    """A student ready for use, and where it comes from."""

    student: Student
    lineage: Lineage


def save_student(path: Path, student: Student, lineage: Lineage) -> None:
    """Write weights and spec to one safetensors file; equal students give equal bytes.

    Raises:
        CheckpointError: if it cannot be written; what was at `path` stays.
    """
    header = {
        "format": FORMAT,
        "student": json.dumps(asdict(student.spec), sort_keys=True),
        "bins": json.dumps(asdict(student.bins), sort_keys=True),
        "lineage": json.dumps(asdict(lineage), sort_keys=True),
    }
    _save(path, student.state_dict(), header)


def load_student(
    path: Path, expected: StudentSpec | None = None, expected_bins: BinSpec | None = None
) -> LoadedStudent:
    """Rebuild a student in evaluation mode from its checkpoint alone.

    Args:
        path: file written by `save_student`.
        expected, expected_bins: architecture that the recipe asks for, None to take what is there; what only
            the teacher's side of the bins depends on does not matter.

    Raises:
        CheckpointError: if it is missing, damaged, not a student, or of another architecture (each difference named).
    """
    tensors, header = _load(path, FORMAT)
    try:
        spec = StudentSpec(**_tuples(json.loads(header["student"])))
        bins = BinSpec(**_tuples(json.loads(header["bins"])))
        lineage = Lineage(**_tuples(json.loads(header["lineage"])))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: header cannot be read ({error}); it was written by another version") from error
    lines = []
    for found, asked in ((spec, expected), (bins, expected_bins)):
        if asked is not None:
            lines += difference_lines(architecture(found), architecture(asked), "checkpoint")
    if lines:
        raise CheckpointError(
            "\n".join(
                [
                    f"{path} holds another architecture:",
                    *lines,
                    "Restore these values in the recipe, or train again with --fresh.",
                ]
            )
        )
    student = Student(spec, bins)
    try:
        student.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit the architecture in its header: {error}") from error
    return LoadedStudent(student.eval(), lineage)


def save_state(
    path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, step: int, best: float, run: Mapping[str, Any]
) -> None:
    """Write all that training needs to go on: weights, optimiser, step. One file, so that nothing can disagree.

    The schedule, the sample order and every random number are functions of (seed, step) and need no storing.

    Args:
        path: where.
        learner, optimizer: their tensors are stored; the learner is the student and whatever else learns beside it.
        step: optimiser steps taken.
        best: best selection score so far, inf where there is none.
        run: what must be equal for a resumed run to be the same run; compared by `load_state`.

    Raises:
        CheckpointError: if it cannot be written; what was at `path` stays.
    """
    tensors = {f"{LEARNER}{name}": value for name, value in learner.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    header = {"format": STATE_FORMAT, "step": str(step), "best": repr(best), "run": json.dumps(run, sort_keys=True)}
    _save(path, tensors, header)


@dataclass(frozen=True)
class Progress:
    """How far an interrupted training had come."""

    step: int
    best: float


def load_state(path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, run: Mapping[str, Any]) -> Progress:
    """Put learner and optimiser back to where `save_state` left them.

    Raises:
        CheckpointError: if the file is damaged, or belongs to another run (each difference named).
    """
    tensors, header = _load(path, STATE_FORMAT)
    found = json.loads(header["run"])
    lines = difference_lines(found, json.loads(json.dumps(run)), "state")
    if lines:
        raise CheckpointError(
            "\n".join([f"{path} belongs to another run:", *lines, "Restore these, or start again with --fresh."])
        )
    try:
        learner.load_state_dict({k.removeprefix(LEARNER): v for k, v in tensors.items() if k.startswith(LEARNER)})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit the student: {error}; start again with --fresh") from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, slot = rest.partition(".")
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(int(header["step"]), float(header["best"]))


def difference_lines(found: Mapping[str, Any], expected: Mapping[str, Any], holder: str, prefix: str = "") -> list[str]:
    """One line per leaf that differs between two trees of plain data."""
    lines = []
    for key in sorted({*found, *expected}):
        old, new = found.get(key), expected.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += difference_lines(old, new, holder, f"{prefix}{key}.")
        elif json.dumps(old) != json.dumps(new):
            lines.append(f"  {prefix}{key}: {holder} has {old!r}, recipe says {new!r}")
    return lines


def architecture(spec: StudentSpec | BinSpec) -> dict[str, Any]:
    """What of a spec the student depends on."""
    return {key: value for key, value in asdict(spec).items() if key not in TEACHER_FIELDS}


def _save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    plain = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
    try:
        # One entry: safetensors writes several in an order that differs from process to process.
        replace_atomically(path, lambda partial: save_file(plain, partial, metadata={HEADER: json.dumps(header)}))
    except (WriteError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be written; the one before it is untouched, free some space if the disk is"
            f" full and run the same command: {error}"
        ) from error


def _load(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; run train-student first, or name the file of another")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint ({error}); train again or use another") from error
    if header.get("format") != expected_format:
        raise CheckpointError(f"{path}: expected format {expected_format}, found {header.get('format')!r}")
    return tensors, header


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
