"""Teachers from transformers: Depth Anything, relative and metric, DPT, ZoeDepth and Depth Pro."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor

from data_cache.errors import SettingError
from stages.compute.devices import dtype_of, synchronize
from stages.compute.quiet_transformers import quiet_transformers
from stages.targets.space import Space
from stages.teacher.attention import use_blocked_attention
from stages.teacher.base import TeacherOutput

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALISED = {"zoedepth": HALF, "depth_pro": HALF, "dpt": HALF}
"""Image mean and std by model family, if the folder has no preprocessor_config.json; ImageNet's for other families."""
PREPROCESSING = "RGB stretched bicubic antialiased, ImageNet mean and std"
SPECIAL_TOKENS = 8
"""At most this many tokens that belong to no place (class, registers) may come before the grid."""
COARSEST = 4
"""A backbone with stages halves its grid at most this many times."""


@dataclass(frozen=True, eq=False)
class ToPixels:
    """From RGB images of a teacher's input size to what its model takes.

    Attributes:
        name: of the teacher.
        size: (H, W) of the images.
        mean, std: of each channel of an image between 0 and 1.
    """

    name: str
    size: tuple[int, int]
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    def __call__(self, images: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 3 H W"]:
        """float32, on the device of `mean`.

        Raises:
            ValueError: if the images have another size.
        """
        if tuple(images.shape[1:3]) != self.size:
            raise ValueError(f"{self.name} takes {list(self.size)} images, got {list(images.shape[1:3])}")
        channels_first = images.to(self.mean.device).permute(0, 3, 1, 2)
        return (channels_first.float() / 255 - self.mean) / self.std


class TransformersTeacher:
    """A depth model of transformers, frozen, on one device."""

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
        """Load config.json and model.safetensors from `folder`, without network access.

        Raises:
            SettingError: if the folder holds no such model, or the input size does not suit it.
        """
        from transformers import AutoModelForDepthEstimation

        self.name, self.licence, self.weights_sha256 = name, licence, weights_sha256
        self.input_size, self.precision = input_size, precision
        self.device = device
        dtype = dtype_of(precision)
        try:
            with quiet_transformers():
                model, loaded = AutoModelForDepthEstimation.from_pretrained(
                    folder, dtype=dtype, local_files_only=True, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise SettingError(f"{folder} holds no depth model that transformers can load: {error}") from error
        missing = sorted(loaded["missing_keys"])
        if missing:  # transformers initialises them at random
            raise SettingError(f"{folder}: the weights lack {len(missing)} tensors, first {missing[0]}")
        self.model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.attention = use_blocked_attention(self.model, device)
        self._config = model.config
        self._family = model.config.model_type
        self._patch = _patch(model.config)
        if not self._patch:
            raise SettingError(f"{folder}: expected a ViT, found {self._family}, whose backbone has no patches")
        _require_size(name, model.config, self._patch, input_size)
        self.space: Space = _space(model.config)
        # ZoeDepth's bin head uses logarithms of binomials of 64, for which 16 bits are far too few.
        if self._family == "zoedepth" and precision != "fp32":
            model.metric_head.float().register_forward_pre_hook(_to_float, with_kwargs=True)
        # ZoeDepth with several heads uses the one for which the images of a batch vote: batches must be single images.
        self._one_by_one = self._family == "zoedepth" and len(model.config.bin_configurations) > 1
        mean, std = _normalisation(folder, self._family)
        self.preprocessing = PREPROCESSING
        if (mean, std) != IMAGENET:
            self.preprocessing = PREPROCESSING.replace("ImageNet mean and std", f"mean {mean} and std {std}")
        channel_mean, channel_std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
        self.to_pixels = ToPixels(name, input_size, channel_mean, channel_std)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "N H W 3"]) -> TeacherOutput:
        """Run the model on RGB images of `input_size`; returns float32 on the teacher's device.

        Raises:
            ValueError: if the images have another size.
        """
        pixels = self.to_pixels(images).to(self.model.dtype, memory_format=torch.channels_last)
        seen = [self.look(batch) for batch in (torch.split(pixels, 1) if self._one_by_one else [pixels])]
        synchronize(self.device)
        return TeacherOutput(torch.cat([s.prediction for s in seen]), torch.cat([s.features for s in seen]))

    def look(self, pixels: Float[Tensor, "N 3 H W"]) -> TeacherOutput:
        """The forward pass alone, on what `to_pixels` gives, in the model's precision."""
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        prediction = output.predicted_depth.float()
        if self._family == "depth_pro" and self.space == "depth":
            prediction = depth_pro_depth_m(prediction, output.field_of_view.float())
        size = self.input_size
        if self._family == "depth_pro":  # its image encoder sees the whole image, reduced to the size of one patch
            size = (self._config.patch_size, self._config.patch_size)
        return TeacherOutput(prediction, token_grid(output.hidden_states[-1], size, self._patch).float())


