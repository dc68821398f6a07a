import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.students import opened, random, trained
from support.trainings import TINY
from torch import nn

from data_cache.errors import SettingError
from stages.student.cross_view import RingAttention
from stages.student.encoder import ENCODERS, STRIDES, build_encoder
from stages.student.fold import folded
from stages.student.head import MetricBinCenters, depth_and_sigma, expected_depth_m, upsampled_m
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


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_maps_have_the_promised_strides_and_channels(name):
    with torch.inference_mode():
        maps = build_encoder(name, None).eval()(random(1, 3, 64, 96)).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(ENCODERS[name].channels, STRIDES, strict=True)
    ]


def test_encoder_weights_come_from_the_folder(tmp_path: Path):
    torch.manual_seed(1)
    saved = build_encoder("resnet-18", None)
    saved.save_pretrained(tmp_path)
    loaded = build_encoder("resnet-18", tmp_path).state_dict()
    assert loaded.keys() == saved.state_dict().keys()
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded[name], value), name
    with pytest.raises(
        SettingError, match=r"expected resnet-34 \(depths \(3, 4, 6, 3\)\), found depths \[2, 2, 2, 2\]"
    ):
        build_encoder("resnet-34", tmp_path)


def test_resnet_10_starts_from_the_first_block_of_each_stage_of_resnet_18(tmp_path: Path):
    torch.manual_seed(1)
    saved = build_encoder("resnet-18", None)
    saved.save_pretrained(tmp_path)
    loaded, larger = build_encoder("resnet-10", tmp_path).state_dict(), saved.state_dict()
    assert loaded.keys() == {name for name in larger if ".layers.1." not in name}
    for name, value in loaded.items():
        assert torch.equal(value, larger[name]), name
    build_encoder("resnet-34", None).save_pretrained(tmp_path / "34")
    with pytest.raises(
        SettingError, match=r"expected resnet-18 \(depths \(2, 2, 2, 2\)\), found depths \[3, 4, 6, 3\]"
    ):
        build_encoder("resnet-10", tmp_path / "34")


def save_weights(folder: Path, name: str, *, without: str = "") -> dict[str, torch.Tensor]:
    """Random weights of an encoder of ours, as `surround weights` would leave them."""
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"model_type": "{name}"}}')
    tensors = {key: value + 1 for key, value in build_encoder(name, None).state_dict().items() if key != without}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_weights_of_an_encoder_of_ours_come_from_the_folder(tmp_path: Path):
    saved = save_weights(tmp_path / "ours", "mobilenet-v2")
    loaded = build_encoder("mobilenet-v2", tmp_path / "ours").state_dict()
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name


def test_weights_of_another_encoder_are_refused(tmp_path: Path):
    save_weights(tmp_path / "lite0", "efficientnet-lite0")
    for name, expected in (
        ("efficientnet-lite1", r"efficientnet-lite1 \(model_type 'efficientnet-lite1'\)"),
        ("resnet-10", r"resnet-18 \(model_type 'resnet'\)"),
    ):
        with pytest.raises(SettingError, match=f"lite0: expected {expected}, found model_type 'efficientnet-lite0'"):
            build_encoder(name, tmp_path / "lite0")


def test_weights_of_an_encoder_of_ours_that_lack_a_tensor_are_refused(tmp_path: Path):
    save_weights(tmp_path / "ours", "mobilenet-v2", without="blocks.3.project.1.bias")
    with pytest.raises(SettingError, match=r"ours: the weights lack 1 tensors, first blocks\.3\.project\.1\.bias"):
        build_encoder("mobilenet-v2", tmp_path / "ours")


def test_an_encoder_without_imagenet_weights_refuses_a_folder(tmp_path: Path):
    with pytest.raises(SettingError, match="convnextv2-atto: expected .* found .* set student.pretrained = false"):
        build_encoder("convnextv2-atto", tmp_path)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != TINY.encoder])
