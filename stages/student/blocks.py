"""What the student and the refiner are built from."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def upsampled_like(x: Float[Tensor, "N C h w"], target: Float[Tensor, "N D H W"]) -> Float[Tensor, "N C H W"]:
    """Bilinear, at the size of `target`."""
    return interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=False)
