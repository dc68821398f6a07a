import math
from dataclasses import replace

import pytest
import torch
from support.fakes import CPU
from support.trainings import SPEC, rigs, training
from torch import nn

from data_cache.dataset import map_rigs
from data_cache.errors import SettingError
from stages.compute import parallel
from stages.training.schedule import Draw
from stages.training.step import Training, TrainingError, augment, term_values


def weights(made: Training) -> list[torch.Tensor]:
    return [value.clone() for value in made.learner.state_dict().values()]


def test_the_averaged_student_is_the_moving_average_of_the_trained_one_by_hand():
    """After the first step it is the trained one; then 0.75 of what it was and 0.25 of that."""
    made, frames = training(replace(SPEC, ema_decay=0.75)), rigs(2)
    made.step([frames], 0)
    first = made.learner.student.classify.weight.clone()
    torch.testing.assert_close(made.student.classify.weight, first)
    made.step([frames], 1)
    second = made.learner.student.classify.weight
    assert not torch.equal(first, second)
    torch.testing.assert_close(made.student.classify.weight, 0.75 * first + 0.25 * second)
    assert made.student is not made.learner.student
    assert training().student.spec == made.student.spec


def frozen_statistics(made: Training) -> Training:
    made.learner.eval()
    return made


def test_two_passes_teach_what_one_does_where_statistics_are_frozen():
    """Both frames have three views and LiDAR everywhere, so that the mean of two passes is that of one."""
    frames, spec = rigs(2), replace(SPEC, accumulate=2)
    one, two = frozen_statistics(training()), frozen_statistics(training(spec))
    halves = [map_rigs(lambda tensor, i=i: tensor[i : i + 1], frames) for i in (0, 1)]
    halves = [replace(half, frame_ids=frames.frame_ids[i : i + 1]) for i, half in enumerate(halves)]
    whole_terms, half_terms = one.step([frames], 0), two.step(halves, 0)
    for name, value in term_values(whole_terms).items():
        assert term_values(half_terms)[name] == pytest.approx(value, rel=1e-4), name
    for mine, theirs in zip(one.learner.parameters(), two.learner.parameters(), strict=True):
        assert mine.grad is not None
        scale = mine.grad.abs().max() + 1e-9
        torch.testing.assert_close(theirs.grad / scale, mine.grad / scale, atol=1e-3, rtol=0)


def test_the_frame_that_makes_a_loss_infinite_is_named_and_nothing_is_changed():
    frames = rigs(2)
    frames.relation[1, 0, 3] = math.inf
    made = training()
    before = weights(made)
    with pytest.raises(TrainingError, match=r"step 5: loss is not finite: .*'relation': nan.*; frames d/1\.") as error:
        made.step([frames], 4)
    assert "d/0" not in str(error.value)
    assert made.learner.training
    changed = [a for a, b in zip(before, weights(made), strict=True) if not torch.equal(a, b)]
    assert all(value.ndim <= 1 for value in changed)  # running statistics, no weights


def test_a_gradient_that_is_not_finite_changes_no_weight():
    made = training()
    before = weights(made)
    made.learner.student.classify.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"step 1: a gradient is not finite .*frames d/0, d/1\."):
        made.step([rigs(2)], 0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(made), strict=True) if a.ndim > 1)


def test_gradients_are_clipped_and_rates_follow_the_schedule():
    made = training(replace(SPEC, clip_norm=1e-3, warmup_steps=4, learning_rate=0.4))
    made.step([rigs(2)], 1)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in made.learner.parameters() if p.grad is not None))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert {group["lr"] for group in made.optimizer.param_groups} == {0.2}


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}])
def test_a_restored_training_goes_on_as_the_one_it_was_taken_from(changes):
    spec, frames = replace(SPEC, **changes), rigs(2)
    made = training(spec)
    made.step([frames], 0)
    kept = {name: value.clone() for name, value in made.tensors().items()}
    other = training(spec)
    other.restore(kept)
    for one in (made, other):
        one.step([frames], 1)
    mine, theirs = made.tensors(), other.tensors()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_learn_much_the_same(precision):
    frames = rigs(2)
    full, half = (term_values(training(precision=p).step([frames], 0)) for p in ("fp32", precision))
    assert half == pytest.approx(full, rel=0.1)
    made = training(precision=precision)
    before = weights(made)
    made.step([frames], 0)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(made), strict=True) if a.ndim > 1)
    assert ("scaler.scale" in made.tensors()) == (precision == "fp16")


def test_fp16_whose_gradients_are_never_finite_ends_and_says_what_to_do():
    """The loss scale is halved by each step that is skipped, here from 2 to 0.5."""
    made, frames = training(precision="fp16"), rigs(2)
    made.scaler.load_state_dict(made.scaler.state_dict() | {"scale": 2.0})
    before = [value.clone() for value in made.learner.parameters()]
    next(made.learner.parameters()).register_hook(lambda gradient: gradient * math.inf)
    made.step([frames], 0)
    with pytest.raises(TrainingError, match=r"step 2: gradients .* in fp16, down to a loss scale of 0.5; set .*bf16"):
        made.step([frames], 1)
    assert all(torch.equal(a, b) for a, b in zip(before, made.learner.parameters(), strict=True))


def test_augmented_frames_are_mirrored_and_jittered_one_by_one():
    frames = rigs(2)
    turned, image = augment(frames, [Draw(True, 1.0, 1.0), Draw(False, 0.5, 1.0)], 1.0)
    assert torch.equal(turned.image[0], frames.image[0, [0, 2, 1]].flip(-1))
    assert torch.equal(turned.image[1], frames.image[1])
    torch.testing.assert_close(image[1], frames.image[1].float() / 255 * 0.5)


def test_without_a_launcher_there_is_one_process_and_nothing_is_shared():
    with parallel.joined("cpu") as device:
        assert (device, parallel.rank(), parallel.process_count(), parallel.leads()) == (CPU, 0, 1, True)
        assert [parallel.any_says(answer, device) for answer in (True, False)] == [True, False]
        counts = torch.tensor([0, 3])
        assert parallel.mean_count(counts).tolist() == [1, 3]
        module = nn.Sequential(nn.BatchNorm2d(2))
        assert type(parallel.share_batch_statistics(module, device)[0]) is nn.BatchNorm2d


def test_half_of_what_a_launcher_sets_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    expected = "RANK, WORLD_SIZE; missing: LOCAL_RANK, MASTER_ADDR, MASTER_PORT; .*unset RANK and WORLD_SIZE"
    with pytest.raises(SettingError, match=expected), parallel.joined("cpu"):
        pass
