"""What a registry's package holds, turned into weights that transformers loads; what is hostile in it does not run."""

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from pipeline.weights.conversion import core_ml_constants, to_safetensors
from pipeline.weights.state_dicts import read_saved_state_dict, read_state_dict


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch owned",)


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=r"system; refused"):
        read_state_dict(pickle.dumps(OrderedDict({"conv1.weight": Hostile()})))
    assert not list(tmp_path.glob("owned"))


class HostileStorage:
    """Hides the hostile pickle inside the bytes that torch unpickles."""

    def __reduce__(self) -> tuple[object, ...]:
        inner = io.BytesIO()
        torch.save(Hostile(), inner)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


def test_a_hostile_pickle_inside_a_storage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        read_state_dict(pickle.dumps(OrderedDict({"conv1.weight": HostileStorage()})))
    assert not list(tmp_path.glob("owned"))


def test_a_pickle_of_something_else_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="expected a state dict, found list"):
        read_state_dict(pickle.dumps([1]))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "resnet.embedder.embedder.convolution.weight"),
        ("bn1.running_var", "resnet.embedder.embedder.normalization.running_var"),
        ("layer1.0.conv2.weight", "resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"),
        ("layer3.1.bn1.bias", "resnet.encoder.stages.2.layers.1.layer.0.normalization.bias"),
        ("layer4.0.downsample.0.weight", "resnet.encoder.stages.3.layers.0.shortcut.convolution.weight"),
        ("layer2.0.downsample.1.bias", "resnet.encoder.stages.1.layers.0.shortcut.normalization.bias"),
        ("fc.bias", "classifier.1.bias"),
    ],
)
def test_the_encoder_is_renamed_and_rounded(theirs: str, ours: str) -> None:
    state = pickle.dumps(OrderedDict({theirs: torch.tensor([0.1, 70.03])}))
    ((name, value),) = load(to_safetensors("torchvision", {"state.pkl": state})).items()
    assert name == ours
    np.testing.assert_array_equal(value, np.array([0.1, 70.03], np.float16), strict=True)


def test_counters_of_the_encoder_keep_their_type() -> None:
    state = pickle.dumps(OrderedDict({"bn1.num_batches_tracked": torch.tensor(7)}))
    (counter,) = load(to_safetensors("torchvision", {"state.pkl": state})).values()
    assert counter.dtype == np.int64 and counter == 7


def test_a_tensor_of_another_model_is_refused() -> None:
    state = pickle.dumps(OrderedDict({"layer5.0.conv1.weight": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"unexpected tensor 'layer5\.0\.conv1'"):
        to_safetensors("torchvision", {"state.pkl": state})


def saved(state: object) -> dict[str, bytes]:
    """A package member that torch.save wrote."""
    with io.BytesIO() as file:
        torch.save(state, file)
        return {"state.pth": file.getvalue()}


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        ("efficientnet-lite", "_conv_stem.weight", "stem.0.weight"),
        ("efficientnet-lite", "_bn0.running_var", "stem.1.running_var"),
        ("efficientnet-lite", "_blocks.0._depthwise_conv.weight", "blocks.0.depthwise.0.weight"),
        ("efficientnet-lite", "_blocks.12._expand_conv.weight", "blocks.12.expand.0.weight"),
        ("efficientnet-lite", "_blocks.12._bn0.bias", "blocks.12.expand.1.bias"),
        ("efficientnet-lite", "_blocks.3._bn1.weight", "blocks.3.depthwise.1.weight"),
        ("efficientnet-lite", "_blocks.3._project_conv.weight", "blocks.3.project.0.weight"),
        ("efficientnet-lite", "_blocks.15._bn2.running_mean", "blocks.15.project.1.running_mean"),
        ("mobilenet-v2", "features.0.0.weight", "stem.0.weight"),
        ("mobilenet-v2", "features.0.1.bias", "stem.1.bias"),
        ("mobilenet-v2", "features.1.conv.0.0.weight", "blocks.0.depthwise.0.weight"),
        ("mobilenet-v2", "features.1.conv.2.bias", "blocks.0.project.1.bias"),
        ("mobilenet-v2", "features.2.conv.0.1.weight", "blocks.1.expand.1.weight"),
        ("mobilenet-v2", "features.17.conv.1.0.weight", "blocks.16.depthwise.0.weight"),
        ("mobilenet-v2", "features.17.conv.2.weight", "blocks.16.project.0.weight"),
        ("mobilenet-v2", "features.9.conv.3.running_var", "blocks.8.project.1.running_var"),
    ],
)
def test_an_encoder_of_ours_is_renamed_and_not_rounded(layout: str, theirs: str, ours: str) -> None:
    """1e-30 is a variance of MobileNetV2; fp16 would make it 0."""
    ((name, value),) = load(to_safetensors(layout, saved({theirs: torch.tensor([0.1, 1e-30])}))).items()
    assert name == ours
    np.testing.assert_array_equal(value, np.array([0.1, 1e-30], np.float32), strict=True)


