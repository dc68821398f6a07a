import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fakes import TEACHER_SIZE, random_images, tiny_teacher
from transformers import AutoConfig, AutoModelForDepthEstimation

from data_cache.errors import SettingError
from stages.targets.space import Space, to_disparity
from stages.teacher.base import Teacher, TeacherOutput
from stages.teacher.transformers_depth import PREPROCESSING, TransformersTeacher

PATCH = 14


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> TransformersTeacher:
    return tiny_teacher(teacher_folder)


@pytest.fixture
def copied(teacher_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher_folder, tmp_path / "copy"))


@dataclass(frozen=True, kw_only=True)
class PaperTeacher:
    """A teacher that inherits nothing and looks at nothing."""

    name: str = "paper"
    licence: str = "none"
    space: Space = "disparity"
    weights_sha256: str = "abc"
    preprocessing: str = "none"
    input_size: tuple[int, int] = (42, 70)
    precision: str = "fp32"
    runtime: str = "torch"

    def __call__(self, images: torch.Tensor) -> TeacherOutput:
        raise AssertionError("only its name and settings are asked for")


def test_outputs_have_the_promised_shapes(teacher):
    out = teacher(random_images(2))
    assert out.prediction.shape == (2, *TEACHER_SIZE)
    assert out.features.shape == (2, 16, TEACHER_SIZE[0] // PATCH, TEACHER_SIZE[1] // PATCH)
    assert out.prediction.std() > 0
    assert not out.prediction.requires_grad


def test_prediction_and_tokens_are_the_models_own(teacher, teacher_folder):
    """Asked by hand: RGB / 255, ImageNet mean and std; token 0 is the class, token 1 + 5 r + c is row r, column c."""
    images = random_images(2)
    model = AutoModelForDepthEstimation.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        asked = model(pixel_values=pixels, output_hidden_states=True)
    out = teacher(images)
    torch.testing.assert_close(out.prediction, asked.predicted_depth)
    hidden = asked.hidden_states[-1]
    assert hidden.shape[1] == 1 + 3 * 5
    for r, c in ((0, 0), (0, 4), (2, 1)):
        torch.testing.assert_close(out.features[:, :, r, c], hidden[:, 1 + 5 * r + c])


def test_a_repainted_patch_changes_its_own_token_most(teacher):
    images = random_images(1)
    other = images.clone()
    other[0, PATCH : 2 * PATCH, 3 * PATCH : 4 * PATCH] = 255 - other[0, PATCH : 2 * PATCH, 3 * PATCH : 4 * PATCH]
    change = (teacher(other).features - teacher(images).features).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 5) == (1, 3)


def test_the_same_images_give_the_same_output(teacher, teacher_folder):
    first, second = teacher(random_images(2)), tiny_teacher(teacher_folder)(random_images(2))
    assert torch.equal(first.prediction, second.prediction)
    assert torch.equal(first.features, second.features)


def test_bf16_is_close_and_comes_back_as_float32(teacher, teacher_folder):
    out, exact = tiny_teacher(teacher_folder, precision="bf16")(random_images(1)), teacher(random_images(1))
    assert out.prediction.dtype == out.features.dtype == torch.float32
    assert not torch.equal(out.prediction, exact.prediction)
    torch.testing.assert_close(out.prediction, exact.prediction, rtol=0.1, atol=0.1)


def test_images_of_another_size_are_refused(teacher):
    with pytest.raises(ValueError, match=r"tiny takes \[42, 70\] images, got \[42, 84\]"):
        teacher(random_images(1, (42, 84)))


@pytest.mark.parametrize("size", [(42, 72), (40, 70)])
def test_an_input_size_that_does_not_fit_the_patches_is_a_setting_error(teacher_folder, size):
    with pytest.raises(SettingError, match=rf"input_size \[{size[0]}, {size[1]}\]: tiny takes multiples of 14"):
        tiny_teacher(teacher_folder, input_size=size)


