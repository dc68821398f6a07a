import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from support.fakes import CPU, NAMES, NATIVE_SIZE, STUDENT_SIZE, FakeSource
from support.students import student

from data_cache.frames.geometry import sparse_depth
from stages.compute.resize import depth_at
from stages.evaluate import evaluate
from stages.evaluation.predictions import (
    PNG_FAR_M,
    PredictionError,
    open_predictions,
    prediction_file,
    read_prediction,
    save_prediction,
)
from stages.evaluation.protocols import PROTOCOLS
from stages.evaluation.spec import EvaluateSpec
from stages.inference import predict

SOURCE = FakeSource(3, missing={"d/1": (1,)})
IDS = SOURCE.drives["d"]


def spec(**changes) -> EvaluateSpec:
    return EvaluateSpec(**{"latency": False, "teacher": False, "pictures": 1, **changes})


def measure(what, wish: EvaluateSpec, save_to: Path | None = None):
    return evaluate(SOURCE, IDS, "d", what, None, wish, device=CPU, precision="fp32", save_to=save_to)


@pytest.fixture(scope="module")
def said() -> torch.Tensor:
    """What the network says of three frames, 2 to 60 m."""
    return torch.rand(3, 3, *STUDENT_SIZE, generator=torch.Generator().manual_seed(5)) * 58 + 2


@pytest.fixture(scope="module")
def model():
    return student()


def test_a_png_holds_256ths_of_a_metre_as_kitti_has_it(tmp_path):
    """0 is none; 1 m is 256; 0.001 m would round to none and becomes the smallest; 300 m is beyond the largest."""
    depth_m = np.array([[0, 1, 0.001], [2.5, 255, 300]], np.float32)
    save_prediction(tmp_path / "a.png", depth_m)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), [[0, 256, 1], [640, 65280, 65535]])
    np.testing.assert_array_equal(
        read_prediction(tmp_path / "a.png", (2, 3)), np.float32([[0, 1, 1 / 256], [2.5, 255, PNG_FAR_M]])
    )
    assert round(PNG_FAR_M, 3) == 255.996


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(1 / 128, 255, width=32)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
def test_what_is_saved_comes_back(tmp_path, depth_m):
    save_prediction(tmp_path / "a.npy", depth_m)
    np.testing.assert_array_equal(read_prediction(tmp_path / "a.npy", (3, 5)), depth_m)
    save_prediction(tmp_path / "a.png", depth_m)
    np.testing.assert_allclose(read_prediction(tmp_path / "a.png", (3, 5)), depth_m, atol=1 / 512)


def test_files_are_named_after_camera_and_frame():
    assert prediction_file(Path("p"), "CAMERA_01", "000187/156", ".png") == Path("p/CAMERA_01/000187/156.png")
    assert prediction_file(Path("p"), "a/b", "x y%/..", ".npy") == Path("p/a%2Fb/x%20y%25/...npy")


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_name_leads_out_of_the_folder_or_to_the_file_of_another_frame(camera, first, second):
    root = Path("/p")
    files = [prediction_file(root, camera, frame_id, ".png") for frame_id in (first, second)]
    assert all(".." not in file.parts and file.is_relative_to(root) and len(file.parts) > 3 for file in files)
    assert (files[0] == files[1]) == (first == second)


