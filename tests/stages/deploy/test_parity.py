"""Comparison of ways to run a student, and what is refused."""

import numpy as np
import pytest

from stages.deploy.export import ExportError
from stages.deploy.parity import (
    EVERYWHERE,
    Contender,
    MeasuredRig,
    Parity,
    compare,
    graph_contenders,
    int8_contenders,
    require_parity,
)
from stages.deploy.quantize import quantized
from stages.deploy.runtimes import DeployedRigs, cameras
from stages.evaluation.latency import Timing


def constant(value: float):
    """Says that everything is so many metres away, except one pixel of the last camera of the first rig."""

    def run(inputs: DeployedRigs) -> np.ndarray:
        depth_m = np.full((len(inputs.image), 2, 1, 4), 10.0, np.float32)
        depth_m[inputs.focal_px == 0] = 0
        depth_m[inputs.image[:, :, 0, :, :] == 7] = value
        return depth_m

    return run


def test_differences_and_errors_by_hand():
    """15 m for 10 m at one of 20 pixels that are there, in the second of three rigs, two of them at a time.

    Truth: 12 m at the pixel that is 15 (25 % off) and at its neighbour (10 m, 1/6 off); nothing elsewhere but 100 m,
    out of range. Camera 1 has one image with an error of (1/4 + 1/6) / 2; in PyTorch 1/6.
    """
    images = np.zeros((3, 1, 2, 3, 1, 4), np.uint8)
    images[1, 0, 1, 0, 0, 2] = 7
    focal_px = np.array([[[1, 1]], [[1, 1]], [[0, 1]]], np.float32)
    truth_m = np.zeros((3, 2, 1, 4), np.float32)
    truth_m[1, 1, 0, 2:] = 12
    truth_m[0, 0] = 100
    rigs = [MeasuredRig(DeployedRigs(i, f), t, dense=False) for i, f, t in zip(images, focal_px, truth_m, strict=True)]
    same, other = compare(
        constant(10.0),
        [
            Contender("a", "fp32", constant(10.0), 5, timed=False),
            Contender("b", "int8", constant(15.0), 6, "any CPU"),
        ],
        rigs,
        batch=2,
        range_m=(0.1, 80.0),
        rounds=1,
    )
    assert (same.runtime, same.precision, same.file_bytes, same.right_on) == ("a", "fp32", 5, "everywhere")
    assert (same.max_relative, same.mean_relative) == (0, 0)
    assert same.abs_rel == pytest.approx(1 / 6)
    assert (other.max_relative, other.mean_relative) == pytest.approx((0.5, 0.5 / 20))
    assert other.abs_rel == pytest.approx((1 / 4 + 1 / 6) / 2)
    assert (same.ms_per_rig, other.right_on) == (None, "any CPU")
    assert 0 < other.ms_per_rig.p50_ms <= other.ms_per_rig.p95_ms


def found(precision: str, largest: float, mean: float, runtime: str = "onnxruntime") -> Parity:
    return Parity(runtime, precision, 1, EVERYWHERE, Timing(1.0, 1.0), largest, mean, 0.1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            found("fp32", 2e-4, 1e-6),
            "fp32 graph in onnxruntime: expected depths within .* 1e-04 .* found 2.0e-04 at most",
        ),
        (found("int8", 0.1, 0.031), "int8 graph in onnxruntime: expected depths within .* 0.03 .* found 0.031"),
        (found("int8 in float", 0.1, 0.031), "int8 in float graph in onnxruntime: .* found 0.031"),
        (found("int8", float("nan"), float("nan")), "int8 graph in onnxruntime: depth is not finite"),
        (found("fp32", 2e-4, 1e-6, "OpenVINO, a core each"), "fp32 graph in OpenVINO, a core each: expected depths"),
    ],
)
def test_a_graph_that_says_something_else_is_refused(entry, message):
    fine = [
        found("fp32", 9e-5, 1e-6),
        found("int8", 0.9, 0.029),
        found("bf16", 0.5, 0.2),
        found("fp32", 1.0, 1.0, "PyTorch"),
        found("fp32", 9e-5, 1e-6, "OpenVINO, a core each"),
    ]
    require_parity(fine)
    with pytest.raises(ExportError, match=message):
        require_parity([*fine, entry])


def test_ways_to_run_a_graph_of_one_camera_say_that_they_are(lone_model, rigs):
    small = quantized(lone_model, cameras(rigs), "cpu")
    ways = [*graph_contenders(lone_model, one_camera=True), *int8_contenders(small, "cpu", one_camera=True)]
    assert {way.runtime for way in ways} == {"onnxruntime, a core each", "OpenVINO, a core each"}
    assert {"fp32", "int8", "int8 in float"} <= {way.precision for way in ways}
    assert {way.run(rigs).shape for way in ways} == {(3, 3, 32, 64)}
