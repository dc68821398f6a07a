"""Comparison of exported graphs with the student in PyTorch: depth on real frames, accuracy, and time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32

from data_cache.frames.rig import Frame
from data_cache.frames.views import load_images, rig_views
from stages.compute.devices import place, resolve_precision
from stages.compute.openvino_cpu import openvino_precisions
from stages.compute.resize import resize_views
from stages.deploy.export import SIGMA, ExportError
from stages.deploy.quantize import INT8_TARGETS
from stages.deploy.runtimes import (
    CPU,
    DeployedRigs,
    Runner,
    batches,
    cameras,
    deployed_rig,
    feeds,
    onnxruntime_runner,
    openvino_runner,
    torch_runner,
)
from stages.evaluation.latency import Timing, measure_in_turns
from stages.evaluation.regions import truth_at
from stages.evaluation.scores import ScoreTable
from stages.student.fold import folded
from stages.student.model import Student

GRAPH_RUNTIMES = ("onnxruntime", "OpenVINO")
CORE_EACH = ", a core each"
"""After the name of a runtime: it ran a graph of one camera, on one thread for each camera."""
INT8, INT8_IN_FLOAT = "int8", "int8 in float"
"""How an int8 file is run: in integers, or rounded to them but computed in float, which is the same on every CPU."""
EVERYWHERE = "everywhere"
FP32_LIMIT = 1e-4
"""Limit on the relative difference of an fp32 graph from PyTorch at any pixel; the largest seen was 3e-6."""
INT8_LIMIT = 0.03
"""Limit on the mean relative difference of an int8 graph from PyTorch; trained students had up to 0.016."""
SIGMA_LIMIT = 0.01
"""Limit on the relative difference of sigma at any pixel: in PyTorch it is a difference of two moments."""


@dataclass(frozen=True, eq=False)
class MeasuredRig:
    """A frame for the comparison.

    Attributes:
        inputs: the rig as input of a deployed student, a batch of one.
        truth_m: metres, 0 = none: dense truth if the source has it, else LiDAR returns.
        dense: whether `truth_m` is dense truth.
    """

    inputs: DeployedRigs
    truth_m: Float32[np.ndarray, "V H W"]
    dense: bool


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to run the student.

    Attributes:
        runtime, precision, file_bytes: runtime, number format, and size of its file.
        run: runs it.
        right_on: the machines on which the file is right.
        timed: False for a way of running it that nobody would deploy.
    """

    runtime: str
    precision: str
    run: Runner
    file_bytes: int
    right_on: str = EVERYWHERE
    timed: bool = True


@dataclass(frozen=True)
class Parity:
    """How a contender compares with the student in PyTorch, fp32.

    Attributes:
        runtime, precision, file_bytes, right_on: those of the contender.
        ms_per_rig: wall time per rig; None if it was not timed.
        max_relative, mean_relative: |depth - reference| / reference over all pixels of valid cameras.
        abs_rel: AbsRel against truth at the student's input size, a mean per image, then per camera, then over cameras;
            None if no frame has truth.
    """

    runtime: str
    precision: str
    file_bytes: int
    right_on: str
    ms_per_rig: Timing | None
    max_relative: float
    mean_relative: float
    abs_rel: float | None


def measured_rig(frame: Frame, size: tuple[int, int]) -> MeasuredRig:
    """Read a frame at the student's input (H, W) `size`; raises FrameError."""
    sweep = frame.load_sweep() if frame.load_sweep is not None else None
    rig = rig_views(frame, resize_views(load_images(frame, size), size), sweep, size)
    truth_m = rig.lidar_depth_m
    if frame.load_truth_m is not None:
        truth_m = np.zeros_like(truth_m)
        for i, load in enumerate(frame.load_truth_m):
            if rig.view_valid[i]:
                truth_m[i] = truth_at(load(), size)
    return MeasuredRig(deployed_rig(rig.image, rig.intrinsics, rig.view_valid), truth_m, frame.load_truth_m is not None)


def compare(
    reference: Runner,
    contenders: Sequence[Contender],
    rigs: Sequence[MeasuredRig],
    *,
    batch: int,
    range_m: tuple[float, float],
    rounds: int,
) -> tuple[Parity, ...]:
    """Run every contender on the same frames, then time those to be timed in turns.

    Args:
        reference: the student in PyTorch, fp32.
        contenders: the ways to run it that are compared.
        rigs: at least one frame.
        batch: rigs per call.
        range_m: truth counts strictly between these depths; predictions are clipped to them.
        rounds: timed calls per contender.
    """
    inputs = list(batches([entry.inputs for entry in rigs], batch))
    there = np.concatenate([entry.inputs.focal_px > 0 for entry in rigs])
    expected_m = _depths_m(reference, inputs, len(rigs))[there]
    timed = [one for one in contenders if one.timed]
    timings = measure_in_turns([partial(one.run, inputs[0]) for one in timed], CPU, rounds=rounds)
    per_rig = {one: Timing(t.p50_ms / batch, t.p95_ms / batch) for one, t in zip(timed, timings, strict=True)}
    found = []
    for one in contenders:
        depth_m = _depths_m(one.run, inputs, len(rigs))
        relative = np.abs(depth_m[there] - expected_m) / expected_m
        found.append(
            Parity(
                one.runtime,
                one.precision,
                one.file_bytes,
                one.right_on,
                per_rig.get(one),
                float(relative.max()),
                float(relative.mean()),
                _abs_rel(depth_m, rigs, range_m),
            )
        )
    return tuple(found)


