"""The network that corrects the teacher's depth in metres."""

import math

import torch
from support.students import random

from stages.student.refiner import MOST, Refiner
from stages.student.spec import StudentSpec

SPEC = StudentSpec(
    encoder="resnet-10",
    pretrained=False,
    input_size=(32, 64),
    near_m=0.5,
    far_m=120.0,
    focal_px=45.0,
    decoder_channels=8,
)


def seen() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, depth in metres and disparity of two rigs of three views."""
    depth_m = 2 + 50 * random(2, 3, 32, 64, seed=2).sigmoid()
    return random(2, 3, 3, 32, 64, seed=1).sigmoid(), depth_m, 1 / depth_m


def test_untrained_it_changes_no_depth():
    image, depth_m, disparity = seen()
    log_m = Refiner(SPEC)(image, depth_m, disparity)
    assert torch.equal(log_m, depth_m.log())


def test_a_correction_by_hand_and_its_bound():
    """A correction of 0.6 everywhere is 1.5 tanh(0.4) = 0.56992; one of 100 is cut to 1.5."""
    image, depth_m, disparity = seen()
    refiner = Refiner(SPEC).eval()
    for correction, expected in ((0.6, 0.56992), (100.0, MOST)):
        torch.nn.init.constant_(refiner.pixels.bias, correction)
        found = refiner(image, depth_m, disparity) - depth_m.log()
        torch.testing.assert_close(found, torch.full_like(found, expected), atol=1e-4, rtol=0)


def test_it_sees_the_image_and_the_teachers_depth():
    """Each input changes the correction; so does the depth of a single view, in that view alone."""
    image, depth_m, disparity = seen()
    refiner = Refiner(SPEC).eval()
    torch.nn.init.normal_(refiner.pixels.weight)

    def correction(*inputs: torch.Tensor) -> torch.Tensor:
        return refiner(*inputs) - inputs[1].log()

    before = correction(image, depth_m, disparity)
    assert not torch.allclose(correction(1 - image, depth_m, disparity), before)
    assert not torch.allclose(correction(image, depth_m, 1 - disparity), before)
    other = depth_m.clone()
    other[0, 1] *= math.e
    change = (correction(image, other, disparity) - before).abs().amax((-2, -1))
    assert change[0, 1] > 1e-3
    change[0, 1] = 0
    assert change.max() < 1e-5
