"""What a GPU computes is what a CPU computes. `make gpu` runs these, also on a CPU, to try their lines."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.gpu import DEVICE_OF_TESTS
from support.fakes import TEACHER_SIZE, FakeSource, save_tiny_teacher
from support.teacher_caches import write_teacher_cache

from data_cache.dataset import CachedFrames, CachedRigs, collate
from data_cache.shards.reader import CacheReader
from stages.compute.devices import autocast
from stages.compute.preemption import Preempted
from stages.losses.spec import LossSpec
from stages.student.checkpoint import load_state, load_student
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.binning import AffineBinning
from stages.targets.spec import BinSpec
from stages.teacher.transformers_depth import TransformersTeacher
from stages.train_student import train_student
from stages.training.preflight import STATES, TrainingJob, check_job, open_training
from stages.training.spec import TrainStudentSpec
from stages.training.step import Setting, Training, on_device, term_values

CPU, DEVICE = torch.device("cpu"), torch.device(os.environ.get(DEVICE_OF_TESTS, "cuda"))
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]
EXACT = 1e-4
"""Relative error that two orders of summing in fp32 may make: 6e-8 a product, of which the square root of 1e4 in a sum,
30 sums deep, makes 3e-5. TF32 rounds 5e-4 away in each product and would show."""
STUDENT = StudentSpec(encoder="resnet-18", input_size=(64, 96), near_m=0.5, far_m=80.0, focal_px=48.0, pretrained=False)
BINS = BinSpec(prob_stride=4)
RANGE_M = (0.1, 80.0)
SPEC = TrainStudentSpec(
    steps=6, batch_rigs=2, warmup_steps=2, checkpoint_every=2, precision="fp32", workers=0, learning_rate=1e-4
)


@pytest.fixture(autouse=True)
def fp32_is_fp32():
    """Convolutions round to TF32 unless they are told not to; products of matrices do not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    write_teacher_cache(root, FakeSource(4, missing={"d/1": (2,)}), save_tiny_teacher(root.parent / "tiny"))
    return root


@pytest.fixture(scope="module")
def rigs(cache) -> CachedRigs:
    reader = CacheReader(cache)
    frames = CachedFrames(reader, reader.frames.train, neighbours=True)
    return collate([frames[0], frames[1]])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.cpu().double(), expected.cpu().double()
    return float((found - expected).norm() / expected.norm())


def teacher(folder: Path, device: torch.device, precision: str, size: tuple[int, int]) -> TransformersTeacher:
    return TransformersTeacher(
        folder, name="t", licence="none", weights_sha256="0", input_size=size, device=device, precision=precision
    )


def student() -> Student:
    torch.manual_seed(0)
    return Student(replace(STUDENT, input_size=(32, 64)), BINS)


def training(device: torch.device, precision: str = "fp32") -> Training:
    spec = replace(SPEC, precision=precision)
    made = Training(student(), 0, Setting(AffineBinning(), LossSpec(), RANGE_M, precision), spec, device)
    made.learner.train()
    return made


def job(cache: Path, folder: Path, **changes: object) -> TrainingJob:
    reader = CacheReader(cache)
    spec = replace(SPEC, **changes)
    return TrainingJob(reader, student(), reader.frames.train, (), folder, spec, LossSpec(), RANGE_M, DEVICE)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", EXACT), ("fp16", 8 * 2**-10), ("bf16", 8 * 2**-7)])
def test_a_teacher_says_what_it_says_on_a_cpu(tmp_path, precision, bound):
    """The bounds of 16 bits are eight of their steps: each of some tens of layers rounds by half a step at random."""
    folder = save_tiny_teacher(tmp_path / "tiny")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *TEACHER_SIZE, 3), dtype=np.uint8))
    expected = teacher(folder, CPU, "fp32", TEACHER_SIZE)(images)
    found = teacher(folder, DEVICE, precision, TEACHER_SIZE)(images)
    assert found.prediction.device.type == DEVICE.type
    assert found.prediction.dtype == found.features.dtype == torch.float32
    assert relative_error(found.prediction, expected.prediction) < bound
    assert relative_error(found.features, expected.features) < bound