def test_a_folder_without_a_model_is_a_setting_error(tmp_path):
    with pytest.raises(SettingError, match="holds no depth model that transformers can load"):
        tiny_teacher(tmp_path)
    with pytest.raises(SettingError, match="holds no depth model that transformers can load"):
        tiny_teacher(tmp_path / "nowhere")


def test_a_model_that_estimates_no_depth_is_a_setting_error(copied):
    AutoConfig.for_model("resnet").save_pretrained(copied)
    with pytest.raises(SettingError, match="holds no depth model that transformers can load"):
        tiny_teacher(copied)


def test_a_depth_model_without_patches_is_a_setting_error(tmp_path):
    config = AutoConfig.for_model("glpn", hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    AutoModelForDepthEstimation.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match="found glpn, whose backbone has no patches"):
        tiny_teacher(tmp_path)


def test_weights_that_lack_a_layer_are_a_setting_error(copied):
    """Transformers would start the layer at random, without a word."""
    weights = load_file(copied / "model.safetensors")
    del weights["head.conv3.bias"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"the weights lack 1 tensors, first head\.conv3\.bias"):
        tiny_teacher(copied)


def test_weights_of_another_shape_are_a_setting_error(copied):
    weights = load_file(copied / "model.safetensors")
    weights["head.conv3.bias"] = torch.zeros(2)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match="holds no depth model that transformers can load"):
        tiny_teacher(copied)


def test_truncated_weights_are_a_setting_error(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(SettingError, match="holds no depth model that transformers can load"):
        tiny_teacher(copied)


def test_the_space_is_read_from_the_models_config(teacher, copied):
    assert teacher.space == "disparity"
    config = json.loads((copied / "config.json").read_text())
    config |= {"depth_estimation_type": "metric", "max_depth": 20}
    (copied / "config.json").write_text(json.dumps(config))
    assert tiny_teacher(copied).space == "depth"


def test_the_three_spaces_by_hand():
    values = torch.tensor([0.5, 4.0])
    torch.testing.assert_close(to_disparity(values, "disparity"), torch.tensor([0.5, 4.0]))
    torch.testing.assert_close(to_disparity(values, "depth"), torch.tensor([2.0, 0.25]))
    torch.testing.assert_close(to_disparity(values.log(), "log_depth"), torch.tensor([2.0, 0.25]))


def test_a_depth_of_zero_has_a_finite_disparity():
    assert to_disparity(torch.tensor([0.0, -1.0]), "depth").tolist() == pytest.approx([1000, 1000])


def test_anything_with_the_right_attributes_is_a_teacher(teacher):
    assert isinstance(teacher, Teacher)
    assert isinstance(PaperTeacher(), Teacher)
    assert teacher.preprocessing == PREPROCESSING


@pytest.fixture(scope="module")
def real_teacher() -> TransformersTeacher:
    folder = os.environ.get("SURROUND_WEIGHTS")
    if not folder or not (Path(folder) / "depth-anything-v2-small" / "model.safetensors").is_file():
        pytest.skip("the real teacher: SURROUND_WEIGHTS names no folder that holds depth-anything-v2-small")
    return tiny_teacher(Path(folder) / "depth-anything-v2-small", input_size=(84, 140))


def test_the_real_teacher_sees_something_and_the_same_twice(real_teacher):
    row = torch.arange(84)[:, None, None].expand(84, 140, 3)
    column = torch.arange(140)[None, :, None].expand(84, 140, 3)
    ramp = ((2 * row + 40 * (column // 20 % 2)) % 256).to(torch.uint8)
    images = torch.stack([ramp, random_images(1, (84, 140))[0]])
    out = real_teacher(images)
    assert out.prediction.shape == (2, 84, 140)
    assert out.features.shape == (2, 384, 6, 10)
    assert out.prediction.isfinite().all()
    assert (out.prediction >= 0).all()
    assert (out.prediction.std((1, 2)) > 0.01 * out.prediction.mean((1, 2))).all()
    again = real_teacher(images)
    assert torch.equal(again.prediction, out.prediction)
    assert torch.equal(again.features, out.features)
    assert math.isclose(real_teacher(images[:1]).prediction.mean(), out.prediction[0].mean(), rel_tol=1e-3)
