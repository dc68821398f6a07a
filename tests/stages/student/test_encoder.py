"""Encoders: their maps, and the weights they start from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.students import random
from support.tiny_encoder import REAL_ENCODERS

from data_cache.errors import SettingError
from stages.student.encoder import ENCODERS, STRIDES, build_encoder


@pytest.mark.parametrize("name", REAL_ENCODERS)
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


def test_encoder_weights_that_lack_a_layer_are_a_setting_error(tmp_path: Path):
    """Transformers would start the layer at random, without a word."""
    build_encoder("resnet-18", None).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if name.endswith("convolution.weight"))
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=f"the weights lack 1 tensors, first {gone}"):
        build_encoder("resnet-18", tmp_path)