def test_a_student_of_any_encoder_sees_and_has_its_channels(name):
    """Tokens of a 96 x 160 image are of the stride-16 map, the third: 160 channels in convnextv2-atto."""
    student = make_student(spec=replace(SPEC, encoder=name))
    out = see(student)
    narrow = {"efficientnet-lite0": 112, "efficientnet-lite1": 112, "efficientnet-lite2": 120, "mobilenet-v2": 96}
    channels = (narrow | {"convnextv2-atto": 160, "convnextv2-nano": 320}).get(name, 256)
    assert out.tokens.shape == (1, 3, 60, channels)
    assert student.token_channels == channels
    assert ((out.depth_m > 1) & (out.depth_m < 80)).all()


def test_centres_of_an_exported_student_bear_rounding_to_16_bits():
    """They are those of training; in bf16 they are off by 0.6 % at most, where the running sum is off by 4 %."""
    centers = MetricBinCenters(8, 64, 0.5, 120.0, 112.0)
    width = torch.softmax(math.log(2) * random(20, 64, seed=1).tanh(), -1)

    def summed(width: torch.Tensor) -> torch.Tensor:
        return torch.exp(centers.log_far - (width.cumsum(-1) - width / 2) * (centers.log_far - centers.log_near))

    expected_m = summed(width)
    torch.testing.assert_close(centers._deployed_m(width), expected_m, rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_m = centers._deployed_m(width.bfloat16()).float()
    torch.testing.assert_close(rounded_m, expected_m, rtol=0.01, atol=0)
    assert (summed(width.bfloat16()) / expected_m - 1).abs().max() > 0.03


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


def test_expected_depth_by_hand():
    """Odds 3 to 1 between 8 m and 2 m: 6.5 m; even between 10 m and 1 m: 5.5 m; in float32 whatever the logits are."""
    logit = torch.tensor([[math.log(3.0), 0.0], [2.0, 2.0]]).view(2, 2, 1, 1)
    depth_m = expected_depth_m(logit, torch.tensor([[8.0, 2.0], [10.0, 1.0]]))
    torch.testing.assert_close(depth_m, torch.tensor([6.5, 5.5]).view(2, 1, 1))
    assert expected_depth_m(logit.bfloat16(), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("exporting", [False, True])
def test_sigma_by_hand(exporting, monkeypatch):
    """Centres e^3, e^1, e^0 have log cells of width 2, 1.5, 1. Odds 3 to 1 to 0: the mean of log depth is 2.5, the
    variance of the centres 0.75 * 0.25 + 0.25 * 2.25 = 0.75, that within the cells (0.75 * 4 + 0.25 * 2.25) / 12. All
    probability in the last bin: its own width / sqrt(12), whatever its neighbours are.
    """
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    logit = torch.tensor([[math.log(3.0), 0.0, -1e4], [-1e4, -1e4, 0.0]]).view(2, 3, 1, 1)
    centers_m = torch.tensor([3.0, 1.0, 0.0]).exp().expand(2, 3)
    depth_m, sigma = depth_and_sigma(logit, centers_m)
    torch.testing.assert_close(depth_m, expected_depth_m(logit, centers_m))
    expected = torch.tensor([0.75 + (0.75 * 4 + 0.25 * 2.25) / 12, 1 / 12]).sqrt().view(2, 1, 1)
    torch.testing.assert_close(sigma, expected, rtol=1e-5, atol=0)


def test_two_ways_to_sigma_are_one_and_depth_is_the_same_up_to_rounding(monkeypatch):
    """On a CPU sigma is a difference of two moments up to 8; each sum of 64 terms is rounded by 64 * 2 ** -24 of it."""
    logit, centers_m = 4 * random(3, 64, 5, 7), torch.linspace(math.log(120), math.log(0.5), 64).exp().expand(3, 64)
    logit[0, 9] += 50  # one bin has all of it
    with torch.autocast("cpu", dtype=torch.bfloat16):  # would round a matrix product to 8 bits
        depth_m, sigma = depth_and_sigma(logit, centers_m)
    torch.testing.assert_close(depth_m, expected_depth_m(logit, centers_m), rtol=2 * 64 * 2**-24, atol=0)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(sigma**2, depth_and_sigma(logit, centers_m)[1] ** 2, rtol=0, atol=64 * 8 * 2**-24)
    width = math.log(240) / 63
    torch.testing.assert_close(sigma[0], torch.full((5, 7), width / 12**0.5), rtol=0.01, atol=0)


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


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(5, 7), (1, 3)])
def test_exported_or_not_depth_is_upsampled_alike(factor, size, monkeypatch):
    """Weights are exact, multiples of 1/8 by axis, and all terms positive: each rounding is one of the sum itself.

    A mixture of 9 pixels is rounded 9 times, one of 4 pixels 4 times, by 2 ** -24 each: 16 are more than enough.
    """
    depth_m = random(3, *size).exp()
    expected_m = upsampled_m(depth_m, factor)
    assert expected_m.shape == (3, factor * size[0], factor * size[1])
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(upsampled_m(depth_m, factor), expected_m, rtol=16 * 2**-24, atol=0)


