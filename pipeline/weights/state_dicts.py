"""Encoders from state dicts that torch or pickle wrote: read without running anything in them, then renamed."""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.weights.renaming import Names, Tensors, renamed


def encoder_from_torchvision(members: Mapping[str, bytes]) -> Tensors:
    """ResNet in the names of transformers, rounded to fp16, from torchvision's pickled state dict."""
    (content,) = members.values()
    state = read_state_dict(content)
    return {_encoder_name(name, _RESNET_NAMES): _half(tensor.numpy()) for name, tensor in state.items()}


def encoder_from_efficientnet_lite(members: Mapping[str, bytes]) -> Tensors:
    """EfficientNet-lite in the names of ours, without its classifier, from the file of `efficientnet_lite_pytorch`."""
    return _encoder_of_ours(members, _EFFICIENTNET_LITE_NAMES, _EFFICIENTNET_LITE_CLASSIFIER)


def encoder_from_mobilenet_v2(members: Mapping[str, bytes]) -> Tensors:
    """MobileNetV2 in the names of ours, without its classifier, from torchvision's file."""
    return _encoder_of_ours(members, _MOBILENET_V2_NAMES, _MOBILENET_V2_CLASSIFIER)


def read_state_dict(content: bytes) -> "OrderedDict[str, Any]":
    """Unpickle a raw state dict of torch tensors, and nothing else.

    Raises:
        pickle.UnpicklingError: if the pickle asks for anything that a state dict does not need.
    """
    state = _StateDictUnpickler(io.BytesIO(content)).load()
    if not isinstance(state, OrderedDict):
        raise pickle.UnpicklingError(f"expected a state dict, found {type(state).__name__}")
    return state


def read_saved_state_dict(content: bytes) -> Mapping[str, Any]:
    """Load a state dict that torch.save wrote, with its own unpickler for weights alone.

    Raises:
        pickle.UnpicklingError: if the file asks for anything that a state dict does not need.
    """
    import torch

    state = torch.load(io.BytesIO(content), weights_only=True)
    if not isinstance(state, Mapping):
        raise pickle.UnpicklingError(f"expected a state dict, found {type(state).__name__}")
    return state


_RESIDUAL_BLOCK = [
    (r"conv1", "layer.0.convolution"),
    (r"bn1", "layer.0.normalization"),
    (r"conv2", "layer.1.convolution"),
    (r"bn2", "layer.1.normalization"),
    (r"downsample\.0", "shortcut.convolution"),
    (r"downsample\.1", "shortcut.normalization"),
]
_RESNET_NAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"conv1", r"resnet.embedder.embedder.convolution"),
        (r"bn1", r"resnet.embedder.embedder.normalization"),
        (r"fc", r"classifier.1"),
        *(
            (rf"layer{stage + 1}\.(\d)\.{theirs}", rf"resnet.encoder.stages.{stage}.layers.\1.{ours}")
            for stage in range(4)
            for theirs, ours in _RESIDUAL_BLOCK
        ),
    ]
]

_EFFICIENTNET_LITE_NAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"_conv_stem", r"stem.0"),
        (r"_bn0", r"stem.1"),
        *(
            (rf"_blocks\.(\d+)\.{theirs}", rf"blocks.\1.{ours}")
            for theirs, ours in [
                ("_expand_conv", "expand.0"),
                ("_bn0", "expand.1"),
                ("_depthwise_conv", "depthwise.0"),
                ("_bn1", "depthwise.1"),
                ("_project_conv", "project.0"),
                ("_bn2", "project.1"),
            ]
        ),
    ]
]
_EFFICIENTNET_LITE_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")

_MOBILENET_V2_BLOCKS = 17
_MOBILENET_V2_NAMES = [
    (re.compile(re.escape(theirs)), ours)
    for theirs, ours in [
        ("features.0.0", "stem.0"),
        ("features.0.1", "stem.1"),
        # The first block does not expand.
        ("features.1.conv.0.0", "blocks.0.depthwise.0"),
        ("features.1.conv.0.1", "blocks.0.depthwise.1"),
        ("features.1.conv.1", "blocks.0.project.0"),
        ("features.1.conv.2", "blocks.0.project.1"),
        *(
            (f"features.{index + 1}.conv.{theirs}", f"blocks.{index}.{ours}")
            for index in range(1, _MOBILENET_V2_BLOCKS)
            for theirs, ours in [
                ("0.0", "expand.0"),
                ("0.1", "expand.1"),
                ("1.0", "depthwise.0"),
                ("1.1", "depthwise.1"),
                ("2", "project.0"),
                ("3", "project.1"),
            ]
        ),
    ]
]
_MOBILENET_V2_CLASSIFIER = ("features.18.", "classifier.")


def _encoder_of_ours(members: Mapping[str, bytes], names: Names, classifier: tuple[str, ...]) -> Tensors:
    (content,) = members.values()
    state = read_saved_state_dict(content)
    return {
        _encoder_name(name, names): tensor.numpy() for name, tensor in state.items() if not name.startswith(classifier)
    }


def _encoder_name(name: str, names: Names) -> str:
    module, leaf = name.rsplit(".", 1)
    return f"{renamed(module, names)}.{leaf}"


def _half(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16) if np.issubdtype(value.dtype, np.floating) else value


class _StateDictUnpickler(pickle.Unpickler):
    """Loads only the three names that a pickled state dict needs, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        raise pickle.UnpicklingError(f"a state dict does not need {module}.{name}; refused")


def _load_storage(content: bytes) -> Any:
    """Do as torch.storage._load_from_bytes, without its unrestricted unpickling."""
    import torch

    return torch.load(io.BytesIO(content), weights_only=True)