def test_the_real_teacher_says_what_it_says_on_a_cpu():
    weights = Path(os.environ.get("SURROUND_WEIGHTS", ""), "depth-anything-v2-small")
    if not (weights / "model.safetensors").is_file():
        pytest.skip("weights: set SURROUND_WEIGHTS to their folder")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 98, 126, 3), dtype=np.uint8))
    expected, found = (teacher(weights, device, "fp32", (98, 126))(images) for device in (CPU, DEVICE))
    assert relative_error(found.prediction, expected.prediction) < EXACT
    assert relative_error(found.features, expected.features) < EXACT


@pytest.mark.parametrize(("precision", "bound"), [("fp32", EXACT), ("fp16", 8 * 2**-10), ("bf16", 8 * 2**-7)])
def test_a_student_sees_what_it_sees_on_a_cpu(precision, bound):
    torch.manual_seed(0)
    model = Student(STUDENT, BINS).eval()
    torch.nn.init.normal_(model.centers.widths[-1].weight, std=0.1)  # so that the centres depend on the image, too
    image, focal_px = torch.rand(1, 6, 3, 64, 96), torch.linspace(30, 60, 6)[None]
    there = torch.tensor([[True, True, False, True, True, True]])
    with torch.inference_mode():
        expected = model(image, focal_px, there)
        model.to(DEVICE, memory_format=torch.channels_last)
        with autocast(DEVICE, precision):
            found = model(image.to(DEVICE), focal_px.to(DEVICE), there.to(DEVICE))
    for name in ("depth_m", "centers_m", "tokens"):
        assert relative_error(getattr(found, name), getattr(expected, name)) < bound, name


def test_loss_terms_and_gradients_are_those_of_a_cpu(rigs):
    terms, gradients = [], []
    for device in (CPU, DEVICE):
        made = training(device)
        terms.append(term_values(made.step([on_device(device, rigs)], 0)))
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in made.learner.parameters() if p.grad is not None]))
    assert terms[1] == pytest.approx(terms[0], rel=1e-3)
    assert set(terms[0]) >= {"supervised", "kl", "relation", "completion", "photometric"}
    assert (
        relative_error(gradients[1], gradients[0]) < 1e-2
    )  # rectifiers that are all but 0 may open on one device only


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bits_learn_what_fp32_learns(rigs, precision):
    losses = {}
    for how in ("fp32", precision):
        made = training(DEVICE, how)
        losses[how] = [term_values(made.step([on_device(DEVICE, rigs)], step))["supervised"] for step in range(4)]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.1)


def test_a_loss_scale_that_is_too_high_is_halved_and_no_weight_changes(rigs):
    made = training(DEVICE, "fp16")
    made.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**40)  # far above what fp16 holds
    before = [p.detach().clone() for p in made.learner.parameters()]
    made.step([on_device(DEVICE, rigs)], 0)
    assert made.scaler.get_scale() == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, made.learner.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stopped_training_goes_on_from_what_it_saved(cache, tmp_path, precision):
    answers = iter([False] * 3 + [True])
    with pytest.raises(Preempted, match="step 3 of 6"):
        train_student(job(cache, tmp_path, precision=precision), should_stop=lambda: next(answers))
    again = job(cache, tmp_path, precision=precision)
    training, saved = open_training(again), load_state(tmp_path / STATES, check_job(again).run)
    assert saved is not None
    assert saved.step == 3
    training.restore(saved.tensors)
    restored = training.tensors()
    assert restored.keys() == saved.tensors.keys()
    assert all(torch.equal(restored[name].cpu(), saved.tensors[name].cpu()) for name in restored)
    assert {p.device.type for p in training.learner.parameters()} == {DEVICE.type}
    report = train_student(job(cache, tmp_path, precision=precision))
    assert (report.steps_skipped, report.steps_done) == (3, 3)


def test_a_student_trained_on_a_gpu_is_used_on_a_cpu(cache, tmp_path, rigs):
    trained = job(cache, tmp_path, workers=1)  # whose frames come by way of pinned memory
    train_student(trained)
    there = trained.student.eval()
    here = load_student(tmp_path / "last.safetensors").student.eval()
    inputs = rigs.image.float() / 255, rigs.focal_px, rigs.view_valid
    with torch.inference_mode():
        found, expected = here(*inputs), there(*(value.to(DEVICE) for value in inputs))
    assert relative_error(found.depth_m, expected.depth_m) < EXACT
