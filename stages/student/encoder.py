"""Convolutional encoders, with ImageNet weights from a folder or random weights."""

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data_cache.errors import SettingError
from stages.compute.quiet_transformers import quiet_transformers
from stages.student.inverted_residuals import ARCHITECTURES, InvertedResiduals, map_channels


@dataclass(frozen=True)
class EncoderShape:
    """The architecture of an encoder.

    Attributes:
        channels: channels of its maps, finest first; their strides are STRIDES.
        depths: blocks per stage.
        weights: name of the ImageNet weights that it starts from, None if none are available.
    """

    channels: tuple[int, int, int, int]
    depths: tuple[int, ...]
    weights: str | None


STRIDES = (4, 8, 16, 32)
_RESNET = (64, 128, 256, 512)
ENCODERS = {
    "resnet-10": EncoderShape(_RESNET, (1, 1, 1, 1), weights="resnet-18"),
    "resnet-18": EncoderShape(_RESNET, (2, 2, 2, 2), weights="resnet-18"),
    "resnet-34": EncoderShape(_RESNET, (3, 4, 6, 3), weights="resnet-34"),
    **{name: EncoderShape(map_channels(shape), shape.depths, weights=name) for name, shape in ARCHITECTURES.items()},
    "convnextv2-atto": EncoderShape((40, 80, 160, 320), (2, 2, 6, 2), weights=None),
    "convnextv2-nano": EncoderShape((80, 160, 320, 640), (2, 2, 8, 2), weights=None),
}
"""Encoders by the name in `student.encoder`. ResNets have basic blocks; resnet-10 takes its ImageNet weights from the
first block of each stage of resnet-18. EfficientNet-lite and MobileNetV2 have inverted residual blocks."""
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def build_encoder(name: str, weights: Path | None) -> nn.Module:
    """Build an encoder whose `feature_maps` have the strides STRIDES and the channels of its shape.

    Args:
        name: a key of ENCODERS.
        weights: folder with config.json and model.safetensors of `ENCODERS[name].weights`; None for random weights.

    Raises:
        SettingError: if the folder holds another architecture or lacks weights, or the encoder has no ImageNet weights.
    """
    from transformers import ConvNextV2Backbone, ConvNextV2Config, ResNetBackbone, ResNetConfig

    shape = ENCODERS[name]
    if weights is not None:
        _require_weights_of(name, weights)
    if name in ARCHITECTURES:
        return _inverted_residuals(name, weights)
    if weights is not None:
        return _pretrained_resnet(shape, weights)
    sizes = {"hidden_sizes": list(shape.channels), "depths": list(shape.depths), "out_features": _STAGES}
    encoder: nn.Module
    if name.startswith("resnet"):
        encoder = ResNetBackbone(ResNetConfig(layer_type="basic", **sizes))
    else:
        encoder = ConvNextV2Backbone(ConvNextV2Config(**sizes))
    return encoder


def _require_weights_of(name: str, weights: Path) -> None:
    """Raise SettingError if an encoder starts from other weights than those that the folder names in its config."""
    expected = ENCODERS[name].weights
    if expected is None:
        raise SettingError(
            f"{name}: expected an encoder with ImageNet weights, found one without; set student.pretrained = false"
        )
    family = expected if expected in ARCHITECTURES else "resnet"
    found = json.loads((weights / "config.json").read_text()).get("model_type")
    if found != family:
        raise SettingError(f"{weights}: expected {expected} (model_type {family!r}), found model_type {found!r}")


def _inverted_residuals(name: str, weights: Path | None) -> nn.Module:
    from safetensors.torch import load_file

    encoder = InvertedResiduals(ARCHITECTURES[name])
    if weights is not None:
        tensors = load_file(weights / "model.safetensors")
        _require_all(weights, encoder.state_dict().keys() - tensors.keys())
        encoder.load_state_dict(tensors)
    return encoder


def _pretrained_resnet(shape: EncoderShape, weights: Path) -> nn.Module:
    from transformers import ResNetBackbone, ResNetConfig

    assert shape.weights is not None
    config = ResNetConfig.from_pretrained(weights, out_features=_STAGES, local_files_only=True)
    held = ENCODERS[shape.weights].depths
    if tuple(config.depths) != held or config.layer_type != "basic":
        raise SettingError(f"{weights}: expected {shape.weights} (depths {held}), found depths {config.depths}")
    config.depths = list(shape.depths)
    with quiet_transformers():  # it would report the classifier and blocks that are left out on purpose
        encoder, loaded = ResNetBackbone.from_pretrained(
            weights, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    _require_all(weights, loaded["missing_keys"])  # transformers initialises them at random
    checked: nn.Module = encoder
    return checked


def _require_all(weights: Path, missing: AbstractSet[str]) -> None:
    if missing:
        raise SettingError(f"{weights}: the weights lack {len(missing)} tensors, first {min(missing)}")
