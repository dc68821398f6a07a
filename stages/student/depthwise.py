"""Depthwise convolutions whose gradients are fast on a CPU.

oneDNN has fast kernels for some gradients of depthwise convolutions only; the others run one number at a time. For the
shapes of EfficientNet-lite0 (12 images of 96 x 160, channels last, one thread, AVX512-BF16) forward and backward of all
depthwise convolutions took 641 ms in bf16 with PyTorch's own gradients, and take 60 ms with these.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

FAST_SIDE = 3
"""The kernel for which oneDNN has a fast gradient by the weights."""


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution without bias; the same numbers as `nn.Conv2d`, up to rounding.

    Its kernel has 3 or 5 rows and columns.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, *, same: bool = False):
        """One filter of `kernel` x `kernel` weights for each channel.

        Args:
            channels: C.
            kernel: 3 or 5.
            stride: 1 or 2.
            same: pad as `same_padded` does, for a stride of 2; otherwise by half the kernel on each side.

        Raises:
            ValueError: for another kernel, or `same` with another stride.
        """
        if kernel not in (FAST_SIDE, 5) or (same and stride != 2):
            raise ValueError(f"expected a kernel of 3 or 5, and same padding with stride 2, got {kernel}, {stride}")
        padding = 0 if same else kernel // 2
        super().__init__(channels, channels, kernel, stride=stride, padding=padding, groups=channels, bias=False)
        self.same = same

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C H W"]:
        """Convolve."""
        if self.same:
            x = same_padded(x, self.kernel_size[0])
        if not (torch.is_grad_enabled() and self.training and x.device.type == "cpu"):
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        convolved: Tensor = _Depthwise.apply(x, weight, self.stride[0], int(self.padding[0]))  # type: ignore[no-untyped-call]
        return convolved


def same_padded(x: Float[Tensor, "N C h w"], kernel: int) -> Float[Tensor, "N C H W"]:
    """Pad an image of even size for a convolution of stride 2 as TensorFlow's "same" does.

    Kernel k needs k - 2 zeros per axis, and the odd one goes to the right and to the bottom: none and one for k = 3,
    one and two for k = 5.
    """
    zeros = kernel - 2
    before, after = zeros // 2, zeros - zeros // 2
    return pad(x, (before, after, before, after))


class _Depthwise(torch.autograd.Function):
    """`conv2d` with one group for each channel, and its gradients from the fast kernels alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_x = _by_input(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        by_weight = _by_weight(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return by_x, by_weight, None, None


def _by_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """In bf16 a stride of 2 is one of 1 whose gradient is zero at every other place."""
    if stride > 1 and x.dtype == torch.bfloat16:
        rows, columns = (side + 2 * padding - weight.shape[-1] + 1 for side in x.shape[-2:])
        spread = gradient.new_zeros((*gradient.shape[:2], rows, columns))
        spread = spread.contiguous(memory_format=torch.channels_last)
        spread[:, :, ::stride, ::stride] = gradient
        gradient, stride = spread, 1
    return _native(gradient, x, weight, stride, padding, by=0)


def _by_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The weights of a 5 x 5 kernel are those of four 3 x 3 kernels at its corners, which overlap in the middle."""
    if weight.shape[-1] == FAST_SIDE:
        return _native(gradient, x, weight, stride, padding, by=1)
    x = pad(x, (padding,) * 4) if padding else x
    rows, columns = ((side - 1) * stride + FAST_SIDE for side in gradient.shape[-2:])
    found, small = torch.empty_like(weight), weight[:, :, :FAST_SIDE, :FAST_SIDE].contiguous()
    for i in (0, weight.shape[-1] - FAST_SIDE):
        for j in (0, weight.shape[-1] - FAST_SIDE):
            corner = x[:, :, i : i + rows, j : j + columns].contiguous(memory_format=torch.channels_last)
            found[:, :, i : i + FAST_SIDE, j : j + FAST_SIDE] = _native(gradient, corner, small, stride, 0, by=1)
    return found


def _native(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, by: int) -> Tensor:
    """PyTorch's gradient by the input (0) or by the weights (1)."""
    wanted = [by == 0, by == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight), wanted
    )[by]
    return found
