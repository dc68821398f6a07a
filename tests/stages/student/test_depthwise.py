import pytest
import torch
from torch import nn

from stages.student.depthwise import DepthwiseConv2d, same_padded

KINDS = pytest.mark.parametrize(
    ("kernel", "stride", "same"),
    [(3, 1, False), (3, 2, False), (3, 2, True), (5, 1, False), (5, 2, False), (5, 2, True)],
)


def gradients(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(layer(x), (x, layer.weight), gradient)


def plain_twin(layer: DepthwiseConv2d) -> nn.Module:
    """The same convolution with PyTorch's own gradients: in evaluation mode nothing of ours is used."""
    twin = DepthwiseConv2d(layer.in_channels, layer.kernel_size[0], layer.stride[0], same=layer.same).to(layer.weight)
    twin.load_state_dict(layer.state_dict())
    return twin.eval()


@KINDS
def test_gradients_are_those_of_pytorch(kernel, stride, same):
    """Sums of at most 336 products below 25: as many roundings of 2^-53 * 336 * 25 are below 4e-10."""
    torch.manual_seed(0)
    layer = DepthwiseConv2d(3, kernel, stride, same=same).double()
    x = torch.randn(2, 3, 12, 14, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(layer(x))
    found, expected = gradients(layer, x, gradient), gradients(plain_twin(layer), x, gradient)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4e-10)


@KINDS
def test_gradients_in_bf16_are_exact_where_bf16_is(kernel, stride, same):
    """Of -1, 0 and 1 every sum of at most 2 * 8 * 10 products is a whole number below 256, which bf16 holds."""
    torch.manual_seed(0)
    layer = DepthwiseConv2d(3, kernel, stride, same=same).bfloat16()
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape))
    x = torch.randint(-1, 2, (2, 3, 8, 10)).bfloat16()
    gradient = torch.randint(-1, 2, layer(x).shape).bfloat16()
    exact = gradients(plain_twin(layer.double()), x.double(), gradient.double())
    for one, other in zip(gradients(layer.bfloat16(), x, gradient), exact, strict=True):
        assert torch.equal(one.double(), other)


def test_a_gradient_by_hand():
    """Output row 1, column 0 of a 5 x 5 kernel with stride 2 starts at row 0, column -2 of the input.

    The input is 1 at row 4, column 1: row 4, column 3 of the kernel sees it.
    """
    layer = DepthwiseConv2d(1, 5, stride=2)
    x, gradient = torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 3, 4)
    x[0, 0, 4, 1] = 3.0
    gradient[0, 0, 1, 0] = 2.0
    by_x, by_weight = gradients(layer, x, gradient)
    expected = torch.zeros(5, 5)
    expected[4, 3] = 6.0
    assert torch.equal(by_weight[0, 0], expected)
    assert by_x[0, 0, 4, 1] == 2.0 * layer.weight[0, 0, 4, 3]


def test_autocast_computes_in_its_precision():
    layer = DepthwiseConv2d(2, 3)
    x = torch.ones(1, 2, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        seen = layer(x)
    assert seen.dtype == torch.bfloat16
    seen.float().sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


def test_a_frozen_weight_gets_no_gradient():
    layer = DepthwiseConv2d(2, 5)
    layer.weight.requires_grad_(False)
    x = torch.ones(1, 2, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize(("kernel", "before", "after"), [(3, 0, 1), (5, 1, 2)])
def test_same_padding_puts_the_odd_zero_last(kernel, before, after):
    padded = same_padded(torch.ones(1, 1, 4, 6), kernel)
    assert padded.shape == (1, 1, 4 + kernel - 2, 6 + kernel - 2)
    assert padded[0, 0, before, before] == padded[0, 0, -1 - after, -1 - after] == 1
    assert padded[0, 0, :before].sum() == padded[0, 0, -after:].sum() == 0
