from dataclasses import replace

import pytest
import torch

from data_cache.errors import SettingError
from stages.training.schedule import Draw, draws, learning_rate, sample_order, split
from stages.training.spec import TrainStudentSpec

SPEC = TrainStudentSpec(steps=6, batch_rigs=8)


def test_every_epoch_shows_every_frame_once_and_a_suffix_of_steps_is_the_same_order():
    order = sample_order(seed=3, groups=[range(5)], batch_rigs=2, steps=range(10))
    flat = [position for batch in order for position in batch]
    epochs = [flat[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert sample_order(3, [range(5)], 2, range(7, 10)) == order[7:]
    assert sample_order(4, [range(5)], 2, range(10)) != order


def test_the_rate_warms_up_then_falls_to_zero():
    spec = replace(SPEC, steps=102, warmup_steps=2, learning_rate=0.4)
    assert [learning_rate(step, spec) for step in (0, 1, 2)] == pytest.approx([0.2, 0.4, 0.4])
    assert learning_rate(52, spec) == pytest.approx(0.2)
    assert learning_rate(102, spec) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("process_count", "accumulate"), [(1, 1), (2, 1), (1, 2), (4, 2), (2, 4)])
def test_processes_and_passes_share_a_step_in_order(process_count, accumulate):
    batch = list(range(100, 108))
    shares = [split(batch, rank, process_count, accumulate) for rank in range(process_count)]
    assert {len(passes) for passes in shares} == {accumulate}
    together = [[frame for passes in shares for frame in passes[i]] for i in range(accumulate)]
    assert [frame for frames in together for frame in frames] == batch
    assert together == split(batch, 0, 1, accumulate)
    assert len({len(part) for passes in shares for part in passes}) == 1


def test_the_second_of_two_processes_with_two_passes_by_hand():
    assert split(list("abcdefgh"), 1, 2, 2) == [["c", "d"], ["g", "h"]]


def test_frames_that_cannot_be_shared_out_are_refused():
    with pytest.raises(SettingError, match="batch_rigs: expected a multiple of 3 processes x accumulate = 1, got 8"):
        split(list(range(8)), 0, 3, 1)


def test_what_is_drawn_depends_on_seed_and_step_alone():
    first = draws(SPEC, 3)
    torch.rand(5)
    assert draws(SPEC, 3) == first
    assert draws(SPEC, 4) != first
    assert draws(replace(SPEC, seed=1), 3) != first
    many = [draw for step in range(200) for draw in draws(SPEC, step)]
    assert 0.45 < sum(draw.mirrored for draw in many) / len(many) < 0.55
    for name in ("brightness", "contrast"):
        values = [getattr(draw, name) for draw in many]
        assert 0.8 <= min(values) < 0.81
        assert 1.19 < max(values) <= 1.2


def test_what_is_off_is_not_drawn_and_changes_nothing_else():
    both, no_flip, no_jitter = (draws(s, 7) for s in (SPEC, replace(SPEC, flip=False), replace(SPEC, jitter=False)))
    assert [(d.brightness, d.contrast) for d in no_flip] == [(d.brightness, d.contrast) for d in both]
    assert not any(d.mirrored for d in no_flip)
    assert no_jitter == [Draw(d.mirrored, 1.0, 1.0) for d in both]
    assert any(d.mirrored for d in both)


def test_two_groups_take_turns_and_each_is_gone_through_before_it_repeats():
    groups = [[4, 7], [0, 1, 2, 3, 5, 6]]
    order = sample_order(seed=3, groups=groups, batch_rigs=3, steps=range(6))
    assert all(batch[0] in groups[0] and batch[1] in groups[1] and batch[2] in groups[0] for batch in order)
    assert sorted(position for batch in order[:1] for position in batch[::2]) == [4, 7]
    assert sorted(batch[1] for batch in order) == groups[1]
    assert sample_order(3, groups, 3, range(4, 6)) == order[4:]
