from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bags import cloud, write_bag
from support.small_recording import (
    LIDAR_TOPIC,
    at,
    camera,
    in_order,
    lidar,
    points,
    poses,
    recording,
    statics,
    without,
)

from data_cache.errors import SourceError
from data_cache.sources.recordings.pairing import _nearest, _thinned
from data_cache.sources.recordings.settings import BagSettings
from data_cache.sources.recordings.source import RecordingSource


def source_of(tmp_path, said, **settings) -> RecordingSource:
    return RecordingSource([write_bag(tmp_path / "van", in_order(said))], BagSettings(**settings))


def seconds(source) -> list[float]:
    return [round((int(one.partition("/")[2]) - at(0)) / 1e9, 3) for one in source.drives["van"]]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 300), max_size=20, unique=True).map(sorted),
    st.lists(st.integers(0, 300), min_size=1, max_size=20, unique=True).map(sorted),
    st.integers(0, 40),
)
def test_an_image_is_within_the_slack_belongs_to_one_frame_and_no_frame_is_nearer(images, frames, slack):
    times, wanted = np.array(images, np.int64), np.array(frames, np.int64)
    index = _nearest(times, wanted, slack)
    used = index[index >= 0]
    assert len(set(used.tolist())) == len(used)
    assert (np.diff(used) > 0).all()
    for frame, i in zip(frames, index.tolist(), strict=True):
        if i >= 0:
            assert abs(images[i] - frame) <= slack
            rivals = [
                abs(images[i] - other)
                for other in frames
                if all(abs(images[i] - other) < abs(one - other) for one in images if one != images[i])
            ]
            assert abs(images[i] - frame) <= min(rivals, default=slack)
            assert abs(images[i] - frame) == min(abs(one - frame) for one in images)


def test_the_nearest_image_by_hand():
    """Of the images at 95 and 108 the frame at 100 takes the first; that at 300 finds none within 10."""
    found = _nearest(np.array([95, 108, 205]), np.array([100, 200, 300]), 10)
    assert found.tolist() == [0, 2, -1]


def test_a_rate_keeps_frames_that_far_apart_within_half_an_interval():
    times = np.array([0, 100, 199, 301, 400, 1000, 1100]) * 1_000_000
    assert _thinned(times, 5.0).tolist() == [0, 2, 4, 5]
    assert _thinned(times, None).tolist() == list(range(7))
    assert _thinned(times, 50.0).tolist() == list(range(7))


def test_a_camera_without_an_image_near_a_sweep_is_absent_there(tmp_path):
    said = [one for one in recording() if not (one.topic.startswith("/left") and at(0.5) < one.log_ns < at(0.7))]
    source = source_of(tmp_path, said)
    frame = source.frame(f"van/{at(0.6)}")
    assert [view is not None for view in frame.views] == [True, True, True, False]
    assert source.parts["van"].pairs.absent == {"front": 0, "right": 0, "back": 0, "left": 2}


def test_images_beyond_the_slack_make_no_frame(tmp_path):
    said = [*statics(), *poses(), *lidar(), *camera("front", delay_s=0.04)]
    assert len(source_of(tmp_path / "a", said).drives["van"]) == 20
    with pytest.raises(SourceError, match="no image within 30 ms of any; raise --slack-ms"):
        source_of(tmp_path / "b", said, slack_ms=30.0)


def test_without_lidar_the_first_camera_gives_the_frames(tmp_path):
    source = source_of(tmp_path, without(recording(), LIDAR_TOPIC), rate_hz=2.0)
    assert seconds(source) == [0.01, 0.51, 1.01, 1.51]
    assert source.frame(source.drives["van"][0]).load_sweep is None
    assert any(note.startswith("no LiDAR") for note in source.notes)


def test_messages_without_a_pose_are_left_out_and_said(tmp_path):
    said = [*statics(), *poses(until_s=1.0), *lidar(), *camera("front")]
    source = source_of(tmp_path, said)
    assert seconds(source)[-1] == 0.9  # the sweep at 1.0 has a pose, but no image that has one
    assert f"{LIDAR_TOPIC}: 9 of 20 messages left out: no pose of lidar in odom at their time" in source.notes


def test_of_messages_with_one_stamp_the_first_counts(tmp_path):
    twice = cloud(at(0.5), LIDAR_TOPIC, "lidar", points(99))
    source = source_of(tmp_path, [*recording(["front"]), replace(twice, log_ns=twice.log_ns + 1000)])
    assert len(source.drives["van"]) == 20
    np.testing.assert_array_equal(source.frame(f"van/{at(0.5)}").load_sweep().points_m, points(5))
    assert f"{LIDAR_TOPIC}: 1 message left out: the one before has the same time stamp" in source.notes
