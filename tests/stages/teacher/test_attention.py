import math
from pathlib import Path

import pytest
import torch
from support.fakes import TEACHER_SIZE, random_images, tiny_teacher
from torch.nn.functional import scaled_dot_product_attention

from stages.teacher.attention import NAME, blocked_attention, use_blocked_attention

CPU = torch.device("cpu")


def random_heads(tokens: int, *, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_blocks_give_the_attention_of_the_fused_kernel(tokens, scaling):
    query, key, value = random_heads(tokens)
    expected = scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)
    out, weights = blocked_attention(torch.nn.Identity(), query, key, value, None, scaling=scaling)
    torch.testing.assert_close(out, expected)
    assert weights is None


def test_attention_by_hand():
    """Two tokens, scores 0 and log 3 for the first query: weights 1/4 and 3/4 of the values 8 and 4."""
    query = torch.tensor([[[[1.0], [0.0]]]])
    key = torch.tensor([[[[0.0], [math.log(3)]]]])
    value = torch.tensor([[[[8.0], [4.0]]]])
    out, _ = blocked_attention(torch.nn.Identity(), query, key, value, None, scaling=1.0)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([5.0, 6.0]))


def test_a_mask_is_kept():
    query, key, value = random_heads(5)
    mask = torch.zeros(2, 1, 5, 5)
    mask[..., 3:] = -math.inf
    out, _ = blocked_attention(torch.nn.Identity(), query, key, value, mask)
    expected, _ = blocked_attention(torch.nn.Identity(), query, key[:, :, :3], value[:, :, :3], None)
    torch.testing.assert_close(out, expected)


def test_only_a_bf16_model_on_a_cpu_without_amx_is_switched_over_and_says_the_same(
    teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    fused = tiny_teacher(teacher_folder, precision="bf16")
    assert fused.attention == "sdpa"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    blocked = tiny_teacher(teacher_folder, precision="bf16")
    assert (blocked.attention, tiny_teacher(teacher_folder).attention) == (NAME, "sdpa")
    assert blocked.model.backbone.config._attn_implementation == NAME
    images = random_images(2, TEACHER_SIZE)
    one, other = fused(images).prediction, blocked(images).prediction
    assert (one - other).abs().mean() < 0.02 * one.std()


def test_a_model_without_such_a_backbone_is_left_alone():
    model = torch.nn.Linear(2, 2)
    model.dtype = torch.bfloat16
    assert use_blocked_attention(model, CPU) == "sdpa"
