import pytest
import torch

from stages.targets.relations import (
    GRID,
    all_relations,
    mirror_relations,
    mirror_tokens,
    neighbours_valid,
    pairs_valid,
    pool_tokens,
    ring_relations,
)

P = GRID[0] * GRID[1]


def random_features(view_count: int, height: int = 6, width: int = 10) -> torch.Tensor:
    return torch.randn(view_count, 5, height, width, generator=torch.Generator().manual_seed(view_count))


def test_tokens_by_hand():
    """A 12 x 20 map pools in blocks of 2 x 2; row 1, column 3 of the grid is token 13 and has length one."""
    features = torch.zeros(1, 2, 12, 20)
    features[0, :, 2, 6] = torch.tensor([3.0, 8.0])
    features[0, :, 3, 7] = torch.tensor([3.0, 0.0])
    tokens = pool_tokens(features)
    assert tokens.shape == (1, P, 2)
    torch.testing.assert_close(tokens[0, 13], torch.tensor([0.6, 0.8]))
    assert tokens[0].any(1).nonzero().flatten().tolist() == [13]


def test_empty_features_give_zeros():
    assert (pool_tokens(torch.zeros(2, 4, 6, 10)) == 0).all()


@pytest.mark.parametrize("size", [(6, 10), (7, 13), (28, 46)])
def test_tokens_have_length_one(size):
    tokens = pool_tokens(random_features(2, *size).half())
    assert tokens.shape == (2, P, 5)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, P))


def test_relations_by_hand():
    """Rows are tokens of view i, columns tokens of view i + 1, and the last view's neighbour is the first."""
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [1.0, 0.0]], [[0.0, -1.0], [0.8, 0.6]]])
    relation = ring_relations(tokens)
    torch.testing.assert_close(relation[0], torch.tensor([[0.6, 1.0], [0.8, 0.0]]))
    torch.testing.assert_close(relation[1], torch.tensor([[-0.8, 0.96], [0.0, 0.8]]))
    torch.testing.assert_close(relation[2], torch.tensor([[0.0, -1.0], [0.8, 0.6]]))


def test_a_batch_of_relations_is_each_frames_own():
    tokens = pool_tokens(random_features(6)).unflatten(0, (2, 3))
    torch.testing.assert_close(ring_relations(tokens), torch.stack([ring_relations(frame) for frame in tokens]))


def test_a_gap_in_the_ring_is_never_bridged():
    """Without view 2 of six, the pairs (1, 2) and (2, 3) are gone and (1, 3) is no pair."""
    valid = torch.tensor([[True, True, False, True, True, True], [True] * 5 + [False]])
    expected = [[True, False, False, True, True, True], [True, True, True, True, False, False]]
    assert neighbours_valid(valid).tolist() == expected


@pytest.mark.parametrize("view_count", [1, 2, 3, 6])
def test_mirrored_relations_are_the_relations_of_mirrored_views(view_count):
    features = random_features(view_count)
    mirrored = features[[-j % view_count for j in range(view_count)]].flip(-1)
    relation = mirror_relations(ring_relations(pool_tokens(features)))
    torch.testing.assert_close(relation, ring_relations(pool_tokens(mirrored)))


@pytest.mark.parametrize("view_count", [1, 2, 3, 6])
def test_two_mirrors_change_nothing(view_count):
    relation = torch.randn(view_count, P, P, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mirror_relations(mirror_relations(relation)), relation, rtol=0, atol=0)


def test_a_mirrored_relation_by_hand():
    """Six views: the pair (0, 1) of the mirror is the old (5, 0) read backwards.

    Old: view 5 row 2, column 9 (token 29) with view 0 row 4, column 1 (token 41).
    New: view 0 row 4, column 8 (token 48) with view 1, once 5, row 2, column 0 (token 20).
    """
    relation = torch.zeros(6, P, P)
    relation[5, 29, 41] = 0.7
    mirrored = mirror_relations(relation)
    assert mirrored.nonzero().tolist() == [[0, 48, 20]]


def test_all_relations_hold_those_of_the_ring_at_their_place():
    tokens = pool_tokens(random_features(4))[None]
    found = all_relations(tokens)
    assert found.shape == (1, 16, P, P)
    for i in range(4):
        torch.testing.assert_close(found[0, i * 4 + (i + 1) % 4], ring_relations(tokens)[0, i])
    torch.testing.assert_close(found[0, 1 * 4 + 3, 7, 20], tokens[0, 1, 7] @ tokens[0, 3, 20])


def test_pairs_are_valid_where_both_views_are_there():
    assert pairs_valid(torch.tensor([[True, False, True]])).view(3, 3).tolist() == [
        [True, False, True], [False, False, False], [True, False, True]
    ]  # fmt: skip


def test_mirrored_tokens_are_those_of_the_mirrored_features():
    features = random_features(3)
    mirrored = features[[0, 2, 1]].flip(-1)
    torch.testing.assert_close(mirror_tokens(pool_tokens(features)), pool_tokens(mirrored))