def depth_pro_depth_m(canonical: Float[Tensor, "N h w"], fov_deg: Float[Tensor, " N"]) -> Float[Tensor, "N h w"]:
    """Depth in metres from Depth Pro's prediction C, inverse depth for a focal length equal to the image's width.

    1 / D = C w / f with w / f = 2 tan(fov / 2) and the horizontal field of view that the model also predicts; the clamp
    is that of its own post-processing (Bochkovskii et al. 2024, section 3).
    """
    width_per_focal = 2 * torch.tan(torch.deg2rad(fov_deg) / 2)
    return 1 / (canonical * width_per_focal[:, None, None]).clamp(1e-4, 1e4)


def token_grid(tokens: Float[Tensor, "N L C"], size: tuple[int, int], patch: int) -> Float[Tensor, "N C gh gw"]:
    """Arrange a backbone's last tokens as a grid over the image, without special tokens (class, registers).

    Args:
        tokens: special tokens first, then the grid row by row.
        size: (H, W) of the image.
        patch: side of the patches; a backbone with stages may have halved their grid several times.

    Raises:
        SettingError: if no such grid has this number of tokens.
    """
    for halvings in range(COARSEST + 1):
        rows, columns = (side // (patch << halvings) for side in size)
        if rows * columns and 0 <= tokens.shape[1] - rows * columns <= SPECIAL_TOKENS:
            grid: Tensor = tokens[:, -rows * columns :].transpose(1, 2)
            return grid.reshape(*grid.shape[:2], rows, columns)
    raise SettingError(f"expected tokens on a grid over {list(size)} with patches of {patch}, found {tokens.shape[1]}")


def _patch(config: Any) -> int:
    """Side of the backbone's patches, 0 if it has none."""
    parts = [getattr(config, "image_model_config", None), getattr(config, "backbone_config", None), config]
    return next((size for part in parts if isinstance(size := getattr(part, "patch_size", None), int)), 0)


def _require_size(name: str, config: Any, patch: int, input_size: tuple[int, int]) -> None:
    """Raise SettingError if a model cannot take images of this size."""
    found = f"teacher_cache.input_size {list(input_size)}: {name} takes"
    if config.model_type == "depth_pro":
        side = round(config.patch_size / min(config.scaled_images_ratios))
        if input_size != (side, side):
            raise SettingError(f"{found} images of one size, [{side}, {side}]")
        return
    own_vit = config.model_type == "dpt" and (config.backbone_config is None or config.is_hybrid)
    if own_vit and input_size[0] != input_size[1]:
        raise SettingError(f"{found} square images")
    multiple = patch
    if config.model_type != "depth_anything":
        # If the grid cannot be halved as often as the model does, the output would not match the input size.
        multiple *= 2 ** max(1, len(getattr(config.backbone_config, "depths", ())) - 1)
    if any(side % multiple for side in input_size):
        raise SettingError(f"{found} multiples of {multiple}")


def _space(config: Any) -> Space:
    if config.model_type == "zoedepth":
        return "depth"
    if config.model_type == "depth_pro":
        # Without the field of view the scale is unknown.
        return "depth" if config.use_fov_model else "disparity"
    return "depth" if getattr(config, "depth_estimation_type", "relative") == "metric" else "disparity"


def _normalisation(folder: Path, family: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return NORMALISED.get(family, IMAGENET)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return tuple(map(float, table["image_mean"])), tuple(map(float, table["image_std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path}: expected image_mean and image_std ({error!r}); restore it or remove it") from error


def _to_float(
    _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(item) for item in value]
        return value.float() if isinstance(value, Tensor) else value

    return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}
