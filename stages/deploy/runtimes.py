"""Runtimes of a deployed student: PyTorch, onnxruntime and OpenVINO, all on the CPU with as many threads as torch.

A graph of a rig is run with all threads in each layer. A graph of one camera is run camera by camera, as many at a time
as there are threads: no thread waits for another one after each layer, and what a layer says stays in the core's cache.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from stages.compute.devices import autocast
from stages.compute.openvino_cpu import INFERENCE_PRECISION, openvino_core
from stages.deploy.export import FOCAL, IMAGE
from stages.student.model import Student

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class DeployedRigs:
    """Inputs of a deployed student; see `stages.deploy.export.MEANINGS`."""

    image: UInt8[np.ndarray, "B V 3 H W"]
    focal_px: Float32[np.ndarray, "B V"]


Runner = Callable[[DeployedRigs], Float32[np.ndarray, "B V H W"]]


def deployed_rig(
    image: UInt8[np.ndarray, "V H W 3"], intrinsics: Float32[np.ndarray, "V 3 3"], view_valid: Bool[np.ndarray, " V"]
) -> DeployedRigs:
    """Convert one rig at the student's input size, as frames and caches hold it, to the input of a deployed student."""
    focal_px = np.where(view_valid, intrinsics[:, 0, 0], 0).astype(np.float32)
    return DeployedRigs(np.ascontiguousarray(image.transpose(0, 3, 1, 2))[None], focal_px[None])


def batches(rigs: Sequence[DeployedRigs], batch: int) -> Iterator[DeployedRigs]:
    """All rigs in batches of this size; the last batch is filled up with the first rigs."""
    for first in range(0, len(rigs), batch):
        group = [rigs[(first + i) % len(rigs)] for i in range(batch)]
        yield DeployedRigs(
            np.concatenate([rig.image for rig in group]), np.concatenate([rig.focal_px for rig in group])
        )


def cameras(rigs: DeployedRigs) -> Iterator[DeployedRigs]:
    """Each camera of the rigs, in ring order, as input of a graph of one camera."""
    for i in range(rigs.image.shape[1]):
        yield DeployedRigs(*(np.ascontiguousarray(value[:, i : i + 1]) for value in (rigs.image, rigs.focal_px)))


def feeds(rigs: DeployedRigs) -> dict[str, object]:
    """The inputs by their names in the graph."""
    return {IMAGE: rigs.image, FOCAL: rigs.focal_px}


def torch_runner(student: Student, precision: str) -> Runner:
    """The student itself, as `surround eval` runs it; missing cameras get depth 0."""

    def run(rigs: DeployedRigs) -> Float32[np.ndarray, "B V H W"]:
        image, focal_px = torch.from_numpy(rigs.image), torch.from_numpy(rigs.focal_px)
        valid = focal_px > 0
        with torch.inference_mode(), autocast(CPU, precision):
            out = student(image.float().div_(255), torch.where(valid, focal_px, 1.0), valid)
        depth_m: np.ndarray = torch.where(valid[..., None, None], out.depth_m.float(), 0.0).numpy()
        return depth_m

    return run


def onnxruntime_runner(model: bytes, *, one_camera: bool = False, as_written: bool = False) -> Runner:
    """An ONNX file in onnxruntime's own CPU kernels.

    Args:
        model: the file.
        one_camera: it is a graph of one camera.
        as_written: fuse nothing. The convolutions of an int8 file are then computed in float, between QuantizeLinear
            and DequantizeLinear, and say the same on every CPU up to rounding; otherwise in integers.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    threads = torch.get_num_threads()
    options.intra_op_num_threads = 1 if one_camera else threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(rigs: DeployedRigs) -> Float32[np.ndarray, "B V H W"]:
        depth_m: np.ndarray = session.run(None, feeds(rigs))[0]
        return depth_m

    if not one_camera:
        return run
    pool = ThreadPoolExecutor(threads)
    return lambda rigs: np.concatenate([*pool.map(run, cameras(rigs))], axis=1)


def openvino_runner(model: bytes, precision: str, *, one_camera: bool = False) -> Runner:
    """An ONNX file in OpenVINO.

    Args:
        model: the file.
        precision: what its float operations are computed in, fp32 or bf16.
        one_camera: it is a graph of one camera.
    """
    import openvino

    core = openvino_core()
    threads = torch.get_num_threads()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[precision]}
    settings |= {"NUM_STREAMS": threads} if one_camera else {"PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)

    def run(rigs: DeployedRigs) -> Float32[np.ndarray, "B V H W"]:
        depth_m: np.ndarray = compiled(feeds(rigs))[0]
        return depth_m

    if not one_camera:
        return run
    queue = openvino.AsyncInferQueue(compiled, threads)

    def run_cameras(rigs: DeployedRigs) -> Float32[np.ndarray, "B V H W"]:
        B, V, _, H, W = rigs.image.shape
        depth_m = np.empty((B, V, H, W), np.float32)

        def keep(request: Any, i: int) -> None:
            depth_m[:, i : i + 1] = request.get_output_tensor(0).data

        queue.set_callback(keep)
        for i, camera in enumerate(cameras(rigs)):
            queue.start_async(feeds(camera), i)
        queue.wait_all()
        return depth_m

    return run_cameras
