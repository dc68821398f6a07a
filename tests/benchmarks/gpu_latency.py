"""How long teachers and students take for a rig of six: parts of `gpu.py`."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from benchmarks.gpu import MISSING, Found, NotInstalledError, Setting, attempt
from benchmarks.gpu_data import gpu_recipe, gpu_stage_one
from benchmarks.measuring import device_ms, noise_rig
from torch import nn

from stages.compute.devices import autocast, place, resolve_device, resolve_precision, synchronize
from stages.deploy.export import export_program, onnx_model
from stages.deploy.runtimes import deployed_rig, feeds
from stages.evaluation.latency import measure, rig_latency
from stages.inference.predict import predict_rig
from stages.student.fold import folded
from stages.student.model import Student
from stages.teacher.transformers_depth import TransformersTeacher

NAMES = {"mobilenet-v2": "student small", "resnet-18": "student base"}
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
WEIGHTS_TOO = "fp16 weights"
"""The student's weights in fp16, too; in `fp16` and `bf16` they are fp32 and autocast turns them over at each call."""
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {"cuda": ("CUDAExecutionProvider", TENSORRT), "cpu": ("CPUExecutionProvider",)}
Wrap = Callable[[nn.Module], Callable[..., object]]


def latency(setting: Setting) -> Iterator[Found]:
    """Eager, in every precision and layout; and as `surround eval` measures it, images on the host included."""
    for precision in ("fp32", "bf16", "fp16"):
        kinds = (precision, WEIGHTS_TOO) if precision == "fp16" else (precision,)
        for layout in LAYOUTS:
            yield from _rig_times(setting, precision, kinds, layout, layout, lambda model: model)
    for encoder in setting.sizes.encoders:
        yield from attempt(NAMES[encoder], partial(_as_eval_measures, setting, encoder))


def compiled(setting: Setting) -> Iterator[Found]:
    """By torch.compile and with CUDA graphs: launching many small kernels is a good part of an eager student."""
    # For a trial nothing but the tracing: a C++ compiler would take minutes.
    how = {"mode": "reduce-overhead"} if setting.device == "cuda" else {"backend": "aot_eager"}

    def wrap(model: nn.Module) -> Callable[..., object]:
        return torch.compile(model, dynamic=False, **how)

    yield from _rig_times(setting, "fp16", ("fp16",), "channels-last", "compiled", wrap)


def _rig_times(
    setting: Setting, precision: str, kinds: Sequence[str], layout: str, how: str, wrap: Wrap
) -> Iterator[Found]:
    """Teachers of a precision, then students of each kind of it, beside those teachers."""
    sizes, device = setting.sizes, resolve_device(setting.device)
    teacher_ms: dict[str, float] = {}

    def timed(call: Callable[[], object]) -> tuple[float, str]:
        begin = time.perf_counter()
        call()
        synchronize(device)
        first = f"first call {time.perf_counter() - begin:.3g} s"
        return device_ms(call, device, sizes.repeats), first

    def teacher(name: str, size: tuple[int, int]) -> Iterator[Found]:
        ms, first = timed(_teacher_call(_teacher(setting, size, precision), layout, wrap))
        teacher_ms[name] = ms
        yield Found(f"{name}, {precision}, {how}", ms, "ms", first)

    def student(encoder: str, kind: str) -> Iterator[Found]:
        ms, first = timed(_student_call(_student(setting, encoder), device, kind, layout, wrap))
        ratios = "".join(f"; {teacher_ms[name] / ms:.2f} times as fast as {name}" for name in teacher_ms)
        yield Found(f"{NAMES[encoder]}, {kind}, {how}", ms, "ms", first + ratios)

    for size in sizes.teachers:
        name = f"teacher {size[0]}x{size[1]}"
        yield from attempt(f"{name}, {precision}, {how}", partial(teacher, name, size))
    for encoder in sizes.encoders:
        for kind in kinds:
            yield from attempt(f"{NAMES[encoder]}, {kind}, {how}", partial(student, encoder, kind))


def _student(setting: Setting, encoder: str) -> Student:
    """With random weights, in evaluation mode."""
    recipe = gpu_recipe(setting, f"student.encoder={encoder}")
    torch.manual_seed(0)
    return Student(recipe.student, recipe.bins).eval()


def _teacher(setting: Setting, size: tuple[int, int], precision: str) -> TransformersTeacher:
    settings = (f"teacher_cache.input_size={list(size)}", f"teacher_cache.precision={precision}")
    teacher = gpu_stage_one(gpu_recipe(setting, *settings)).teacher
    assert isinstance(teacher, TransformersTeacher)
    return teacher


def _teacher_call(teacher: TransformersTeacher, layout: str, wrap: Wrap) -> Callable[[], object]:
    """The network alone, on six images that lie on the device."""
    model = teacher.model.to(memory_format=LAYOUTS[layout])
    pixels = torch.rand(6, 3, *teacher.input_size, device=teacher.device).to(model.dtype)
    pixels = pixels.contiguous(memory_format=LAYOUTS[layout])
    run = wrap(model)

    @torch.inference_mode()
    def call() -> object:
        return run(pixel_values=pixels, output_hidden_states=True)

    return call


