"""Checkpoints: safetensors and plain data, no pickles; each is written as a whole or not at all."""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from data_cache.errors import SurroundError, SurroundWarning
from data_cache.files import PARTIAL, WriteError, replace_atomically
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.spec import TEACHER_FIELDS, BinSpec

FORMAT = "surround-student/1"
STATE_FORMAT = "surround-training-state/4"
HEADER = "surround"
CALIBRATION = "calibration"
"""An entry of a student's header that older checkpoints lack and older versions of this program do not read."""
SUFFIX = ".safetensors"


class CheckpointError(SurroundError):
    """A checkpoint cannot be read, written or used here."""


class DamagedCheckpointError(CheckpointError):
    """A file is truncated, damaged or not a checkpoint."""


@dataclass(frozen=True)
class Lineage:
    """Where a student comes from; stored in its checkpoint.

    Attributes:
        teacher, teacher_licence: name and licence of the teacher's weights.
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


@dataclass(frozen=True)
class Calibration:
    """The one number that makes a student's sigma right, and what it was found on (`surround calibrate`).

    Attributes:
        sigma_scale: factor on the standard deviation of log depth under the student's bins, above 0: with it, 68 % of
            the errors of log depth lie inside one sigma.
        dataset, split: where the frames come from.
        pixels: number of LiDAR returns.
    """

    sigma_scale: float
    dataset: str
    split: str
    pixels: int

    def __post_init__(self) -> None:
        if not 0 < self.sigma_scale < math.inf:
            raise ValueError(f"sigma_scale: expected a positive number, got {self.sigma_scale}")


@dataclass(frozen=True, eq=False)
class LoadedStudent:
    """A student in evaluation mode, its lineage, and its calibration; None for a student that has none."""

    student: Student
    lineage: Lineage
    calibration: Calibration | None = None


def save_student(path: Path, student: Student, lineage: Lineage) -> None:
    """Write weights and spec to one safetensors file; equal students give equal bytes.

    Raises:
        CheckpointError: if it cannot be written; the file at `path` stays unchanged.
    """
    header = {
        "format": FORMAT,
        "student": json.dumps(asdict(student.spec), sort_keys=True),
        "bins": json.dumps(asdict(student.bins), sort_keys=True),
        "lineage": json.dumps(asdict(lineage), sort_keys=True),
    }
    _save(path, student.state_dict(), header)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at a path: the file itself; of a folder, such as a repository of a model hub, the only one in it.

    Raises:
        CheckpointError: if a folder holds none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise CheckpointError(f"{path}: expected one checkpoint (*{SUFFIX}) in the folder, found {names}; name a file")
    return found[0]


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Keep a calibration in the header of a student's checkpoint; its weights stay, byte for byte.

    Raises:
        CheckpointError: if there is no student, or it cannot be written; the file stays unchanged.
    """
    tensors, header = _load(path, FORMAT)
    _save(path, tensors, header | {CALIBRATION: json.dumps(asdict(calibration), sort_keys=True)})


