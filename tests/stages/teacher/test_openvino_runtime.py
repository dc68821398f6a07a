"""A teacher in OpenVINO says what it says in torch, and runs where the rule says."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.fakes import TEACHER_SIZE, random_images, tiny_teacher
from support.tiny_teachers import save_tiny

from data_cache.errors import SettingError
from stages.compute import openvino_cpu
from stages.compute.openvino_cpu import openvino_precisions
from stages.teacher import openvino_depth, runtime
from stages.teacher.base import Teacher, TeacherOutput
from stages.teacher.load import LoadedTeacher, load_teacher
from stages.teacher.openvino_depth import LIMITS, OpenVinoTeacher, check_image, relative_difference
from stages.teacher.runtime import resolve_runtime
from stages.teacher.transformers_depth import TransformersTeacher

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(
    not INSTALLED, reason="openvino is not installed; pip install 'surround-distill[openvino]'"
)
needs_bf16 = pytest.mark.skipif(
    not INSTALLED or "bf16" not in openvino_precisions(), reason="OpenVINO has no bf16 on this CPU"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY_LIMIT = 2e-5
"""2^-24 times the root of some 60 steps of four layers, times the root of the 1,400 products of the longest sum."""


def load(folder: Path, *, runtime: str = "openvino", precision: str = "fp32", size=TEACHER_SIZE) -> LoadedTeacher:
    return load_teacher(
        folder,
        name="tiny",
        licence="none",
        weights_sha256="0",
        input_size=size,
        device=CPU,
        precision=precision,
        runtime=runtime,
    )


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> OpenVinoTeacher:
    if not INSTALLED:
        pytest.skip("openvino is not installed; pip install 'surround-distill[openvino]'")
    loaded = load(teacher_folder, runtime="auto")
    assert isinstance(loaded, OpenVinoTeacher)
    return loaded


@pytest.mark.parametrize(
    ("asked", "device", "precision", "family", "installed", "resolved"),
    [
        ("auto", CPU, "fp32", "depth_anything", True, "openvino"),
        ("auto", CPU, "bf16", "depth_anything", True, "openvino"),
        ("auto", CPU, "fp16", "depth_anything", True, "torch"),
        ("auto", CPU, "fp32", "zoedepth", True, "torch"),
        ("auto", CPU, "fp32", "marigold", True, "torch"),
        ("auto", CPU, "fp32", "depth_anything", False, "torch"),
        ("auto", CUDA, "fp32", "depth_anything", True, "torch"),
        ("torch", CPU, "fp32", "depth_anything", True, "torch"),
        ("openvino", CPU, "bf16", "depth_anything", True, "openvino"),
        ("openvino", CUDA, "fp32", "depth_anything", True, 'the device is cuda; set teacher_cache.device = "cpu"'),
        ("openvino", CPU, "fp16", "depth_anything", True, "in fp32 or bf16, not in fp16"),
        ("openvino", CPU, "fp32", "zoedepth", True, "of the type depth_anything, found zoedepth"),
        ("openvino", CPU, "fp32", "depth_anything", False, r"pip install 'surround-distill\[openvino\]'"),
        ("tensorrt", CPU, "fp32", "depth_anything", True, "expected one of auto, torch, openvino, got 'tensorrt'"),
    ],
)
def test_the_rule(monkeypatch, asked, device, precision, family, installed, resolved):
    """A runtime, or what the one error says."""
    if installed:
        monkeypatch.setattr(runtime, "openvino_precisions", lambda: ("fp32", "bf16"))
    else:
        _forget_core(monkeypatch)
        monkeypatch.setitem(sys.modules, "openvino", None)  # what Python does for a module that is not there
    if resolved in ("torch", "openvino"):
        assert resolve_runtime(asked, device, precision, family) == resolved
    else:
        with pytest.raises(SettingError, match=resolved):
            resolve_runtime(asked, device, precision, family)


def _forget_core(monkeypatch) -> None:
    monkeypatch.setattr(openvino_cpu, "openvino_core", openvino_cpu.openvino_core.__wrapped__)


def test_an_openvino_that_is_broken_is_told_and_auto_does_without(monkeypatch):
    _forget_core(monkeypatch)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())  # no Core, as where its library does not load
    assert resolve_runtime("auto", CPU, "fp32", "depth_anything") == "torch"
    with pytest.raises(SettingError, match=r"OpenVINO cannot be used \(AttributeError.*install it again"):
        resolve_runtime("openvino", CPU, "fp32", "depth_anything")


def test_bf16_is_not_taken_where_openvino_would_compute_in_fp32(monkeypatch):
    monkeypatch.setattr(runtime, "openvino_precisions", lambda: ("fp32",))
    assert resolve_runtime("auto", CPU, "bf16", "depth_anything") == "torch"
    assert resolve_runtime("auto", CPU, "fp32", "depth_anything") == "openvino"
    with pytest.raises(SettingError, match='no bf16 on this CPU; set teacher_cache.precision = "fp32", or set'):
        resolve_runtime("openvino", CPU, "bf16", "depth_anything")


def test_both_runtimes_say_the_same_of_each_image(teacher, teacher_folder):
    """In fp32 also where the CPU has bf16, which OpenVINO takes if it is not told; and in the order of the images."""
    images = random_images(3)
    ours, theirs = teacher(images), tiny_teacher(teacher_folder)(images)
    assert isinstance(teacher, Teacher)
    assert (teacher.runtime, teacher.precision, teacher.space) == ("openvino", "fp32", "disparity")
    assert ours.prediction.shape == theirs.prediction.shape == (3, *TEACHER_SIZE)
    assert ours.features.shape == theirs.features.shape == (3, 16, 3, 5)
    assert ours.prediction.dtype == ours.features.dtype == torch.float32
    for i in range(3):
        assert relative_difference(_of_image(ours, i), _of_image(theirs, i)) < TINY_LIMIT
        assert relative_difference(_of_image(ours, i), _of_image(theirs, (i + 1) % 3)) > 100 * TINY_LIMIT


def _of_image(output: TeacherOutput, i: int) -> TeacherOutput:
    return TeacherOutput(output.prediction[i : i + 1], output.features[i : i + 1])


def test_an_image_is_seen_the_same_in_any_batch_on_any_number_of_threads_and_in_any_lane(teacher, teacher_folder):
    images = random_images(4)
    whole = teacher(images)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        other = load(teacher_folder)
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as lanes:
        alone = list(lanes.map(teacher, images.split(1)))
    for seen in (other(images), *map(_joined, [alone])):
        assert torch.equal(seen.prediction, whole.prediction)
        assert torch.equal(seen.features, whole.features)


def _joined(outputs: list[TeacherOutput]) -> TeacherOutput:
    return TeacherOutput(torch.cat([o.prediction for o in outputs]), torch.cat([o.features for o in outputs]))


@needs_bf16
def test_bf16_is_as_near_as_its_roundings_allow(teacher, teacher_folder):
    images = random_images(2)
    rough, exact = load(teacher_folder, precision="bf16")(images), teacher(images)
    assert 100 * TINY_LIMIT < relative_difference(rough, exact) < LIMITS["bf16"]


def test_the_difference_by_hand():
    """|(3, 4) - (3, 5)| / |(3, 5)| = 1 / sqrt 34 of the predictions; of the features 2 / 10, the larger one."""
    ours = TeacherOutput(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[[6.0, 10.0]]]]))
    theirs = TeacherOutput(torch.tensor([[[3.0, 5.0]]]), torch.tensor([[[[6.0, 8.0]]]]))
    assert relative_difference(ours, theirs) == pytest.approx(2 / 10)
    theirs = TeacherOutput(theirs.prediction, ours.features)
    assert relative_difference(ours, theirs) == pytest.approx(34**-0.5)
    nothing = TeacherOutput(torch.zeros(1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert relative_difference(nothing, nothing) == 0
    assert math.isnan(relative_difference(TeacherOutput(ours.prediction, ours.features * math.nan), theirs))


def test_the_image_that_runtimes_are_compared_on_has_edges_and_ramps():
    image = check_image((42, 70))[0].int()
    assert image[29, 3].tolist() == [14, 1, 200]
    assert image[29, 30].tolist() == [14, 10, 40]


def test_images_of_another_size_are_refused(teacher):
    with pytest.raises(ValueError, match=r"tiny takes \[42, 70\] images, got \[42, 84\]"):
        teacher(random_images(1, (42, 84)))


@needs_openvino
def test_a_graph_that_says_something_else_is_refused(teacher_folder, tmp_path, monkeypatch):
    other = tiny_teacher(save_tiny(tmp_path, "depth anything metric"))
    compiled = openvino_depth._compile
    monkeypatch.setattr(openvino_depth, "_compile", lambda teacher, *how: compiled(other, *how))
    with pytest.raises(
        SettingError, match=r"differs from PyTorch by .*, at most 0.0001 is allowed; set .* = \"torch\""
    ):
        load(teacher_folder)


@needs_openvino
def test_what_is_not_finite_is_refused(teacher_folder, monkeypatch):
    monkeypatch.setattr(openvino_depth, "relative_difference", lambda ours, theirs: float("nan"))
    with pytest.raises(SettingError, match="differs from PyTorch by nan"):
        load(teacher_folder)


@needs_openvino
def test_a_model_that_cannot_be_converted_is_one_error_with_a_remedy(teacher_folder, monkeypatch):
    def look(self, pixels):
        raise RuntimeError("no such operation\nand a long trace")

    monkeypatch.setattr(TransformersTeacher, "look", look)
    with pytest.raises(SettingError, match=r'cannot convert tiny: no such operation; set .*runtime = "torch"$'):
        load(teacher_folder)


def test_other_families_run_in_torch(tmp_path):
    folder = save_tiny(tmp_path, "zoedepth of two heads")
    assert isinstance(load(folder, runtime="auto", size=(64, 96)), TransformersTeacher)
    with pytest.raises(SettingError, match="found zoedepth"):
        load(folder, size=(64, 96))


def test_a_folder_that_holds_nothing_says_so_whatever_the_runtime(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps([]))
    with pytest.raises(SettingError, match="holds no depth model that transformers can load"):
        load(tmp_path, runtime="auto")


@needs_openvino
def test_nobody_is_told_that_a_model_was_converted(teacher_folder, monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry", reason="this OpenVINO reports nothing")

    def report(*_: object, **__: object) -> None:
        raise AssertionError("OpenVINO reports to its makers")

    monkeypatch.setattr(telemetry.Telemetry, "__init__", report)
    monkeypatch.setattr(telemetry.Telemetry, "send_event", report)
    assert load(teacher_folder).runtime == "openvino"


@needs_openvino
def test_the_real_teacher_says_the_same_in_both_runtimes():
    folder = os.environ.get("SURROUND_WEIGHTS")
    if not folder or not (Path(folder) / "depth-anything-v2-small" / "model.safetensors").is_file():
        pytest.skip("the real teacher: SURROUND_WEIGHTS names no folder that holds depth-anything-v2-small")
    size = (84, 140)
    ours, theirs = (
        load(Path(folder) / "depth-anything-v2-small", runtime=name, size=size) for name in runtime.RUNTIMES[:2]
    )
    assert (ours.runtime, theirs.runtime) == ("openvino", "torch")
    images = torch.cat([check_image(size), random_images(1, size)])
    assert relative_difference(ours(images), theirs(images)) < LIMITS["fp32"]


@needs_openvino
def test_a_teacher_given_up_in_another_thread_leaves_signals_working(teacher_folder):
    """In a process of its own: OpenVINO would end it without a word at the next signal, see `openvino_core`."""
    script = f"""
import faulthandler, os, signal, threading
from pathlib import Path
import torch
from stages.teacher.load import load_teacher
faulthandler.enable()  # with a stack for handlers, as in every test process
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
held = [load_teacher(Path({str(teacher_folder)!r}), name="tiny", licence="none", weights_sha256="0",
    input_size={TEACHER_SIZE}, device=torch.device("cpu"), precision="fp32", runtime="openvino")]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
print(*heard)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "SIGTERM\n"), ended.stderr