def _student_call(
    student: Student, device: torch.device, precision: str, layout: str, wrap: Wrap
) -> Callable[[], object]:
    """The network alone, batch norms folded, on a rig that lies on the device."""
    dtype = torch.float16 if precision == WEIGHTS_TOO else torch.float32
    model = folded(student).to(device, dtype, memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    if layout == "contiguous":  # the student itself lays its images out channels-last
        for part in (model.encoder, model.detail):
            part.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    image = torch.rand(1, 6, 3, *student.spec.input_size, device=device, dtype=dtype)
    focal_px = torch.full((1, 6), student.spec.focal_px, device=device)
    there = torch.ones(1, 6, dtype=torch.bool, device=device)
    run = wrap(model)

    @torch.inference_mode()
    def call() -> object:
        with autocast(device, "fp32" if precision == WEIGHTS_TOO else precision):
            return run(image, focal_px, there)

    return call


def _as_eval_measures(setting: Setting, encoder: str) -> Iterator[Found]:
    device = resolve_device(setting.device)
    precision = resolve_precision("auto", device)
    student = folded(_student(setting, encoder))
    place(student, device)
    teacher = _teacher(setting, setting.sizes.teachers[0], precision)
    images = torch.zeros(6, *teacher.input_size, 3, dtype=torch.uint8).random_(0, 256)
    times = [measure(lambda: teacher(images), device, warmup=0, repeats=1).p50_ms for _ in range(6)]
    found = rig_latency(student, noise_rig(setting.sizes.student), device, precision, teacher, times)
    note = f"p95 {found.student_p95_ms_per_rig:.3g}; {found.speedup:.2f} times as fast as the teacher, p50 "
    note += f"{found.teacher_ms_per_rig:.3g}, p95 {found.teacher_p95_ms_per_rig:.3g}; from images on the host"
    yield Found(f"{NAMES[encoder]}, {precision}, as eval measures it", found.student_ms_per_rig, "ms", note)


def onnx(setting: Setting) -> Iterator[Found]:
    """The exported student in each GPU provider of onnxruntime (in its CPU provider for a trial)."""
    try:
        import onnxruntime
    except ImportError as error:
        raise NotInstalledError(f"{error}; pip install onnxruntime-gpu onnx onnxscript") from error
    wanted = PROVIDERS[setting.device]
    missing = [provider for provider in wanted if provider not in onnxruntime.get_available_providers()]
    for provider in missing:
        yield Found(provider, note="not in this onnxruntime; pip install onnxruntime-gpu, and tensorrt", state=MISSING)
    if len(missing) == len(wanted):
        return
    student = _student(setting, setting.sizes.encoders[0])
    try:
        model = onnx_model(export_program(student, 6, batch=1), {})
    except ImportError as error:
        raise NotInstalledError(f"{error}; pip install onnx onnxscript") from error
    for provider in wanted:
        if provider not in missing:
            for fp16 in (False, True) if provider == TENSORRT else (False,):
                yield from attempt(provider, partial(_provider_times, setting, student, model, provider, fp16))


def _provider_times(setting: Setting, student: Student, model: bytes, provider: str, fp16: bool) -> Iterator[Found]:
    import onnxruntime

    device = resolve_device(setting.device)
    options = {"trt_fp16_enable": True} if fp16 else {}
    begin = time.perf_counter()
    # What TensorRT leaves over goes to CUDA, and the sizes of tensors are computed on the CPU.
    others = [other for other in onnxruntime.get_available_providers() if other not in (provider, TENSORRT)]
    session = onnxruntime.InferenceSession(model, providers=[(provider, options), *others])
    if session.get_providers()[0] != provider:  # listed, but its libraries could not be loaded
        raise NotInstalledError(f"onnxruntime took {session.get_providers()} instead; install the libraries of its log")
    rig = noise_rig(setting.sizes.student)
    inputs = feeds(deployed_rig(rig.image, rig.intrinsics, rig.view_valid))
    bound = session.io_binding()
    for name, value in inputs.items():
        bound.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, setting.device, 0))
    (output,) = session.get_outputs()
    bound.bind_output(output.name, setting.device)
    session.run_with_iobinding(bound)
    built_s = time.perf_counter() - begin

    def call() -> None:
        session.run_with_iobinding(bound)
        bound.synchronize_outputs()

    seconds = []
    for _ in range(2 * setting.sizes.repeats):
        clock = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - clock)
    depth_m = bound.copy_outputs_to_cpu()[0][0]
    expected_m = predict_rig(student, rig, torch.device("cpu"), "fp32")
    difference = float(np.abs(depth_m / expected_m - 1).max())
    note = f"on {device}, first call {built_s:.3g} s; largest relative difference to PyTorch fp32 {difference:.1e}"
    ms = 1e3 * float(np.median(seconds[setting.sizes.repeats :]))
    yield Found(f"{NAMES[student.spec.encoder]}, {provider}, {'fp16' if fp16 else 'fp32'}", ms, "ms", note)
