import math
from dataclasses import replace

import pytest
import torch
from support.students import opened, random, trained
from support.tiny_encoder import REAL_ENCODERS
from torch import nn

from stages.student.cross_view import RingAttention
from stages.student.fold import folded
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.relations import pool_tokens
from stages.targets.spec import BinSpec

SPEC = StudentSpec(
    encoder="resnet-18",
    pretrained=False,
    input_size=(96, 160),
    near_m=1.0,
    far_m=80.0,
    focal_px=100.0,
    decoder_channels=8,
    attention_width=16,
)
BINS = BinSpec(count=16)
ALL_SIX = torch.ones(1, 6, dtype=torch.bool)


def make_student(bins: BinSpec = BINS, spec: StudentSpec = SPEC) -> Student:
    torch.manual_seed(0)
    return Student(spec, bins).eval()


def see(student: Student, focal_px: float = 100.0, views: int = 3):
    image = random(1, views, 3, *student.spec.input_size).sigmoid()
    with torch.inference_mode():
        return student(image, torch.full((1, views), focal_px), torch.ones(1, views, dtype=torch.bool))


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student()


@pytest.fixture(scope="module")
def output(student: Student):
    return see(student)


def ring_attention() -> RingAttention:
    torch.manual_seed(0)
    return opened(RingAttention(8, 16))


@pytest.mark.parametrize(("stride", "size"), [(2, (48, 80)), (4, (24, 40))])
def test_outputs_have_the_promised_shapes(stride, size):
    out = see(make_student(BinSpec(count=16, prob_stride=stride)))
    assert out.logit.shape == (1, 3, 16, *size)
    assert out.centers_m.shape == (1, 3, 16)
    assert out.depth_m.shape == (1, 3, 96, 160)
    assert out.tokens.shape == (1, 3, 60, 256)  # stride 16: the deepest map of at least 6 x 10
    for value in (out.logit, out.centers_m, out.depth_m, out.tokens):
        assert value.dtype == torch.float32
        assert value.isfinite().all()


def test_depth_is_the_expected_centre_upsampled(output):
    expected = torch.einsum("bvkhw,bvk->bvhw", output.logit.softmax(2), output.centers_m)
    upsampled = nn.functional.interpolate(expected, size=(96, 160), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.depth_m, upsampled)
    assert ((output.depth_m > 1) & (output.depth_m < 80)).all()


def test_twice_the_focal_length_is_exactly_twice_the_depth(student, output):
    doubled = see(student, focal_px=200.0)
    assert torch.equal(doubled.depth_m, 2 * output.depth_m)
    assert torch.equal(doubled.centers_m, 2 * output.centers_m)
    assert torch.equal(doubled.logit, output.logit)