@pytest.mark.parametrize("exporting", [False, True])
def test_upsampled_depth_by_hand(exporting, monkeypatch):
    """Fine pixels lie 3/8 and 1/8 of a coarse one from its centre, on either side; beyond the border, depth stays."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    found_m = upsampled_m(torch.tensor([[[8.0, 16.0], [0.0, 32.0]]]), 4)[0]
    assert found_m[0].tolist() == [8, 8, 9, 11, 13, 15, 16, 16]
    assert found_m[:, 0].tolist() == [8, 8, 7, 5, 3, 1, 0, 0]
    assert found_m[3, 4] == 5 / 8 * 13 + 3 / 8 * 20


def test_depth_in_training_and_in_evaluation_is_the_same_function():
    """Two ways to the same sum; batch norms are folded away first, which differ between the modes by design."""
    ready = folded(make_student())
    expected = see(ready).depth_m
    torch.testing.assert_close(see(ready.train()).depth_m, expected, rtol=1e-5, atol=1e-5)


def test_encoder_weights_that_lack_a_layer_are_a_setting_error(tmp_path: Path):
    """Transformers would start the layer at random, without a word."""
    build_encoder("resnet-18", None).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if name.endswith("convolution.weight"))
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=f"the weights lack 1 tensors, first {gone}"):
        build_encoder("resnet-18", tmp_path)


def extreme_centers(logits: torch.Tensor, focal_px: float = 50.0) -> torch.Tensor:
    head = MetricBinCenters(4, len(logits), near_m=0.5, far_m=80.0, focal_px=50.0)
    with torch.no_grad():
        head.widths[-1].weight.zero_()
        head.widths[-1].bias.copy_(logits)
        return head(random(1, 4), torch.tensor([focal_px]))[0]


@pytest.mark.parametrize("count", [2, 64, 256])
@pytest.mark.parametrize("where", [0, 1, -1])
def test_centres_strictly_decrease_whatever_the_logits_say(count, where):
    logits = torch.full((count,), -1e4)
    logits[where] = 1e4
    centers_m = extreme_centers(logits)
    assert (centers_m.diff() < 0).all()
    assert ((centers_m > 0.5) & (centers_m < 80)).all()


def test_centres_by_hand():
    """Equal widths, two bins in [1, 16] m: a quarter and three quarters of log 16 below log 16, 8 m and 2 m.

    At 50 pixels of focal length, and so 16 m and 4 m at 100 pixels.
    """
    head = MetricBinCenters(4, 2, near_m=1.0, far_m=16.0, focal_px=50.0)
    nn.init.zeros_(head.widths[-1].weight)
    nn.init.zeros_(head.widths[-1].bias)
    centers_m = head(random(2, 4), torch.tensor([50.0, 100.0]))
    torch.testing.assert_close(centers_m, torch.tensor([[8.0, 2.0], [16.0, 4.0]]))


def test_a_wide_bin_moves_the_centres_that_follow_it():
    """Bin 0 of 4, the farthest, twice an even share, the others half of it: 4/7 and 1/7 of the log range."""
    centers_m = extreme_centers(torch.tensor([20.0, -20, -20, -20]))
    assert centers_m[0].item() == pytest.approx(80 * (0.5 / 80) ** (2 / 7), rel=1e-4)
    assert centers_m[3].item() == pytest.approx(80 * (0.5 / 80) ** (1 - 1 / 14), rel=1e-4)


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
