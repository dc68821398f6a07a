"""Light attention between neighbouring views of the ring."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

HEADS = 4


class RingAttention(nn.Module):
    """Cross-attention from each view to its two ring neighbours; missing neighbours are masked.

    Residual, with an output of zero at the start, so that an untrained module changes nothing.
    """

    def __init__(self, channels: int, width: int):
        """Attention in `width` channels over features of `channels` channels."""
        super().__init__()
        self.inward = nn.Conv2d(channels, width, 1)
        self.norm = nn.LayerNorm(width)
        self.side = nn.Parameter(torch.randn(2, width) * 0.02)  # embeddings of the next and the previous neighbour
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.outward = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.outward.weight)
        assert self.outward.bias is not None
        nn.init.zeros_(self.outward.bias)

    def forward(
        self, features: Float[Tensor, "B V C H W"], view_valid: Bool[Tensor, "B V"]
    ) -> Float[Tensor, "B V C H W"]:
        """Add the neighbours' contribution; features keep their shape."""
        B, V, _, H, W = features.shape
        flat = self.inward(features.flatten(0, 1))
        tokens = self.norm(flat.flatten(2).transpose(1, 2) + _grid_encoding(H, W, flat)).view(B, V, H * W, -1)
        asked = torch.cat([tokens.roll(-1, 1) + self.side[0], tokens.roll(1, 1) + self.side[1]], dim=2).flatten(0, 1)
        absent = ~torch.stack([view_valid.roll(-1, 1), view_valid.roll(1, 1)], dim=2).flatten(0, 1)
        alone = absent.all(1)
        # With every key masked, softmax gives NaN; a view without neighbours is not masked, and its answer is dropped.
        mask = (absent & ~alone[:, None]).repeat_interleave(H * W, dim=1)
        # The attention is position-first inside. On a transposed view its projections would run position by position,
        # each with a copy of the weights; so the memory is laid out position-first.
        query, asked = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (tokens.flatten(0, 1), asked))
        answer, _ = self.attention(query, asked, asked, key_padding_mask=mask, need_weights=False)
        answer = torch.where(alone[:, None, None], 0.0, answer)
        added: Tensor = self.outward(answer.transpose(1, 2).reshape(B * V, -1, H, W))
        return features + added.view_as(features)


def _grid_encoding(height: int, width: int, like: Float[Tensor, "N D H W"]) -> Float[Tensor, "HW D"]:
    """Sines and cosines of row and column (Vaswani et al. 2017, in two dimensions)."""
    quarter = like.shape[1] // 4
    frequency = torch.exp(torch.arange(quarter, device=like.device) / quarter * -4.0) * torch.pi
    row = torch.linspace(-1, 1, height, device=like.device)[:, None, None] * frequency / 0.1
    column = torch.linspace(-1, 1, width, device=like.device)[None, :, None] * frequency / 0.1
    row, column = row.expand(height, width, -1), column.expand(height, width, -1)
    encoding = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)
    return encoding.flatten(0, 1).to(like.dtype)
