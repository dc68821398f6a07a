"""Marigold: a diffusion model for depth, through diffusers (an optional extra)."""

import threading
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from data_cache.errors import SettingError
from stages.compute.devices import dtype_of, synchronize
from stages.compute.quiet_transformers import quiet_transformers
from stages.targets.space import Space
from stages.teacher.base import TeacherOutput

PIPELINE_INDEX = "model_index.json"
"""The file that a diffusers folder has instead of config.json."""
SEED = 0
STEPS = 4
"""Denoising steps if the model does not state its own number."""


class MarigoldTeacher:
    """A Marigold depth pipeline (Ke et al. 2024), frozen, on one device.

    The noise is the same for every image, so that a prediction does not depend on the batch. Features are those of the
    U-Net's middle block in the last denoising step: 1/64 of the image's size in Stable Diffusion.
    """

    runtime = "torch"

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        licence: str,
        weights_sha256: str,
        input_size: tuple[int, int],
        device: torch.device,
        precision: str,
    ):
        """Load a pipeline from `folder`, without network access.

        Raises:
            SettingError: if diffusers is not installed, the folder holds no such pipeline, or it takes other sizes.
        """
        try:
            from diffusers import AutoencoderKL, MarigoldDepthPipeline, UNet2DConditionModel
            from diffusers.utils import logging
        except ImportError as error:
            raise SettingError(f"{name} needs pip install 'surround-distill[diffusion]' ({error})") from error
        self.name, self.licence, self.weights_sha256 = name, licence, weights_sha256
        self.input_size, self.precision, self.device = input_size, precision, device
        self.attention = "sdpa"
        logging.disable_progress_bar()  # it would mix with ours
        logging.set_verbosity_error()
        dtype = dtype_of(precision)
        options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
        parts, missing = {}, {}
        try:
            with quiet_transformers():
                for part, model in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
                    parts[part], loaded = model.from_pretrained(
                        folder, subfolder=part, output_loading_info=True, **options
                    )
                    missing[part] = sorted(loaded["missing_keys"])
                self._pipeline = MarigoldDepthPipeline.from_pretrained(folder, **parts, **options).to(device)
        except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise SettingError(f"{folder} holds no Marigold depth pipeline that diffusers can load: {error}") from error
        for part, names in missing.items():
            if names:  # diffusers initialises them at random
                raise SettingError(f"{folder}/{part}: the weights lack {len(names)} tensors, first {names[0]}")
        kind = self._pipeline.config.prediction_type
        if kind not in ("depth", "disparity"):
            raise SettingError(f"{folder}: expected a Marigold pipeline for depth or disparity, found {kind!r}")
        self.space: Space = "affine_depth" if kind == "depth" else "disparity"
        unet = self._pipeline.unet
        multiple = self._pipeline.vae_scale_factor * 2 ** (len(unet.config.block_out_channels) - 1)
        if any(side % multiple for side in input_size):
            raise SettingError(f"teacher_cache.input_size {list(input_size)}: {name} takes multiples of {multiple}")
        self._steps = self._pipeline.default_denoising_steps or STEPS
        self.preprocessing = (
            f"RGB stretched bicubic antialiased, -1 to 1; {self._steps} steps of"
            f" {type(self._pipeline.scheduler).__name__} from noise of seed {SEED}"
        )
        self._empty_text = self._embed_nothing()
        self._middle = threading.local()  # batches run in parallel threads
        unet.mid_block.register_forward_hook(self._keep_middle)

    @torch.inference_mode()
    def _embed_nothing(self) -> Tensor:
        """Embedding of the empty prompt, computed once because tokenizers are not thread-safe."""
        pipeline = self._pipeline
        ids = pipeline.tokenizer("", padding="do_not_pad", truncation=True, return_tensors="pt").input_ids
        embedding: Tensor = pipeline.text_encoder(ids.to(self.device))[0]
        return embedding

    def _keep_middle(self, _: torch.nn.Module, __: Any, output: Tensor) -> None:
        self._middle.features = output

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "N H W 3"]) -> TeacherOutput:
        """Run the pipeline on RGB images of `input_size`; returns float32 on the teacher's device.

        Raises:
            ValueError: if the images have another size.
        """
        if tuple(images.shape[1:3]) != self.input_size:
            raise ValueError(f"{self.name} takes {list(self.input_size)} images, got {list(images.shape[1:3])}")
        output = self._own_pipeline()(
            images.permute(0, 3, 1, 2).float() / 255,
            num_inference_steps=self._steps,
            processing_resolution=0,  # no resizing
            batch_size=len(images),
            generator=[torch.Generator().manual_seed(SEED) for _ in images],
            output_type="pt",
        )
        synchronize(self.device)
        return TeacherOutput(output.prediction[:, 0].float(), self._middle.features.float())

    def _own_pipeline(self) -> Any:
        """A pipeline with the same models and its own scheduler: schedulers count steps and cannot be shared."""
        parts = self._pipeline.components
        scheduler = type(parts["scheduler"]).from_config(parts["scheduler"].config)
        pipeline = type(self._pipeline)(
            **parts | {"scheduler": scheduler}, prediction_type=self._pipeline.config.prediction_type
        )
        pipeline.empty_text_embedding = self._empty_text
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