def load_student(
    path: Path, expected: StudentSpec | None = None, expected_bins: BinSpec | None = None
) -> LoadedStudent:
    """Rebuild a student in evaluation mode from its checkpoint alone.

    Args:
        path: file written by `save_student`.
        expected, expected_bins: architecture that the recipe asks for, None to accept any; settings of the bins that
            concern the teacher alone are not compared.

    Raises:
        CheckpointError: if it is missing, damaged, not a student, or has another architecture (each difference named).
    """
    try:
        tensors, header = _load(path, FORMAT)
    except DamagedCheckpointError as error:
        raise CheckpointError(f"{error}; train again or use another checkpoint") from error
    try:
        spec = StudentSpec(**_tuples(json.loads(header["student"])))
        bins = BinSpec(**_tuples(json.loads(header["bins"])))
        lineage = Lineage(**_tuples(json.loads(header["lineage"])))
        calibration = Calibration(**json.loads(header[CALIBRATION])) if CALIBRATION in header else None
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
                    "Set these values in the recipe, or with --set; or train another student: train-student --fresh.",
                ]
            )
        )
    student = Student(spec, bins)
    try:
        student.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit the architecture in its header: {error}") from error
    return LoadedStudent(student.eval(), lineage, calibration)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The state of an interrupted training.

    Attributes:
        tensors: every tensor that the next steps depend on.
        step: optimiser steps taken.
        best: best selection score so far, inf if there is none.
        measured: False if the selection score of this step is still to be measured.
    """

    tensors: dict[str, Tensor]
    step: int
    best: float
    measured: bool


def save_state(folder: Path, state: TrainingState, run: Mapping[str, Any], keep: int) -> None:
    """Write a training state to a file of its own in `folder`, then remove states that are too old.

    The schedule, the sample order and every random number are functions of (seed, step) and need not be stored.

    Args:
        folder: the folder with the states of one run.
        state: the state.
        run: settings that must be equal for a resumed run to be the same run; compared by `load_state`.
        keep: number of states kept up to this step, at least 1. States of later steps, which could not be read, are
            removed.

    Raises:
        CheckpointError: if it cannot be written; earlier states stay.
    """
    path = folder / f"{state.step:08d}{SUFFIX}"
    header = {
        "format": STATE_FORMAT,
        "step": str(state.step),
        "best": repr(state.best),
        "measured": json.dumps(state.measured),
        "run": json.dumps(run, sort_keys=True),
    }
    _save(path, state.tensors, header)
    kept = [other for other in saved_states(folder) if other.name <= path.name][:keep]
    for other in saved_states(folder):
        if other not in kept:
            other.unlink(missing_ok=True)


def clear_partials(folder: Path) -> None:
    """Remove the partial files of checkpoints and states that a killed training left in its folder."""
    for partial in folder.rglob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def saved_states(folder: Path) -> list[Path]:
    """Files of the states in `folder`, newest first."""
    return sorted(folder.glob(f"[0-9]*{SUFFIX}"), reverse=True)


def load_state(folder: Path, run: Mapping[str, Any]) -> TrainingState | None:
    """Load the newest readable state in `folder`, with a warning for each damaged newer one; None if there is no state.

    Raises:
        CheckpointError: if no state can be read, or it belongs to another run (each difference named).
    """
    states = saved_states(folder)
    for path in states:
        try:
            tensors, header = _load(path, STATE_FORMAT)
            found, step, best, measured = _header_values(path, header)
        except DamagedCheckpointError as error:
            if path == states[-1]:
                raise CheckpointError(f"{error}; no older state is left: start again with --fresh") from error
            warnings.warn(f"{error}; the state before it is used", SurroundWarning, stacklevel=2)
            continue
        lines = difference_lines(found, json.loads(json.dumps(run)), "state")
        if lines:
            raise CheckpointError(
                "\n".join(
                    [f"{path} belongs to another run:", *lines, "Restore these values, or start again with --fresh."]
                )
            )
        return TrainingState(tensors, step, best, measured)
    return None


def _header_values(path: Path, header: Mapping[str, str]) -> tuple[dict[str, Any], int, float, bool]:
    try:
        run, measured = json.loads(header["run"]), json.loads(header["measured"])
        return run, int(header["step"]), float(header["best"]), measured
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"{path}: its header cannot be read ({error!r})") from error


def difference_lines(found: Mapping[str, Any], expected: Mapping[str, Any], holder: str, prefix: str = "") -> list[str]:
    """One line for each leaf that differs between two trees of plain data."""
    lines = []
    for key in sorted({*found, *expected}):
        old, new = found.get(key), expected.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += difference_lines(old, new, holder, f"{prefix}{key}.")
        elif json.dumps(old) != json.dumps(new):
            lines.append(f"  {prefix}{key}: {holder} has {old!r}, recipe says {new!r}")
    return lines


def architecture(spec: StudentSpec | BinSpec) -> dict[str, Any]:
    """The fields of a spec that the student depends on."""
    return {key: value for key, value in asdict(spec).items() if key not in TEACHER_FIELDS}


def _save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    plain = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
    header = header | {"sha256": _sha256(plain)}
    try:
        # One metadata entry: safetensors writes several in an order that differs between processes.
        # As bytes: `save_file` uses a temporary file with a name of its own, which would stay after a kill.
        data = to_bytes(plain, metadata={HEADER: json.dumps(header)})
        replace_atomically(path, lambda partial: partial.write_bytes(data))
    except (WriteError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be written; the previous one is unchanged. Free some space if the disk is"
            f" full, and run the same command again: {error}"
        ) from error


def _load(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; run train-student first, or name another file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} is damaged or not a checkpoint ({error})") from error
    if header.get("format") != expected_format:
        raise CheckpointError(
            f"{path}: expected format {expected_format}, found {header.get('format')!r}; it is another kind of file or"
            " from another version: train again with --fresh"
        )
    if "sha256" in header and header["sha256"] != _sha256(tensors):  # older files carry none
        raise DamagedCheckpointError(f"{path} is damaged: its weights differ from their checksum")
    return tensors, header


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, value in sorted(tensors.items()):
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