def test_a_transposed_tensor_keeps_its_elements_in_place() -> None:
    """EfficientNet-lite's are views of TensorFlow's, whose axes have another order."""
    kernel = torch.arange(6.0).view(3, 2).t()[:, :, None, None]
    (found,) = load(to_safetensors("efficientnet-lite", saved({"_conv_stem.weight": kernel}))).values()
    assert found[:, :, 0, 0].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("layout", "classifier", "unknown"),
    [
        ("efficientnet-lite", ("_conv_head.weight", "_bn1.bias", "_fc.weight"), "_blocks.0._se_reduce.weight"),
        ("mobilenet-v2", ("features.18.0.weight", "classifier.1.bias"), "features.1.conv.3.weight"),
    ],
)
def test_the_classifier_is_left_out_and_anything_unknown_refused(
    layout: str, classifier: tuple[str, ...], unknown: str
) -> None:
    assert load(to_safetensors(layout, saved(dict.fromkeys(classifier, torch.zeros(1))))) == {}
    with pytest.raises(ValueError, match=f"unexpected tensor '{unknown.removesuffix('.weight')}'"):
        to_safetensors(layout, saved({unknown: torch.zeros(1)}))


def test_a_hostile_file_of_torch_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for legacy in (False, True):
        with io.BytesIO() as file:
            torch.save({"_conv_stem.weight": Hostile()}, file, _use_new_zipfile_serialization=not legacy)
            content = file.getvalue()
        with pytest.raises(pickle.UnpicklingError, match="system"):
            read_saved_state_dict(content)
    assert not list(tmp_path.glob("owned"))


def test_a_file_of_torch_with_something_else_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="expected a state dict, found list"):
        read_saved_state_dict(saved([1])["state.pth"])


class CoreMl:
    """Writes a miniature model.mil and weight.bin by hand."""

    def __init__(self) -> None:
        self.lines = ["program(1.0)", "{"]
        self.blob = b"\x00\x00\x00\x00\x02\x00\x00\x00" + bytes(56)

    def constant(self, name: str, value: np.ndarray, *, shape: list[int] | None = None) -> None:
        """Append a constant to the blob: a 64 byte header with magic, type 1 = fp16, size and place of its data."""
        start = len(self.blob)
        raw = value.astype("<f2").tobytes()
        header = (
            b"\xef\xbe\xad\xde\x01\x00\x00\x00" + len(raw).to_bytes(8, "little") + (start + 64).to_bytes(8, "little")
        )
        self.blob += header.ljust(64, b"\x00") + raw.ljust(64, b"\x00")
        place = (
            'BLOBFILE(path = tensor<string, []>("@model_path/weights/weight.bin"), '
            f"offset = tensor<uint64, []>({start}))"
        )
        self._line(name, shape or list(value.shape), place)

    def short_constant(self, name: str, hex_floats: str, shape: list[int]) -> None:
        self._line(name, shape, f"[{hex_floats}]")

    def _line(self, name: str, shape: list[int], value: str) -> None:
        kind = f"tensor<fp16, {shape}>"
        label = f'name = tensor<string, []>("model_{name}_to_fp16")'
        self.lines.append(f"  {kind} model_{name}_to_fp16 = const()[{label}, val = {kind}({value})];")

    def members(self) -> dict[str, bytes]:
        lines = [*self.lines, "  tensor<fp16, [1, 2]> cast_3 = cast(x = y)[name = z];", "}"]
        return {"a/model.mil": "\n".join(lines).encode(), "a/weights/weight.bin": self.blob}

    def constants(self) -> dict[str, np.ndarray]:
        members = self.members()
        return dict(core_ml_constants(members["a/model.mil"].decode(), members["a/weights/weight.bin"]))


def mini_teacher() -> CoreMl:
    program = CoreMl()
    program.constant("pretrained_cls_token", np.full((1, 1, 2), 0.5))
    program.short_constant("depth_head_scratch_output_conv2_2_bias", "0x1.8p+1", [1])
    return program


