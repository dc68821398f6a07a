"""View-relation matrices: cosines between tokens of neighbouring views, defined once for teacher and student."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

GRID = (6, 10)
DEFINITION = "cosine of average-pooled last-layer tokens, ring neighbours (i, i + 1 mod V)"
"""Part of the cache identity: a change to the definitions below must change this text."""


def pool_tokens(features: Float[Tensor, "N C gh gw"]) -> Float[Tensor, "N P C"]:
    """Average-pool a feature map to the 6 x 10 token grid, in row-major order, with tokens of unit length."""
    pooled = adaptive_avg_pool2d(features.float(), GRID)
    return normalize(pooled.flatten(start_dim=2).transpose(1, 2), dim=-1)


def ring_relations(tokens: Float[Tensor, "*batch V P C"]) -> Float[Tensor, "*batch V P P"]:
    """R_i = Z_i Z_{i+1}^T for ring neighbours: cosines of tokens of view i (rows) and of view i + 1 (columns)."""
    return tokens @ tokens.roll(-1, dims=-3).transpose(-1, -2)


def all_relations(tokens: Float[Tensor, "B V P C"]) -> Float[Tensor, "B VV P P"]:
    """Cosine of each token of view i (rows) with each of view j (columns), for all pairs, at i * V + j."""
    return torch.einsum("bipc,bjqc->bijpq", tokens, tokens).flatten(1, 2)


def pairs_valid(view_valid: Bool[Tensor, "B V"]) -> Bool[Tensor, "B VV"]:
    """True at i * V + j where views i and j both exist."""
    return (view_valid[:, :, None] & view_valid[:, None]).flatten(1)


def neighbours_valid(view_valid: Bool[Tensor, "*batch V"]) -> Bool[Tensor, "*batch V"]:
    """True at i where views i and i + 1 mod V both exist; a gap in the ring is never bridged."""
    return view_valid & view_valid.roll(-1, dims=-1)


def mirror_tokens(tokens: Float[Tensor, "V P C"]) -> Float[Tensor, "V P C"]:
    """Tokens of the mirrored rig: views j = -i mod V, columns of the grid reversed."""
    view_count = tokens.shape[0]
    order = torch.tensor([-j % view_count for j in range(view_count)], device=tokens.device)
    grid = tokens[order].reshape(view_count, *GRID, tokens.shape[-1])
    return grid.flip(2).reshape_as(tokens)


def mirror_relations(relation: Float[Tensor, "V P P"]) -> Float[Tensor, "V P P"]:
    """Relations of the mirrored rig: views j = -i mod V, token columns reversed.

    The pair (j, j + 1) of the mirrored ring is the pair (-j - 1, -j) of the original ring in reverse, so its relation
    is the transpose of R_{-j-1}.
    """
    view_count = relation.shape[0]
    order = torch.tensor([(-j - 1) % view_count for j in range(view_count)], device=relation.device)
    grid = relation[order].transpose(-1, -2).reshape(view_count, *GRID, *GRID)
    return grid.flip(2, 4).reshape_as(relation)
