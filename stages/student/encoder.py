"""ResNet encoders: ImageNet weights from a folder, or random ones."""

from pathlib import Path

import torch
from torch import nn
from transformers import ResNetBackbone, ResNetConfig

from data_cache.errors import SettingError
from stages.quiet import quiet_transformers

DEPTHS = {"resnet-18": (2, 2, 2, 2), "resnet-34": (3, 4, 6, 3)}
CHANNELS = (64, 128, 256, 512)
STRIDES = (4, 8, 16, 32)
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def build_encoder(name: str, weights: Path | None) -> nn.Module:
    """A ResNet whose `feature_maps` have strides 4, 8, 16, 32 and 64, 128, 256, 512 channels.

    Args:
        name: a key of DEPTHS.
        weights: folder with config.json and model.safetensors of the same ResNet; None for random weights.

    Raises:
        SettingError: if the folder holds another architecture, or not all of its weights.
    """
    if weights is None:
        config = ResNetConfig(
            hidden_sizes=list(CHANNELS), depths=list(DEPTHS[name]), layer_type="basic", out_features=_STAGES
        )
        random: nn.Module = ResNetBackbone(config)
        return random
    with quiet_transformers():  # it would report the classifier, which a backbone rightly leaves out
        encoder, loaded = ResNetBackbone.from_pretrained(
            weights, out_features=_STAGES, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    if tuple(encoder.config.depths) != DEPTHS[name] or encoder.config.layer_type != "basic":
        raise SettingError(f"{weights}: expected {name} (depths {DEPTHS[name]}), found depths {encoder.config.depths}")
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers would start them at random
        raise SettingError(f"{weights}: the weights lack {len(missing)} tensors, first {missing[0]}")
    checked: nn.Module = encoder
    return checked
