"""What the options of reading in [data] do to the frames of a run and to the identity of its cache."""

import dataclasses

import pytest
from support.fakes import tiny_identity

from data_cache.shards.identity import SplitFrames
from pipeline.recipe.config import load_recipe
from pipeline.runs.splits import frames_to_learn, frames_to_test, open_data
from pipeline.runs.stage_one import decided_identity

FRAMES = SplitFrames(("a", "b"), ())
OPTIONS = {"limit_scenes": 1, "limit_frames": 2, "lidar": "both", "nearby_sweep_s": 0.1}


def test_at_their_defaults_they_leave_the_identity_of_older_caches_alone():
    identity = tiny_identity(FRAMES)
    assert not identity.stored().keys() & OPTIONS.keys()
    hashes = {dataclasses.replace(identity, **{name: value}).sha256 for name, value in OPTIONS.items()}
    assert len({identity.sha256, *hashes}) == 5


@pytest.mark.parametrize("name", OPTIONS)
def test_each_of_them_is_insisted_on_by_name(name):
    expected = decided_identity(load_recipe("demo", [f"data.{name}={OPTIONS[name]}"]))
    assert {key: pair for key, pair in tiny_identity(FRAMES).differences(expected).items() if key in OPTIONS} == {
        name: (getattr(tiny_identity(FRAMES), name), OPTIONS[name])
    }


def test_limits_hold_for_each_split_and_keep_them_apart():
    """Drives of the synthetic source have 6 frames; the demo takes every sixth of its train drives."""
    whole = load_recipe("demo")
    source = open_data(whole.data)
    learnt, tested = frames_to_learn(whole.data, source), frames_to_test(whole, source)
    few = load_recipe("demo", ["data.limit_scenes=3", "data.limit_frames=2"])
    assert frames_to_learn(few.data, source).train == learnt.train[:2]
    assert frames_to_test(few, source) == tested[:2]
    assert frames_to_learn(load_recipe("demo", ["data.limit_scenes=3"]).data, source).train == learnt.train[:3]
