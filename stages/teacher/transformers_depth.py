"""Teachers from transformers: any AutoModelForDepthEstimation with a ViT backbone whose tokens form a grid."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForDepthEstimation

from data_cache.errors import SettingError
from stages.devices import synchronize
from stages.quiet import quiet_transformers
from stages.teacher.attention import use_blocked_attention
from stages.teacher.base import Space, TeacherOutput

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
PREPROCESSING = "RGB stretched bicubic antialiased, ImageNet mean and std"


class TransformersTeacher:
    """A depth model of transformers, frozen, on one device."""

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
        """Load config.json and model.safetensors from `folder`; no network is asked.

        Raises:
            SettingError: if the folder holds no such model, or the input size does not fit its patches.
        """
        self.name, self.licence, self.weights_sha256 = name, licence, weights_sha256
        self.preprocessing, self.input_size, self.precision = PREPROCESSING, input_size, precision
        self.device = device
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        try:
            with quiet_transformers():
                model, loaded = AutoModelForDepthEstimation.from_pretrained(
                    folder, dtype=dtype, local_files_only=True, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise SettingError(f"{folder} holds no depth model that transformers can load: {error}") from error
        missing = sorted(loaded["missing_keys"])
        if missing:  # transformers would start them at random
            raise SettingError(f"{folder}: the weights lack {len(missing)} tensors, first {missing[0]}")
        self._model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.attention = use_blocked_attention(self._model, device)
        config = model.config
        self.space: Space = "depth" if getattr(config, "depth_estimation_type", "relative") == "metric" else "disparity"
        patch_sizes = (getattr(part, "patch_size", None) for part in (getattr(config, "backbone_config", None), config))
        self._patch = next((size for size in patch_sizes if isinstance(size, int)), 0)
        if not self._patch:
            raise SettingError(f"{folder}: expected a ViT, found {config.model_type}, whose backbone has no patches")
        if any(side % self._patch for side in input_size):
            raise SettingError(f"teacher_cache.input_size {list(input_size)}: {name} takes multiples of {self._patch}")
        self._mean = torch.tensor(IMAGE_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(IMAGE_STD, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "N H W 3"]) -> TeacherOutput:
        """Look at RGB images of `input_size`; float32 on the teacher's device.

        Raises:
            ValueError: if the images have another size.
        """
        if tuple(images.shape[1:3]) != self.input_size:
            raise ValueError(f"{self.name} takes {list(self.input_size)} images, got {list(images.shape[1:3])}")
        pixels = (images.to(self.device).permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        pixels = pixels.to(self._model.dtype, memory_format=torch.channels_last)
        output = self._model(pixel_values=pixels, output_hidden_states=True)
        synchronize(self.device)
        grid = tuple(side // self._patch for side in self.input_size)
        tokens = output.hidden_states[-1][:, -grid[0] * grid[1] :]  # without class and register tokens
        features = tokens.transpose(1, 2).unflatten(2, grid)
        return TeacherOutput(output.predicted_depth.float(), features.float())
