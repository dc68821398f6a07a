"""A Depth Anything teacher whose forward pass OpenVINO computes on the CPU."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data_cache.errors import SettingError
from stages.compute.openvino_cpu import INFERENCE_PRECISION, openvino_core
from stages.compute.quiet_transformers import quiet_transformers
from stages.targets.space import Space
from stages.teacher.base import TeacherOutput
from stages.teacher.transformers_depth import TransformersTeacher

LIMITS = {"fp32": 1e-4, "bf16": 0.1}
"""Largest relative difference to torch in fp32, by precision, see `relative_difference`.

Roundings of relative size u in n steps one after the other add up to about u sqrt(n). A model of 24 layers takes some
300 steps: in bf16, u = 2^-8, that is 0.07; in fp32, u = 2^-24, it is 1e-6, times the root of the 1,000 products that a
step sums up in another order, 3e-5. Seen with Depth Anything V2 Small: 3e-6, and 0.022; torch's own bf16 is 0.030 away.
"""
_REMEDY = 'set teacher_cache.runtime = "torch"'


class OpenVinoTeacher:
    """A teacher that torch has loaded, computed by OpenVINO, an image at a time on one thread.

    As many images as torch has threads are seen side by side, whoever asks: what is said of an image depends neither on
    the others of its batch nor on the number of threads.
    """

    runtime = "openvino"
    attention = "openvino"
    device = torch.device("cpu")

    def __init__(self, teacher: TransformersTeacher, precision: str):
        """Convert a teacher in fp32, and compare both on one image; the teacher need not be kept.

        Raises:
            SettingError: if OpenVINO cannot convert it, or does not say what torch says.
        """
        self.name, self.licence, self.weights_sha256 = teacher.name, teacher.licence, teacher.weights_sha256
        self.input_size, self.precision, self.preprocessing = teacher.input_size, precision, teacher.preprocessing
        self.space: Space = teacher.space
        self._to_pixels = teacher.to_pixels
        threads = torch.get_num_threads()
        self._compiled = _compile(teacher, precision, threads)
        self._lookers = ThreadPoolExecutor(threads, "openvino")
        self._own = threading.local()
        image = check_image(self.input_size)
        difference = relative_difference(self(image), teacher(image))
        if not difference <= LIMITS[precision]:  # NaN neither
            raise SettingError(
                f"{self.name} in OpenVINO ({precision}) differs from PyTorch by {difference:.1e}, at most"
                f" {LIMITS[precision]:g} is allowed; {_REMEDY}"
            )

    def __call__(self, images: UInt8[Tensor, "N H W 3"]) -> TeacherOutput:
        """Look at RGB images of `input_size`; float32 on the CPU.

        Raises:
            ValueError: if the images have another size.
        """
        pixels = self._to_pixels(images).contiguous()
        seen = list(self._lookers.map(self._look, torch.split(pixels, 1)))
        return TeacherOutput(torch.cat([s.prediction for s in seen]), torch.cat([s.features for s in seen]))

    def _look(self, pixels: Float[Tensor, "1 3 H W"]) -> TeacherOutput:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        prediction, features = self._own.request.infer(pixels.numpy()).values()
        return TeacherOutput(torch.from_numpy(prediction), torch.from_numpy(features))


def relative_difference(ours: TeacherOutput, theirs: TeacherOutput) -> float:
    """The larger of |a - b| / |b| of the predictions and of the features, Euclidean norms over the whole batch.

    NaN where something is not finite, 0 where both are 0.
    """
    pairs = ((ours.prediction, theirs.prediction), (ours.features, theirs.features))
    tiny = torch.finfo(torch.float32).tiny
    ratios = [torch.linalg.norm(a - b) / torch.linalg.norm(b).clamp(min=tiny) for a, b in pairs]
    return float(torch.stack(ratios).max())  # Python's own max would lose a NaN


def check_image(size: tuple[int, int]) -> UInt8[Tensor, "1 H W 3"]:
    """Ramps across edges, in which a teacher sees something: the image that runtimes are compared on."""
    row, column = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    tiles = (row // 28 + column // 28) % 2 * 160 + 40
    return torch.stack([row // 2 % 256, column // 3 % 256, tiles], -1)[None].to(torch.uint8)


class _Look(torch.nn.Module):
    """A teacher's forward pass as a module that takes and gives plain tensors."""

    def __init__(self, teacher: TransformersTeacher):
        super().__init__()
        self.model = teacher.model  # a submodule, so that its weights are shared and not copied
        self._look = teacher.look

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._look(pixels)
        return seen.prediction, seen.features


def _compile(teacher: TransformersTeacher, precision: str, threads: int) -> Any:
    """A teacher's forward pass on one image, as many at a time as there are threads. Raises SettingError.

    By the front end itself: `openvino.convert_model` does the same, and reports to its makers that it was used.
    """
    from openvino.frontend import FrontEndManager, GeneralFailure, OpConversionFailure
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    settings = {
        "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[precision],
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # every process would pin itself to the same cores
    }
    shape = (1, 3, *teacher.input_size)
    failures = (RuntimeError, ValueError, TypeError, AttributeError, GeneralFailure, OpConversionFailure)
    try:
        with torch.no_grad(), warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")  # about branches on sizes, which are fixed here
            module, example = _Look(teacher), torch.zeros(shape)
            traced = torch.jit.trace(module, example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced)  # named: the front end does not keep it
        front_end = FrontEndManager().load_by_framework("pytorch")
        model = front_end.convert(front_end.load(decoder))
        model.reshape(list(shape))
        return openvino_core().compile_model(model, "CPU", settings)
    except failures as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SettingError(f"OpenVINO cannot convert {teacher.name}: {reason}; {_REMEDY}") from error
