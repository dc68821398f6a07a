"""Teachers of every family with random weights: the real classes, small, and saved as the real ones are."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForDepthEstimation

from stages.compute.quiet_transformers import quiet_transformers
from support.fakes import save_tiny_teacher

VIT: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}
DINO = {**VIT, "model_type": "dinov2", "mlp_ratio": 2, "image_size": 32, "patch_size": 8}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BEIT = {
    **VIT,
    "model_type": "beit",
    "intermediate_size": 32,
    "image_size": 64,
    "patch_size": 16,
    "use_relative_position_bias": True,
    "reshape_hidden_states": False,
    "out_features": STAGES,
}
SWIN = {
    "model_type": "swinv2",
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 2,
    "out_features": STAGES,
}
ZOE = {
    "backbone_config": BEIT,
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 16,
    "num_relative_features": 8,
    "bottleneck_features": 16,
    "num_attractors": [4, 2, 2, 1],
    "bin_embedding_dim": 16,
}
HEADS = {
    "bin_configurations": [
        {"name": "nyu", "n_bins": 16, "min_depth": 0.001, "max_depth": 10.0},
        {"name": "kitti", "n_bins": 16, "min_depth": 0.001, "max_depth": 80.0},
    ],
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,
    "patch_transformer_intermediate_size": 16,
    "patch_transformer_num_attention_heads": 2,
}
DEPTH_PRO = {
    "patch_size": 32,
    "image_model_config": DINO,
    "patch_model_config": DINO,
    "fov_model_config": DINO,
    "fusion_hidden_size": 16,
    "intermediate_hook_ids": [2, 0],
    "intermediate_feature_dims": [16, 16],
    "scaled_images_feature_dims": [16, 16, 16],
    "use_fov_model": True,
    "num_fov_head_layers": 1,
    "merge_padding_value": 1,
}
NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "zoedepth": ("zoedepth", ZOE),
    "zoedepth of two heads": ("zoedepth", ZOE | HEADS),
    "depth pro": ("depth_pro", DEPTH_PRO),
    "depth pro without field of view": ("depth_pro", DEPTH_PRO | {"use_fov_model": False}),
    "dpt": (
        "dpt",
        {
            **VIT,
            **NECK,
            "intermediate_size": 32,
            "image_size": 64,
            "patch_size": 16,
            "backbone_out_indices": [0, 1, 2, 3],
            "is_hybrid": False,
        },
    ),
    "dpt of beit": ("dpt", {**NECK, "backbone_config": BEIT}),
    "dpt of swinv2": ("dpt", {**NECK, "backbone_config": SWIN, "neck_hidden_sizes": [8, 16, 32, 64]}),
}


def save_tiny(folder: Path, kind: str) -> Path:
    """Save a randomly initialised teacher: a key of CONFIGS, "depth anything" or "marigold", or a variant of one."""
    if kind.startswith("marigold"):
        return save_tiny_marigold(folder, "LCMScheduler" if kind == "marigold lcm" else "DDIMScheduler")
    if kind.startswith("depth anything"):
        save_tiny_teacher(folder)
        if kind == "depth anything metric":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(
                json.dumps(config | {"depth_estimation_type": "metric", "max_depth": 80})
            )
        return folder
    torch.manual_seed(7)
    name, config = CONFIGS[kind]
    with quiet_transformers():
        model = AutoModelForDepthEstimation.from_config(AutoConfig.for_model(name, **config))
        randomise(model)
        if name == "depth_pro":  # a little of everything above the last ReLU; a field of view of 60 degrees or so
            torch.nn.init.constant_(model.head.layers[4].bias, 1.0)
            if model.fov_model is not None:
                torch.nn.init.constant_(model.fov_model.head.layers[-1].bias, 60.0)
        model.save_pretrained(folder)
    return folder


def save_tiny_marigold(folder: Path, scheduler: str = "DDIMScheduler") -> Path:
    """A Marigold pipeline whose U-Net halves once, with two denoising steps. Needs diffusers."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    diffusers.utils.logging.disable_progress_bar()
    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        in_channels=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    words = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    with quiet_transformers():
        diffusers.MarigoldDepthPipeline(
            unet,
            vae,
            getattr(diffusers, scheduler)(prediction_type="v_prediction", clip_sample=False),
            CLIPTextModel(words),
            tokenizer,
            prediction_type="depth",
            default_denoising_steps=2,
        ).save_pretrained(folder)
    return folder


def randomise(model: torch.nn.Module) -> None:
    """The usual initialisation is so small that the output would be nearly constant."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