@pytest.mark.parametrize("kind", ["png16", "npy"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_saved_folder_measured_again_gives_the_same_numbers(name, kind, said, model, tmp_path, monkeypatch):
    frames = iter(said)
    monkeypatch.setattr(predict, "forward_rig", lambda *_: next(frames)[None])
    wish = spec(protocol=name, save_predictions=kind)
    first = measure(model, wish, tmp_path)
    suffix = {"png16": ".png", "npy": ".npy"}[kind]
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        f"{camera}/{frame_id}{suffix}" for camera in NAMES for frame_id in IDS if (camera, frame_id) != ("right", "d/1")
    }
    again = measure(open_predictions(tmp_path, SOURCE, IDS, STUDENT_SIZE), wish, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    if kind == "npy":
        assert again.report == first.report
        np.testing.assert_array_equal(again.pictures[0].student_depth_m, first.pictures[0].student_depth_m)
    for alignment in ("metric", "median_scaled", "affine_invariant"):
        one, other = (getattr(evaluation.report.student, alignment).mean for evaluation in (first, again))
        # 1/512 m on the nearest truth of half a metre
        assert vars(other) == pytest.approx(vars(one), abs=4e-3), alignment
    assert again.report.consistency.overlap_abs_rel == pytest.approx(first.report.consistency.overlap_abs_rel, abs=1e-3)


def test_predictions_at_the_size_of_the_image_are_measured_as_they_are(said, model, tmp_path, monkeypatch):
    """What a protocol at native size makes of network maps, saved after that, is measured the same."""
    frames = iter(said)
    monkeypatch.setattr(predict, "forward_rig", lambda *_: next(frames)[None])
    first = measure(model, spec())
    for maps, frame_id in zip(said, IDS, strict=True):
        native = torch.nn.functional.interpolate(maps[None], NATIVE_SIZE, mode="bilinear")[0].numpy()
        for camera, depth_m in zip(NAMES, native, strict=True):
            save_prediction(prediction_file(tmp_path, camera, frame_id, ".npy"), depth_m)
    again = measure(open_predictions(tmp_path, SOURCE, IDS, STUDENT_SIZE), spec())
    assert again.report.student == first.report.student


@pytest.fixture
def folder(tmp_path) -> Path:
    """Predictions of 10 m for every image."""
    for frame_id in IDS:
        for camera in NAMES:
            save_prediction(prediction_file(tmp_path, camera, frame_id, ".png"), np.full(STUDENT_SIZE, 10, np.float32))
    return tmp_path


def test_missing_files_are_one_error_that_counts_them(folder):
    open_predictions(folder, SOURCE, IDS, STUDENT_SIZE)
    (folder / "front/d/1.png").unlink()
    (folder / "right/d/1.png").unlink()  # a camera that the frame lacks
    (folder / "left/d/2.png").unlink()
    with pytest.raises(PredictionError, match=r"2 of 8 predictions are missing in .*; the first is .*front/d/1.png"):
        open_predictions(folder, SOURCE, IDS, STUDENT_SIZE)
    with pytest.raises(PredictionError, match="expected a folder of predictions, found nothing at .*; it is RUN/eval"):
        open_predictions(folder / "none", SOURCE, IDS, STUDENT_SIZE)


def test_an_image_with_two_predictions_is_refused(folder):
    save_prediction(folder / "left/d/2.npy", np.full(STUDENT_SIZE, 10, np.float32))
    with pytest.raises(PredictionError, match=r"one prediction of left in frame d/2, found .*2.png and .*2.npy"):
        measure(open_predictions(folder, SOURCE, IDS, STUDENT_SIZE), spec())


TEN = np.full(STUDENT_SIZE, 10, np.float32)


@pytest.mark.parametrize(
    ("suffix", "values", "message"),
    [
        (".npy", np.where(np.eye(32, 64, dtype=bool), np.nan, TEN), "found 32 pixels that are not"),
        (".npy", np.where(np.eye(32, 64, 60, dtype=bool), -1, TEN), "found 4 pixels that are not"),
        (".npy", TEN[:, :32], r"expected a depth map of 32 x 64 or 48 x 80 \(h x w\), found 32 x 32"),
        (".npy", TEN.astype(int), r"expected a 2-D array of floats, metres, found int64"),
        (".npy", TEN[None], r"expected a 2-D array of floats, metres, found float32 \(1, 32, 64\)"),
        (".npy", np.array([{}]), "cannot be read as a depth map"),
        (".npy", b"nothing", "cannot be read as a depth map"),
        (".png", b"nothing", "cannot be read as a depth map"),
        (".png", np.full(STUDENT_SIZE, 10, np.uint8), "expected a 16-bit grey PNG .* found PNG, mode L"),
        (".png", np.zeros((*STUDENT_SIZE, 3), np.uint8), "expected a 16-bit grey PNG .* found PNG, mode RGB"),
        (".png", np.zeros((32, 32), np.uint16), "found 32 x 32"),
        (
            ".png",
            np.zeros(STUDENT_SIZE, np.uint16),
            r"prediction of left in frame d/2: no depth at (\d+) of \1 measured",
        ),
    ],
)
def test_what_is_no_depth_map_is_refused_by_name(folder, suffix, values, message):
    path = folder / "left/d/2.png"
    path.unlink()
    path = path.with_suffix(suffix)
    if isinstance(values, bytes):
        path.write_bytes(values)
    elif suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    with pytest.raises(PredictionError, match=message) as error:
        measure(open_predictions(folder, SOURCE, IDS, STUDENT_SIZE), spec())
    assert "left" in str(error.value)


def test_a_hole_where_nothing_is_measured_costs_nothing(folder):
    """The sky of a prediction may be none: no return is there."""
    views = [(SOURCE.frame(frame_id).views[0], SOURCE.frame(frame_id).load_sweep()) for frame_id in IDS]
    measured = np.any([sparse_depth(view, sweep, NATIVE_SIZE) > 0 for view, sweep in views], axis=0)
    holes = (np.where(np.arange(TEN.size).reshape(TEN.shape) == n, 0, TEN) for n in range(TEN.size))
    depth_m = next(hole for hole in holes if not (measured & (depth_at(hole, NATIVE_SIZE) == 0)).any())
    expected = measure(open_predictions(folder, SOURCE, IDS, STUDENT_SIZE), spec())
    for frame_id in IDS:
        save_prediction(prediction_file(folder, "front", frame_id, ".png"), depth_m)
    found = measure(open_predictions(folder, SOURCE, IDS, STUDENT_SIZE), spec())
    assert found.report.student == expected.report.student
    assert (found.pictures[0].student_depth_m[0] == 0).sum() == 1


def npy_header(shape) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A 16-bit grey PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("bomb.png", png_header(30_000, 30_000), "exceeds limit|expected a depth map of 3 x 5 .* found 30000 x 30000"),
        ("large.png", png_header(12_000, 12_000), "expected a depth map of 3 x 5 .* found 12000 x 12000"),
        ("short.png", png_header(5, 3), "cannot be read as a depth map"),
        ("large.npy", npy_header((300_000, 300_000)), "expected a depth map of 3 x 5 .* found 300000 x 300000"),
        ("vast.npy", npy_header((10**30,)), r"2-D array of floats, metres, found float32 \(10{30},\)"),
        ("vast2.npy", npy_header((10**30, 5)), "expected a depth map of 3 x 5"),
        ("negative.npy", npy_header((-3, 5)), "found -3 x 5"),
        ("short.npy", npy_header((3, 5)), "cannot be read as a depth map: expected 60 bytes of data, found 0"),
        ("damaged.npy", npy_header((3, 5)).replace(b"{", b"("), "cannot be read as a depth map"),
        ("zip.npy", b"PK\3\4" + bytes(99), "cannot be read as a depth map: expected an npy file"),
    ],
)
def test_a_header_that_lies_is_one_error_and_no_memory(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    tracemalloc.start()
    with warnings.catch_warnings(), pytest.raises(PredictionError, match=message):
        warnings.simplefilter("ignore")  # Pillow warns of images that are merely large
        read_prediction(tmp_path / name, (3, 5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7  # the first image loads decoders


def test_a_depth_that_float32_cannot_hold_is_refused_without_a_warning(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 5), 1e300))
    with warnings.catch_warnings(), pytest.raises(PredictionError, match="found 15 pixels that are not"):
        warnings.simplefilter("error")
        read_prediction(tmp_path / "a.npy", (3, 5))
