"""Every family of teachers through the code that loads the real ones, with random weights of the real classes."""

import importlib.util
import json
import math
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fakes import tiny_teacher
from support.tiny_teachers import save_tiny, save_tiny_marigold
from transformers import AutoModelForDepthEstimation

from data_cache.errors import SettingError
from stages.targets.bins import affine_invariant_map
from stages.targets.space import Space, to_disparity
from stages.teacher.base import Teacher
from stages.teacher.marigold import MarigoldTeacher
from stages.teacher.transformers_depth import PREPROCESSING, depth_pro_depth_m, token_grid

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None,
    reason="diffusers is not installed; pip install 'surround-distill[diffusion]'",
)
HALF = "RGB stretched bicubic antialiased, mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5)"
STEPS = "RGB stretched bicubic antialiased, -1 to 1; 2 steps of DDIMScheduler from noise of seed 0"


@dataclass(frozen=True)
class Expected:
    """What a family's tiny teacher must give."""

    input_size: tuple[int, int]
    space: Space
    prediction: tuple[int, int]
    features: tuple[int, int, int]
    preprocessing: str = HALF


FAMILIES = {
    "depth anything": Expected((42, 70), "disparity", (42, 70), (16, 3, 5), PREPROCESSING),
    "depth anything metric": Expected((42, 70), "depth", (42, 70), (16, 3, 5), PREPROCESSING),
    "zoedepth": Expected((64, 96), "depth", (64, 96), (16, 4, 6)),
    "zoedepth of two heads": Expected((64, 96), "depth", (64, 96), (16, 4, 6)),
    "depth pro": Expected((128, 128), "depth", (256, 256), (16, 4, 4)),
    "depth pro without field of view": Expected((128, 128), "disparity", (256, 256), (16, 4, 4)),
    "dpt": Expected((64, 64), "disparity", (64, 64), (16, 4, 4)),
    "dpt of beit": Expected((64, 96), "disparity", (64, 96), (16, 4, 6)),
    "dpt of swinv2": Expected((64, 96), "disparity", (64, 96), (64, 2, 3)),
    "marigold": Expected((32, 64), "affine_depth", (32, 64), (16, 8, 16), STEPS),
    "marigold lcm": Expected((32, 64), "affine_depth", (32, 64), (16, 8, 16), STEPS.replace("DDIM", "LCM")),
}
KINDS = [pytest.param(kind, marks=needs_diffusers if kind.startswith("marigold") else ()) for kind in FAMILIES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny teachers, saved when first asked for."""

    class Saved(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            self[kind] = save_tiny(tmp_path_factory.mktemp("teachers") / kind.replace(" ", "-"), kind)
            return self[kind]

    return Saved()


def random_images(count: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randint(0, 256, (count, size[0] // 2, size[1] // 2, 3), dtype=torch.uint8, generator=generator)
    return blobs.repeat_interleave(2, 1).repeat_interleave(2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_gives_the_promised_sizes_and_space(folders, kind):
    expected = FAMILIES[kind]
    teacher = tiny_teacher(folders[kind], expected.input_size)
    assert isinstance(teacher, Teacher)
    out = teacher(random_images(3, expected.input_size))
    assert (teacher.space, teacher.preprocessing) == (expected.space, expected.preprocessing)
    assert out.prediction.shape == (3, *expected.prediction)
    assert out.features.shape == (3, *expected.features)
    assert out.prediction.dtype == out.features.dtype == torch.float32
    for values in (out.prediction, out.features):
        assert values.isfinite().all()
        assert not values.requires_grad
        assert (values.flatten(1).std(1) > 1e-4).all()
        assert not torch.equal(values[0], values[1])
    if expected.space == "depth":
        assert (out.prediction > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_seen_the_same_again_and_in_any_company(folders, kind):
    size = FAMILIES[kind].input_size
    images = random_images(3, size)
    out = tiny_teacher(folders[kind], size)(images)
    again = tiny_teacher(folders[kind], size)(images)
    assert torch.equal(again.prediction, out.prediction)
    assert torch.equal(again.features, out.features)
    alone = tiny_teacher(folders[kind], size)(images[1:2])
    torch.testing.assert_close(alone.prediction[0], out.prediction[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(alone.features[0], out.features[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_side_by_side_do_not_disturb_each_other(folders, kind):
    size = FAMILIES[kind].input_size
    teacher, images = tiny_teacher(folders[kind], size), random_images(2, size)
    expected = [teacher(images[i : i + 1]) for i in range(2)]
    found = {}

    def look(i: int) -> None:
        for _ in range(3):
            found[i] = teacher(images[i : i + 1])

    threads = [threading.Thread(target=look, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        torch.testing.assert_close(found[i].prediction, expected[i].prediction, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[i].features, expected[i].features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_close(folders, kind):
    size = FAMILIES[kind].input_size
    images = random_images(1, size)
    exact, rounded = (tiny_teacher(folders[kind], size, precision)(images).prediction for precision in ("fp32", "bf16"))
    assert not torch.equal(exact, rounded)
    assert ((rounded - exact).abs().mean() / exact.abs().mean()).item() < 0.1


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("zoedepth", (64, 80), r"input_size \[64, 80\]: tiny takes multiples of 32"),
        ("depth pro", (128, 192), r"tiny takes images of one size, \[128, 128\]"),
        ("depth pro", (256, 256), r"tiny takes images of one size, \[128, 128\]"),
        ("dpt", (64, 96), "tiny takes square images"),
        ("dpt of swinv2", (64, 80), "tiny takes multiples of 32"),
        pytest.param("marigold", (32, 62), "tiny takes multiples of 4", marks=needs_diffusers),
    ],
)
def test_a_size_that_a_family_cannot_take_is_a_setting_error(folders, kind, size, message):
    with pytest.raises(SettingError, match=message):
        tiny_teacher(folders[kind], size)


def test_depth_pro_in_metres_by_hand():
    """At a field of view of 90 degrees the width is twice the focal length: canonical 0.25 is 1 / (0.25 * 2) = 2 m."""
    canonical = torch.tensor([[[0.25, 0.0]], [[0.25, 1e9]]])
    depth_m = depth_pro_depth_m(canonical, torch.tensor([90.0, 2 * math.degrees(math.atan(0.25))]))
    torch.testing.assert_close(depth_m, torch.tensor([[[2.0, 1e4]], [[8.0, 1e-4]]]))


def test_depth_pro_is_what_its_own_post_processing_says(folders):
    """`post_process_depth_estimation` of transformers, written out: it needs torchvision."""
    images = random_images(2, (128, 128))
    model = AutoModelForDepthEstimation.from_pretrained(folders["depth pro"]).eval()
    with torch.inference_mode():
        asked = model(pixel_values=images.permute(0, 3, 1, 2) / 127.5 - 1)
    width = 256
    focal_px = 0.5 * width / torch.tan(0.5 * torch.deg2rad(asked.field_of_view))
    expected = 1.0 / (asked.predicted_depth * width / focal_px[:, None, None]).clamp(1e-4, 1e4)
    assert (asked.field_of_view > 10).all()
    torch.testing.assert_close(tiny_teacher(folders["depth pro"], (128, 128))(images).prediction, expected)


def test_a_repainted_corner_changes_its_own_corner_of_depth_pros_grid(folders):
    teacher, images = tiny_teacher(folders["depth pro"], (128, 128)), random_images(1, (128, 128))
    other = images.clone()
    other[0, :32, 96:] = 255 - other[0, :32, 96:]
    change = (teacher(other).features - teacher(images).features).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 4) == (0, 3)


def test_zoedepth_heads_are_chosen_image_by_image(folders, tmp_path):
    """Two images that want different heads; in one batch they would vote for one."""
    images = random_images(2, (64, 96))
    pixels = images.permute(0, 3, 1, 2) / 127.5 - 1
    model = AutoModelForDepthEstimation.from_pretrained(folders["zoedepth of two heads"]).eval()
    with torch.inference_mode():
        logits = torch.cat([model(pixel_values=image[None]).domain_logits for image in pixels])
        model.metric_head.mlp_classifier.linear2.bias -= logits.mean(0)
        alone = [model(pixel_values=image[None]) for image in pixels]
        together = model(pixel_values=pixels).predicted_depth
    assert alone[0].domain_logits.argmax() != alone[1].domain_logits.argmax()
    model.save_pretrained(tmp_path)
    prediction = tiny_teacher(tmp_path, (64, 96))(images).prediction
    torch.testing.assert_close(prediction, torch.cat([a.predicted_depth for a in alone]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(prediction, together, rtol=1e-3)


def test_mean_and_std_of_the_folder_win(folders, tmp_path):
    folder = save_tiny(tmp_path, "zoedepth")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}))
    teacher = tiny_teacher(folder, (64, 96))
    assert teacher.preprocessing.endswith("mean (0.1, 0.2, 0.3) and std (1.0, 1.0, 1.0)")
    images = random_images(1, (64, 96))
    assert not torch.equal(teacher(images).prediction, tiny_teacher(folders["zoedepth"], (64, 96))(images).prediction)
    path.write_text("{}")
    with pytest.raises(SettingError, match=r"preprocessor_config.json: expected image_mean and image_std"):
        tiny_teacher(folder, (64, 96))


def test_tokens_of_a_backbone_with_stages_by_hand():
    """64 x 96 in patches of 4, halved three times: 2 x 3; one special token comes first."""
    tokens = torch.arange(7.0).reshape(1, 7, 1)
    grid = token_grid(tokens, (64, 96), 4)
    assert grid[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(SettingError, match="found 60"):
        token_grid(torch.zeros(1, 60, 1), (64, 96), 4)


def test_affine_depth_by_hand():
    """The log map of the bins, turned round: depth 0 is u = 1, depth 1 is u = 0, depth 0.09 is 1 - log 10 / log 101."""
    disparity = to_disparity(torch.tensor([[0.0, 0.09, 0.09, 1.0]]), "affine_depth")
    torch.testing.assert_close(disparity, torch.tensor([[100.0, 10.0, 10.0, 1 / 1.01]]))
    u = affine_invariant_map(disparity[None], (1, 4))[0]
    torch.testing.assert_close(u, torch.tensor([[1.0, 0.5010, 0.5010, 0.0]]), rtol=0, atol=5e-3)


@needs_diffusers
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "LCMScheduler"])
def test_marigold_predicts_what_its_own_pipeline_predicts(tmp_path, scheduler):
    import diffusers

    folder = save_tiny_marigold(tmp_path, scheduler)
    images = random_images(1, (32, 64))
    pipeline = diffusers.MarigoldDepthPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    pixels = images[0].permute(2, 0, 1) / 255
    expected = pipeline(pixels, processing_resolution=0, generator=noise, output_type="pt").prediction
    teacher = tiny_teacher(folder, (32, 64))
    assert isinstance(teacher, MarigoldTeacher)
    torch.testing.assert_close(teacher(images).prediction, expected[:, 0])


@needs_diffusers
def test_a_marigold_folder_that_lacks_something_is_a_setting_error(tmp_path):
    folder = save_tiny_marigold(tmp_path)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_out.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"unet: the weights lack 1 tensors, first conv_out\.bias"):
        tiny_teacher(folder, (32, 64))
    path.unlink()
    with pytest.raises(SettingError, match="holds no Marigold depth pipeline"):
        tiny_teacher(folder, (32, 64))


def test_without_diffusers_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SettingError, match=r"needs pip install 'surround-distill\[diffusion\]'"):
        tiny_teacher(tmp_path, (32, 64))


@needs_diffusers
def test_diffusers_brings_no_torchvision(folders):
    tiny_teacher(folders["marigold"], (32, 64))
    assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]
