from dataclasses import replace

import pytest
from support.fakes import STUDENT_SIZE, TEACHER_SIZE, FakeSource

from data_cache.errors import FrameError
from stages.caching.teacher_input import prepare_frame


def test_images_are_decoded_no_smaller_than_either_the_teacher_or_the_student_needs():
    asked = []

    class Asking(FakeSource):
        def frame(self, frame_id):
            frame = super().frame(frame_id)

            def load(view):
                return lambda at_least=None: (asked.append(at_least), view.load_image(at_least=at_least))[1]

            return replace(frame, views=tuple(replace(view, load_image=load(view)) for view in frame.views))

    frame = prepare_frame(Asking(1), "d/0", (28, 70), (32, 64))
    assert asked == [(32, 70)] * 3
    assert [image.shape for image in frame.teacher_images] == [(28, 70, 3)] * 3
    assert frame.image.shape == (3, 32, 64, 3)


def test_a_frame_without_any_camera_cannot_be_used():
    with pytest.raises(FrameError, match="expected at least one camera"):
        prepare_frame(FakeSource(1, missing={"d/0": (0, 1, 2)}), "d/0", TEACHER_SIZE, STUDENT_SIZE)


def test_what_a_frame_lacks_is_noted():
    source = FakeSource(1, missing={"d/0": (1,)}, no_lidar=("d/0",))
    frame = prepare_frame(source, "d/0", TEACHER_SIZE, STUDENT_SIZE)
    assert frame.note == "no right, no LiDAR sweep"
    assert len(frame.teacher_images) == 2