def test_core_ml_constants_are_read_by_hand_worked_values() -> None:
    program = mini_teacher()
    program.constant("pretrained_pos_embed", np.array([[[1.0, -2.0], [3.0, 65504.0]]]))
    program.short_constant("pretrained_norm_bias", "0x1p+0, -0x1.4p-2", [2])
    found = program.constants()
    assert list(found) == [
        "pretrained_cls_token",
        "depth_head_scratch_output_conv2_2_bias",
        "pretrained_pos_embed",
        "pretrained_norm_bias",
    ]
    assert found["depth_head_scratch_output_conv2_2_bias"].tolist() == [3.0]
    assert found["pretrained_pos_embed"].tolist() == [[[1.0, -2.0], [3.0, 65504.0]]]
    assert found["pretrained_norm_bias"].tolist() == [1.0, -0.3125]
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("pretrained_pos_embed", "backbone.embeddings.position_embeddings"),
        ("pretrained_patch_embed_proj_bias", "backbone.embeddings.patch_embeddings.projection.bias"),
        ("pretrained_norm_weight", "backbone.layernorm.weight"),
        ("pretrained_blocks_11_norm2_bias", "backbone.encoder.layer.11.norm2.bias"),
        ("pretrained_blocks_0_attn_proj_weight", "backbone.encoder.layer.0.attention.output.dense.weight"),
        ("pretrained_blocks_3_mlp_fc1_weight", "backbone.encoder.layer.3.mlp.fc1.weight"),
        ("pretrained_blocks_10_ls2_gamma", "backbone.encoder.layer.10.layer_scale2.lambda1"),
        ("depth_head_projects_3_bias", "neck.reassemble_stage.layers.3.projection.bias"),
        ("depth_head_resize_layers_1_weight", "neck.reassemble_stage.layers.1.resize.weight"),
        ("depth_head_scratch_layer1_rn_weight", "neck.convs.0.weight"),
        ("depth_head_scratch_refinenet1_out_conv_bias", "neck.fusion_stage.layers.3.projection.bias"),
        (
            "depth_head_scratch_refinenet3_resConfUnit1_conv2_bias",
            "neck.fusion_stage.layers.1.residual_layer1.convolution2.bias",
        ),
        ("depth_head_scratch_output_conv1_weight", "head.conv1.weight"),
        ("depth_head_scratch_output_conv2_0_weight", "head.conv2.weight"),
    ],
)
def test_the_teacher_is_renamed(theirs: str, ours: str) -> None:
    program = mini_teacher()
    program.constant(theirs, np.array([7.0, 8.0]))
    assert load(to_safetensors("core-ml", program.members()))[ours].tolist() == [7.0, 8.0]


def test_query_key_and_value_are_split_in_this_order() -> None:
    program = mini_teacher()
    program.constant("pretrained_blocks_4_attn_qkv_bias", np.arange(6.0))
    found = load(to_safetensors("core-ml", program.members()))
    attention = "backbone.encoder.layer.4.attention.attention"
    assert [found[f"{attention}.{part}.bias"].tolist() for part in ("query", "key", "value")] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_tensors_outside_the_traced_program_are_zeros() -> None:
    program = mini_teacher()
    program.constant("depth_head_scratch_refinenet4_resConfUnit2_conv1_weight", np.ones((2, 2, 3, 3)))
    found = load(to_safetensors("core-ml", program.members()))
    zeros = {name: value.shape for name, value in found.items() if not value.any()}
    assert zeros == {
        "backbone.embeddings.mask_token": (1, 2),
        "neck.fusion_stage.layers.0.residual_layer1.convolution1.weight": (2, 2, 3, 3),
    }


def test_a_core_ml_constant_that_does_not_fit_its_shape_is_refused() -> None:
    program = CoreMl()
    program.constant("pretrained_norm_bias", np.zeros(2), shape=[3])
    with pytest.raises(ValueError, match=r"pretrained_norm_bias: expected \[3\], found 2 values"):
        program.constants()


def test_a_core_ml_blob_of_another_kind_is_refused() -> None:
    program = mini_teacher()
    program.blob = program.blob.replace(b"\xef\xbe\xad\xde\x01", b"\xef\xbe\xad\xde\x02")
    with pytest.raises(ValueError, match="no fp16 entry at byte 64"):
        program.constants()
    program.blob = b"\x00\x00\x00\x00\x03" + program.blob[5:]
    with pytest.raises(ValueError, match="expected storage version 2, found 3"):
        program.constants()
