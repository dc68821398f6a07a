"""Export of a student to a graph that runs without this program: ONNX, and the torch.export program behind it."""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from data_cache.errors import SettingError, SurroundError
from stages.student.fold import folded
from stages.student.model import Student

OPSET = 18
"""The version that torch's exporter writes without conversion; TensorRT 10.0 and current onnxruntimes read it."""
IMAGE, FOCAL, DEPTH, SIGMA = "image", "focal_px", "depth_m", "sigma"
MEANINGS = {
    IMAGE: "uint8 RGB [B, V, 3, H, W], cameras in ring order or one of them, stretched to H x W; zeros: it is missing",
    FOCAL: "float32 [B, V], fx of each camera in pixels of the stretched image; 0 where a camera is missing",
    DEPTH: "float32 [B, V, H, W], depth along the optical axis in metres; 0 where a camera is missing",
    SIGMA: "float32 [B, V, H, W], standard deviation of log depth; 0 where a camera is missing",
}
"""Meaning of each input and output, by name; written into the graph."""
METADATA_PREFIX = "surround."
MAX_BATCH = 1024


class ExportError(SurroundError):
    """A student cannot be exported, or the exported graph gives other results."""


class DeployedStudent(nn.Module):
    """The part of a student that is deployed: camera pixels in, metres out; batch norms are folded.

    The student inside always gets its own focal length f0. Depth is proportional to the focal length, so the real one
    is multiplied in last, where a 16-bit runtime does not round it.
    """

    def __init__(self, student: Student, sigma_scale: float | None = None):
        """Take a folded copy; `student` is in evaluation mode. With `sigma_scale`, a factor, sigma is given, too."""
        super().__init__()
        self.student, self.sigma_scale = folded(student), sigma_scale

    def forward(
        self, image: UInt8[Tensor, "B V 3 H W"], focal_px: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V H W"] | tuple[Float[Tensor, "B V H W"], Float[Tensor, "B V H W"]]:
        """Depth in metres, and sigma if it is asked for; see MEANINGS."""
        f0_px, scale = self.student.spec.focal_px, self.sigma_scale
        known = torch.full_like(focal_px, f0_px)
        seen = self.student(image.float() / 255, known, focal_px > 0, sigma=scale is not None)
        depth_m: Tensor = seen.depth_m * (focal_px.clamp(min=0) / f0_px)[..., None, None]
        if scale is None:
            return depth_m
        return depth_m, seen.sigma * (scale * (focal_px > 0))[..., None, None]


def require_extra() -> None:
    """Raise SettingError if packages of the extra `export` are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise SettingError(f"export needs pip install 'surround-distill[export]' ({error})") from error


def require_views_alone(student: Student) -> None:
    """Check that a student sees each camera alone, so that a graph of one camera says what the student says.

    Raises:
        ExportError: if it has attention between views.
    """
    if width := student.spec.attention_width:
        raise ExportError(
            "--one-camera: expected a student without attention between views (student.attention_width = 0), found"
            f" attention of {width} channels, for which a camera needs its neighbours; export it without --one-camera,"
            " or train a student with attention_width = 0"
        )


def export_program(
    student: Student, view_count: int, batch: int | None, sigma_scale: float | None = None
) -> ExportedProgram:
    """Trace the deployed part of a student.

    Args:
        student: a student in evaluation mode, on the CPU; not changed.
        view_count: V, cameras per call: those of the rig, or 1 if the student sees each alone.
        batch: B, rigs per call, or images of one camera; None leaves it open.
        sigma_scale: factor on sigma, the second output; None for no second output.
    """
    rigs = batch or 2
    image = torch.zeros(rigs, view_count, 3, *student.spec.input_size, dtype=torch.uint8)
    focal_px = torch.full((rigs, view_count), student.spec.focal_px)
    open_batch = {0: Dim("batch", min=1, max=MAX_BATCH)}
    with quiet_exporters():
        return torch.export.export(
            DeployedStudent(student, sigma_scale).eval(),
            (image, focal_px),
            dynamic_shapes=None if batch else (open_batch, open_batch),
        )


def onnx_model(program: ExportedProgram, metadata: Mapping[str, object]) -> bytes:
    """The program as an ONNX file with its weights inside, checked by onnx.

    Args:
        program: the result of `export_program`.
        metadata: values by name; stored in the file as JSON, each name after METADATA_PREFIX.

    Raises:
        ExportError: if onnx finds a fault in the graph.
    """
    import onnx

    with quiet_exporters():
        made = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=[IMAGE, FOCAL],
            output_names=[DEPTH, SIGMA][: len(program.graph_signature.user_outputs)],
            external_data=False,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    graph = model.graph
    for described in (*graph.node, *graph.value_info, *graph.initializer):
        del described.metadata_props[:]  # paths and line numbers of the source code it was traced from
        described.doc_string = ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.doc_string = MEANINGS[value.name]
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param  # empty if the batch is fixed
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if traced and traced in dim.dim_param:
                dim.dim_param = dim.dim_param.replace(traced, "batch")
    graph.name = "surround student"
    data = with_metadata(model.SerializeToString(), metadata)
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx finds a fault in the exported graph: {error}") from error
    return data


def with_metadata(model: bytes, metadata: Mapping[str, object]) -> bytes:
    """The same ONNX file with this metadata and no other."""
    import onnx

    proto = onnx.load_from_string(model)
    onnx.helper.set_model_props(proto, {METADATA_PREFIX + key: json.dumps(value) for key, value in metadata.items()})
    proto.producer_name, proto.producer_version = "surround-distill", ""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def program_file(program: ExportedProgram, metadata: Mapping[str, object]) -> bytes:
    """The program as torch.export saves it (.pt2), with the metadata as JSON in the extra file `surround.json`."""
    buffer = io.BytesIO()
    with quiet_exporters():
        torch.export.save(program, buffer, extra_files={"surround.json": json.dumps(metadata)})
    return buffer.getvalue()


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the warnings of exporters and quantisers, which are about expected things; errors are still shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