def test_each_rig_and_view_of_a_batch_is_its_own(student):
    image = random(2, 3, 3, 96, 160).sigmoid()
    focal_px, valid = torch.tensor([[90.0, 100, 110], [120, 130, 140]]), torch.ones(2, 3, dtype=torch.bool)
    with torch.inference_mode():
        together = student(image, focal_px, valid)
        alone = student(image[1:], focal_px[1:], valid[1:])
    torch.testing.assert_close(together.depth_m[1], alone.depth_m[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.tokens[1], alone.tokens[0], rtol=1e-4, atol=1e-4)


def test_tokens_come_from_before_the_attention(student):
    """With an attention that speaks, depth changes and tokens do not; they are the pooled stride-16 map."""
    image, focal_px = random(1, 3, 3, 96, 160).sigmoid(), torch.full((1, 3), 100.0)
    valid = torch.ones(1, 3, dtype=torch.bool)
    speaking = make_student()
    opened(speaking.attention)
    with torch.inference_mode():
        silent, mixed = student(image, focal_px, valid), speaking(image, focal_px, valid)
        maps = student.encoder(((image - student.mean) / student.std)[0]).feature_maps
    assert not torch.allclose(silent.depth_m, mixed.depth_m)
    assert torch.equal(silent.tokens, mixed.tokens)
    torch.testing.assert_close(silent.tokens[0], pool_tokens(maps[2]), rtol=1e-4, atol=1e-5)


def test_without_attention_a_view_knows_nothing_of_the_others():
    alone = make_student(spec=replace(SPEC, attention_width=0))
    image, focal_px, valid = random(1, 3, 3, 96, 160).sigmoid(), torch.full((1, 3), 100.0), torch.ones(1, 3, dtype=bool)
    other = image.clone()
    other[:, 1:] = random(1, 2, 3, 96, 160, seed=8).sigmoid()
    speaking = make_student()
    opened(speaking.attention)
    with torch.inference_mode():
        for student, same in ((alone, True), (speaking, False)):
            before, after = student(image, focal_px, valid).depth_m, student(other, focal_px, valid).depth_m
            assert torch.allclose(before[:, 0], after[:, 0]) == same


def test_tokens_of_a_large_input_come_from_the_deepest_map():
    large = make_student(spec=replace(SPEC, input_size=(192, 320)))
    assert see(large, views=1).tokens.shape == (1, 1, 60, 512)


@pytest.mark.parametrize("size", [(32, 64), (32, 32)])
def test_a_small_input_has_the_tokens_of_the_first_map(size):
    """At 32 x 32 pixels even the first map, 8 x 8, is below the grid of 6 x 10."""
    tiny = make_student(spec=replace(SPEC, input_size=size))
    assert see(tiny).tokens.shape == (1, 3, 60, 64)


def test_everything_that_learns_gets_a_finite_gradient_even_with_a_missing_view():
    student = make_student(BinSpec(count=16, prob_stride=2)).train()
    opened(student.attention)
    image = random(1, 3, 3, 96, 160).sigmoid() * torch.tensor([1.0, 1, 0]).view(1, 3, 1, 1, 1)
    out = student(image, torch.full((1, 3), 100.0), torch.tensor([[True, True, False]]))
    (out.depth_m[:, :2].mean() + out.tokens[:, :2, 0].mean()).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", REAL_ENCODERS)
def test_a_student_of_any_encoder_sees_and_has_its_channels(name):
    """Tokens of a 96 x 160 image are of the stride-16 map, the third: 160 channels in convnextv2-atto."""
    student = make_student(spec=replace(SPEC, encoder=name))
    out = see(student)
    narrow = {"efficientnet-lite0": 112, "efficientnet-lite1": 112, "efficientnet-lite2": 120, "mobilenet-v2": 96}
    channels = (narrow | {"convnextv2-atto": 160, "convnextv2-nano": 320}).get(name, 256)
    assert out.tokens.shape == (1, 3, 60, channels)
    assert student.token_channels == channels
    assert ((out.depth_m > 1) & (out.depth_m < 80)).all()


@pytest.mark.parametrize("encoder", ["resnet-10", "efficientnet-lite0", "mobilenet-v2", "convnextv2-atto"])
def test_a_folded_student_says_the_same_without_batch_norms(encoder):
    """In float64, where layer after layer of random weights cannot make a difference of rounding; depth is float32."""
    student = trained(make_student(BinSpec(count=16, prob_stride=2), replace(SPEC, encoder=encoder))).double()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    ready = folded(student)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
    assert all(m.inplace for m in ready.modules() if isinstance(m, nn.ReLU | nn.ReLU6))
    expected, found = see(student), see(ready)
    torch.testing.assert_close(found.depth_m, expected.depth_m, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-6, atol=1e-9)
    assert expected.depth_m.std() > 0.1
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_folded_convolution_by_hand():
    """Weight 3, mean 1, variance 4, scale 2, shift 5: (3 x - 1) / 2 * 2 + 5 = 3 x + 4."""
    student = make_student()
    convolution, norm = student.fuse[0][0], student.fuse[0][1]
    norm.eps = 0.0
    for tensor, value in ((norm.running_mean, 1.0), (norm.running_var, 4.0), (norm.weight, 2.0), (norm.bias, 5.0)):
        tensor.data.fill_(value)
    convolution.weight.data.fill_(3.0)
    ready = folded(student).fuse[0][0]
    assert ready.weight.unique().item() == pytest.approx(3.0)
    assert ready.bias.unique().item() == pytest.approx(4.0)


def test_a_student_in_training_is_not_folded():
    with pytest.raises(ValueError, match=r"expected a student in evaluation mode, .* call .eval\(\) first"):
        folded(make_student().train())


def test_a_student_that_is_asked_how_sure_it_is_says_the_same_depth():
    model, image = make_student(), random(1, 6, 3, 96, 160)
    focal_px = torch.full((1, 6), 100.0)
    with torch.inference_mode():
        plain, sure = model(image, focal_px, ALL_SIX), model(image, focal_px, ALL_SIX, sigma=True)
        longer = model(image, 2 * focal_px, ALL_SIX, sigma=True)
    assert plain.sigma is None
    torch.testing.assert_close(sure.depth_m, plain.depth_m, rtol=1e-5, atol=0)
    assert sure.sigma.shape == sure.depth_m.shape
    torch.testing.assert_close(longer.sigma, sure.sigma, rtol=1e-3, atol=1e-4)  # a longer lens makes nobody surer
    assert (sure.sigma > math.log(80) / 16 / 2 / 12**0.5).all()  # a bin is at least half as wide as an even share


def test_an_untrained_attention_changes_nothing():
    torch.manual_seed(0)
    features = random(2, 6, 8, 3, 5)
    assert torch.equal(RingAttention(8, 16)(features, ALL_SIX.expand(2, 6)), features)


def test_a_view_hears_its_two_neighbours_and_nobody_else():
    attention, features = ring_attention(), random(1, 6, 8, 3, 5)
    other = features.clone()
    other[0, 0] += random(8, 3, 5, seed=1)
    with torch.inference_mode():
        changed = (attention(other, ALL_SIX) - attention(features, ALL_SIX)).abs().amax((0, 2, 3, 4)) > 1e-5
    assert changed.tolist() == [True, True, False, False, False, True]


def test_the_next_and_the_previous_view_speak_with_their_own_voice():
    """Of six views only 0 and 1 are there: 0 hears its next neighbour alone, 1 its previous alone."""
    attention, features = ring_attention(), random(1, 6, 8, 3, 5)
    valid = torch.tensor([[True, True, False, False, False, False]])
    for view, heard in ((0, 0), (1, 1)):
        attention.zero_grad()
        attention(features, valid)[0, view].square().sum().backward()
        assert attention.side.grad is not None
        assert attention.side.grad[heard].abs().amax() > 1e-6
        assert (attention.side.grad[1 - heard] == 0).all()


def test_a_missing_neighbour_is_not_asked():
    attention, features = ring_attention(), random(1, 6, 8, 3, 5)
    valid = torch.tensor([[True, True, False, True, True, True]])
    other = features.clone()
    other[0, 2] = 1e4 * random(8, 3, 5, seed=1)
    with torch.inference_mode():
        before, after = attention(features, valid), attention(other, valid)
        asked = attention(features, ALL_SIX)
    torch.testing.assert_close(before[0, valid[0]], after[0, valid[0]], rtol=0, atol=0)
    assert not torch.allclose(before[0, 1], asked[0, 1])
    assert not torch.allclose(before[0, 3], asked[0, 3])
    torch.testing.assert_close(before[0, [0, 4, 5]], asked[0, [0, 4, 5]])


def test_a_view_without_neighbours_hears_nothing_and_stays_finite():
    attention, features = ring_attention(), random(1, 6, 8, 3, 5).requires_grad_()
    out = attention(features, torch.tensor([[True, False, False, True, True, False]]))
    bias = attention.outward.bias
    assert bias is not None
    torch.testing.assert_close(out[0, 0], features[0, 0] + bias[:, None, None], rtol=0, atol=0)
    assert not torch.allclose(out[0, 3], features[0, 3])
    out.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())


