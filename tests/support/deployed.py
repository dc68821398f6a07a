"""A small student to deploy, and rigs that it looks at."""

import numpy as np
import torch

from stages.deploy.runtimes import DeployedRigs
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.spec import BinSpec
from support.fakes import STUDENT_SIZE
from support.students import opened, trained


def deployable(encoder: str = "resnet-10", attention_width: int = 16) -> Student:
    """Small, and as after some training: its attention speaks, its centres move, its depth differs from pixel to pixel.

    Without attention, norms are as before training: through the many layers of other encoders, random ones would
    amplify rounding by hundreds.

    Canonical centres of even shares are 2 ** (16 - (k + 0.5)) metres, k = 0 to 15.
    """
    torch.manual_seed(0)
    spec = StudentSpec(
        encoder=encoder,
        pretrained=False,
        input_size=STUDENT_SIZE,
        near_m=1.0,
        far_m=2.0**16,
        focal_px=40.0,
        decoder_channels=8,
        attention_width=attention_width,
    )
    made = Student(spec, BinSpec(count=16)).eval()
    if made.attention is not None:
        opened(trained(made).attention)
    with torch.no_grad():
        made.classify.weight.mul_(8)
        made.centers.widths[2].weight.normal_(0, 1, generator=torch.Generator().manual_seed(3))
    return made


def three_rigs() -> DeployedRigs:
    """Three rigs of three cameras with a lens each; the second rig lacks its second camera."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 3, 3, 4, 8), dtype=np.uint8).repeat(8, 3).repeat(8, 4)
    focal_px = np.array([[40, 50, 60], [41, 0, 61], [42, 52, 62]], np.float32)
    image[1, 1] = 0
    return DeployedRigs(image, focal_px)


def one(rigs: DeployedRigs, i: int) -> DeployedRigs:
    """Rig i of them."""
    return DeployedRigs(rigs.image[i : i + 1], rigs.focal_px[i : i + 1])


OPERATORS = """
Add And Cast Clip Concat Conv DepthToSpace Div Exp Expand Gather Gemm Greater LayerNormalization MatMul Max MaxPool Mul
Not Pad ReduceMean ReduceMin ReduceSum Relu Reshape Resize Shape Slice Softmax Split Squeeze Sub Tanh Transpose
Unsqueeze Where
"""
"""A graph of these: each is in the table of operators that TensorRT 10 supports, in the types that occur here."""