def torch_contenders(student: Student, file_bytes: int) -> Iterator[Contender]:
    """A student in PyTorch, folded: in fp32 and, if another precision is faster on this CPU, in that one, too."""
    ready = folded(student)
    place(ready, CPU)
    for precision in dict.fromkeys(("fp32", resolve_precision("auto", CPU))):
        yield Contender("PyTorch", precision, torch_runner(ready, precision), file_bytes)


def graph_contenders(model: bytes, *, one_camera: bool = False) -> Iterator[Contender]:
    """An fp32 ONNX file, of a rig or of one camera, in every runtime and every precision."""
    onnxruntime, openvino = _graph_runtimes(one_camera)
    yield Contender(onnxruntime, "fp32", onnxruntime_runner(model, one_camera=one_camera), len(model))
    for precision in openvino_precisions():
        run = openvino_runner(model, precision, one_camera=one_camera)
        yield Contender(openvino, precision, run, len(model))


def int8_contenders(model: bytes, target: str, *, one_camera: bool = False) -> Iterator[Contender]:
    """An int8 file in float, and in integers in every runtime where a CPU is what it is for.

    Args:
        model: file of `stages.deploy.quantize.quantized`.
        target: a key of INT8_TARGETS, that it was made for.
        one_camera: it is a graph of one camera.
    """
    onnxruntime, openvino = _graph_runtimes(one_camera)
    made = partial(Contender, file_bytes=len(model), right_on=INT8_TARGETS[target].right_on)
    in_float = onnxruntime_runner(model, one_camera=one_camera, as_written=True)
    yield made(onnxruntime, INT8_IN_FLOAT, in_float, timed=False)
    if not INT8_TARGETS[target].on_cpu:
        return
    yield made(onnxruntime, INT8, onnxruntime_runner(model, one_camera=one_camera))
    for rest in openvino_precisions():
        precision = INT8 if rest == "fp32" else f"{INT8} and {rest}"
        yield made(openvino, precision, openvino_runner(model, rest, one_camera=one_camera))


def _graph_runtimes(one_camera: bool) -> list[str]:
    """The names of GRAPH_RUNTIMES as a table shows them."""
    return [name + CORE_EACH * one_camera for name in GRAPH_RUNTIMES]


def require_parity(found: Sequence[Parity]) -> None:
    """Check the graphs among the results; one that a runtime itself rounds to 16 bits must only be finite.

    Raises:
        ExportError: if an fp32 or int8 graph is too far from PyTorch, or a graph gives depth that is not finite.
    """
    for one in found:
        if one.runtime.removesuffix(CORE_EACH) not in GRAPH_RUNTIMES:
            continue
        where = f"{one.precision} graph in {one.runtime}"
        if not np.isfinite(one.max_relative):
            raise ExportError(f"{where}: depth is not finite; nothing was written")
        if one.precision == "fp32" and one.max_relative > FP32_LIMIT:
            raise ExportError(
                f"{where}: expected depths within a relative difference of {FP32_LIMIT:.0e} of PyTorch's, found"
                f" {one.max_relative:.1e} at most, {one.mean_relative:.1e} on average; nothing was written. Try the"
                " versions of torch, onnx and onnxruntime in constraints.txt"
            )
        if one.precision in (INT8, INT8_IN_FLOAT) and one.mean_relative > INT8_LIMIT:
            raise ExportError(
                f"{where}: expected depths within a mean relative difference of {INT8_LIMIT} of PyTorch's, found"
                f" {one.mean_relative:.3f}; nothing was written. Calibrate on a cache of frames like those of the"
                " vehicle, or export without --int8"
            )


def require_sigma(model: bytes, student: Student, scale: float, rigs: DeployedRigs, *, one_camera: bool) -> None:
    """Check the second output of an fp32 graph, in onnxruntime, against the student in PyTorch.

    Args:
        model: an ONNX file with sigma.
        student: what was exported.
        scale: factor on its sigma.
        rigs: a batch of one.
        one_camera: it is a graph of one camera.

    Raises:
        ExportError: if a pixel differs by more than SIGMA_LIMIT of it.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    asked = cameras(rigs) if one_camera else [rigs]
    found = np.concatenate([session.run([SIGMA], feeds(part))[0] for part in asked], axis=1)
    valid = torch.from_numpy(rigs.focal_px) > 0
    with torch.inference_mode():
        focal_px = torch.where(valid, torch.from_numpy(rigs.focal_px), 1.0)
        said = student(torch.from_numpy(rigs.image).float() / 255, focal_px, valid, sigma=True).sigma
    there = valid.numpy()
    expected = said.numpy()[there] * scale
    largest = float((np.abs(found[there] - expected) / expected).max())
    if not largest <= SIGMA_LIMIT or found[~there].any():
        raise ExportError(
            f"sigma in onnxruntime: expected at most a relative difference of {SIGMA_LIMIT} from PyTorch's and 0 for"
            f" missing cameras, found {largest:.3f}; nothing was written. Export without --confidence"
        )


def _depths_m(run: Runner, inputs: Sequence[DeployedRigs], count: int) -> Float32[np.ndarray, "N V H W"]:
    return np.concatenate([run(batch) for batch in inputs])[:count]


def _abs_rel(
    depth_m: Float32[np.ndarray, "N V H W"], rigs: Sequence[MeasuredRig], range_m: tuple[float, float]
) -> float | None:
    table = ScoreTable(range_m)
    for found_m, entry in zip(depth_m, rigs, strict=True):
        for i, truth_m in enumerate(entry.truth_m):
            valid = (truth_m > range_m[0]) & (truth_m < range_m[1])
            if valid.any():
                table.add(str(i), [found_m[i][valid].clip(*range_m)], [truth_m[valid]])
    return table.scores().mean.abs_rel if table.images else None