def test_the_attention_knows_where_in_the_image_a_neighbour_speaks():
    """Attention alone would not notice if the pixels of a neighbour changed places."""
    attention, features = ring_attention(), random(1, 6, 8, 3, 5)
    for axis in (-1, -2):
        other = features.clone()
        other[0, 1] = features[0, 1].flip(axis)
        with torch.inference_mode():
            assert not torch.allclose(attention(other, ALL_SIX)[0, 0], attention(features, ALL_SIX)[0, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoder": "vit"}, "encoder: expected one of resnet-10, resnet-18, resnet-34, .* got 'vit'"),
        ({"input_size": (100, 160)}, r"input_size: expected positive multiples of 32, got \[100, 160\]"),
        ({"input_size": (0, 160)}, r"input_size: expected positive multiples of 32, got \[0, 160\]"),
        ({"near_m": 80.0}, "expected 0 < near_m < far_m, got near_m=80.0, far_m=80.0"),
        ({"near_m": 0.0}, "expected 0 < near_m < far_m, got near_m=0.0"),
        ({"far_m": math.inf}, "expected 0 < near_m < far_m, got near_m=1.0, far_m=inf"),
        ({"focal_px": -1.0}, "focal_px: expected a positive number of pixels, got -1.0"),
        ({"decoder_channels": 4}, "decoder_channels >= 8 .* got 4 and 16"),
        ({"attention_width": 24}, "attention_width a multiple of 16, or 0 for no attention, got 8 and 24"),
        ({"attention_width": -16}, "attention_width a multiple of 16, or 0 for no attention, got 8 and -16"),
    ],
)
def test_an_impossible_spec_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **wrong)


def test_depth_in_training_and_in_evaluation_is_the_same_function():
    """Two ways to the same sum; batch norms are folded away first, which differ between the modes by design."""
    ready = folded(make_student())
    expected = see(ready).depth_m
    torch.testing.assert_close(see(ready.train()).depth_m, expected, rtol=1e-5, atol=1e-5)
