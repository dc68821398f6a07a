from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fakes import CPU, NAMES, STUDENT_SIZE, TEACHER_SIZE, FakeSource, tiny_teacher
from support.students import student

from data_cache.frames.geometry import sparse_depth
from data_cache.frames.views import load_images, rig_views
from stages.compute.preemption import Preempted
from stages.compute.resize import resize_views
from stages.evaluate import evaluate
from stages.evaluation.metrics import depth_errors
from stages.evaluation.protocols import FSM
from stages.evaluation.results import EvaluationError, against_lidar
from stages.evaluation.spec import EvaluateSpec
from stages.inference import predict as predict_module
from stages.inference.predict import predict_rig

SPEC = EvaluateSpec(latency=False, pictures=2)


def run(source: FakeSource, spec: EvaluateSpec = SPEC, teacher=None, **options):
    ids = source.drives["d"]
    return evaluate(source, ids, "d", student(), teacher, spec, device=CPU, precision="fp32", **options)


def truth_teller(source: FakeSource, factor_of_view: tuple[float, ...]):
    """A student whose every depth is the constant 10 m times a factor per view."""

    def forward(*_: object):
        return torch.full((1, 3, *STUDENT_SIZE), 10.0) * torch.tensor(factor_of_view)[None, :, None, None]

    return forward


def test_errors_are_per_image_then_per_camera_then_a_mean_of_cameras(monkeypatch):
    source = FakeSource(3, missing={"d/1": (1,), "d/2": (1,)})
    monkeypatch.setattr(predict_module, "forward_rig", truth_teller(source, (1.0, 1.2, 0.9)))
    report = run(source).report
    by_hand = {name: [] for name in NAMES}
    for frame_id in source.drives["d"]:
        frame = source.frame(frame_id)
        for i, view in enumerate(frame.views):
            if view is not None:
                truth_m = sparse_depth(view, frame.load_sweep(), (48, 80))
                truth = truth_m[(truth_m > 0.1) & (truth_m < 80)]
                predicted = np.full_like(truth, 10 * (1.0, 1.2, 0.9)[i])
                by_hand[NAMES[i]].append(depth_errors(predicted_m=predicted, truth_m=truth))
    metric = report.student.metric
    assert [metric.per_camera[name].images for name in NAMES] == [3, 1, 3]
    means = [np.mean([e.abs_rel for e in by_hand[name]]) for name in NAMES]
    assert [metric.per_camera[name].abs_rel for name in NAMES] == pytest.approx(means, rel=1e-5)
    assert metric.mean.abs_rel == pytest.approx(np.mean(means), rel=1e-5)
    assert (report.frames, report.images) == (3, 7)
    assert report.valid_pixels == sum(e.pixels for entries in by_hand.values() for e in entries)


def test_a_wrong_scale_costs_the_metric_row_and_not_the_aligned_ones(monkeypatch):
    source = FakeSource(2)
    rows = {}
    for factor in (1.0, 1.7):
        monkeypatch.setattr(predict_module, "forward_rig", truth_teller(source, (factor,) * 3))
        rows[factor] = run(source).report.student
    assert rows[1.0].metric.mean.abs_rel != pytest.approx(rows[1.7].metric.mean.abs_rel, rel=1e-3)
    for name in ("median_scaled", "affine_invariant"):
        first, second = (getattr(rows[factor], name).mean.abs_rel for factor in rows)
        assert first == pytest.approx(second, rel=1e-6)


def test_bands_split_the_pixels_by_true_distance():
    source = FakeSource(2)
    scores = run(source).report.student.metric
    assert set(scores.by_distance_m) == {"0-20", "20-40"}  # points lie within 20 m of the origin on each axis
    assert sum(e.pixels for e in scores.by_distance_m.values()) == scores.mean.pixels


def test_the_teacher_is_aligned_per_image_and_has_its_own_row(teacher_folder):
    teacher = tiny_teacher(teacher_folder)
    assert teacher.input_size == TEACHER_SIZE
    evaluation = run(FakeSource(2), teacher=teacher)
    row = evaluation.report.teacher.affine_invariant
    assert (row.mean.images, set(row.per_camera)) == (6, set(NAMES))
    assert evaluation.pictures[0].teacher_depth_m.max() <= 80
    assert run(FakeSource(2)).report.teacher is None


def test_pictures_are_of_the_worst_frames_first_and_hold_what_was_measured(monkeypatch):
    """Frames whose student is off by more and more: the last is the worst, the first the best."""
    source = FakeSource(7, missing={"d/6": (1,)})
    asked = []

    def frame_by_frame(_, rig, *__):
        asked.append(len(asked))
        return torch.full((1, 3, *STUDENT_SIZE), 10.0 * 1.4 ** asked[-1])

    monkeypatch.setattr(predict_module, "forward_rig", frame_by_frame)
    evaluation = run(source, replace(SPEC, pictures=5))
    assert [p.frame_id for p in evaluation.pictures] == ["d/6", "d/5", "d/4", "d/3", "d/0"]
    assert [(p.rank, p.ranked) for p in evaluation.pictures] == [(1, 7), (2, 7), (3, 7), (4, 7), (7, 7)]
    errors = [p.errors.abs_rel for p in evaluation.pictures]
    assert errors == sorted(errors, reverse=True)
    last = evaluation.pictures[0]
    assert last.view_valid == (True, False, True)
    assert not last.student_depth_m[1].any()
    assert (last.student_depth_m[[0, 2]] > 0).all()
    assert last.lidar_depth_m.any()


def test_without_lidar_there_is_a_report_of_what_can_be_told_without(teacher_folder):
    source = FakeSource(2, no_lidar=("d/0", "d/1"))
    evaluation = run(source, replace(SPEC, latency=True), tiny_teacher(teacher_folder))
    report = evaluation.report
    assert (report.frames, report.images, report.valid_pixels) == (2, 0, 0)
    assert report.student is report.teacher is None
    assert report.disagreement.mean.images == 6
    assert report.disagreement.mean.pixels == 6 * STUDENT_SIZE[0] * STUDENT_SIZE[1]
    assert report.latency.speedup > 0
    assert [picture.errors.abs_rel for picture in evaluation.pictures] == [None, None]
    unlike = [picture.errors.disagreement for picture in evaluation.pictures]
    assert unlike == sorted(unlike, reverse=True)
    assert report.disagreement.mean.abs_rel == pytest.approx(np.mean(unlike), rel=1e-5)
    assert not any(evaluation.pictures[0].teacher_on_lidar)
    assert (evaluation.pictures[0].teacher_depth_m > 0).all()
    with pytest.raises(EvaluationError, match="nothing to measure in 2 frames of fake d: .* no LiDAR point in range"):
        against_lidar(report)


def test_without_lidar_and_teacher_there_are_pictures_and_the_cameras():
    evaluation = run(FakeSource(2, no_lidar=("d/0", "d/1")))
    assert evaluation.report.student is evaluation.report.disagreement is None
    assert len(evaluation.pictures) == 2


def test_disagreement_is_the_distance_to_the_teacher_after_scale_and_shift(monkeypatch, teacher_folder):
    """A student of 10 m everywhere: the best fit is a shift alone, the teacher's own variation being noise to it."""
    teacher = tiny_teacher(teacher_folder)
    monkeypatch.setattr(predict_module, "forward_rig", truth_teller(FakeSource(1), (1.0, 1.0, 1.0)))
    flat = run(FakeSource(1), teacher=teacher).report
    assert flat.disagreement.mean.abs_rel == pytest.approx(0, abs=1e-5)
    assert flat.teacher.affine_invariant.mean.abs_rel > 0.1  # LiDAR is not flat
    assert set(flat.disagreement.by_distance_m) == {"0-20"}


def test_a_frame_that_becomes_the_median_late_is_looked_at_again(monkeypatch):
    """Errors 1, 9, 8, 7, 6: the median of all, 7, was the best but one of four when it was seen."""
    source = FakeSource(5)
    seen = []
    source.on_frame = seen.append
    far_m = dict(zip(source.drives["d"], (30.0, 110.0, 100.0, 90.0, 80.0), strict=True))
    depth_m = lambda *_: torch.full((1, 3, *STUDENT_SIZE), far_m[seen[-1]])  # noqa: E731
    monkeypatch.setattr(predict_module, "forward_rig", depth_m)
    monkeypatch.setattr("stages.evaluate.PROTOCOLS", {SPEC.protocol: replace(FSM, name=SPEC.protocol)})
    evaluation = run(source, replace(SPEC, pictures=3))
    assert [p.frame_id for p in evaluation.pictures] == ["d/1", "d/3", "d/0"]
    assert [p.rank for p in evaluation.pictures] == [1, 3, 5]
    assert seen == [*source.drives["d"], *seen[5:]]
    assert set(seen[5:]) <= {"d/3"}


def test_unreadable_frames_are_left_out_and_listed():
    report = run(FakeSource(3, broken={"d/1": "image missing: x"})).report
    assert (report.frames, report.images, report.quarantined) == (2, 6, {"d/1": "image missing: x"})


def test_nothing_to_look_at_is_an_error_that_says_why():
    with pytest.raises(EvaluationError, match="image missing: x"):
        run(FakeSource(1, broken={"d/0": "image missing: x"}))


def test_a_student_that_says_nan_is_an_error_that_names_the_frame(monkeypatch):
    source = FakeSource(2)
    monkeypatch.setattr(predict_module, "forward_rig", truth_teller(source, (1.0, float("nan"), 1.0)))
    with pytest.raises(EvaluationError, match="frame d/0 is not finite"):
        run(source)


def test_it_can_be_asked_to_stop():
    with pytest.raises(Preempted):
        run(FakeSource(2), should_stop=lambda: True)


def test_latency_times_student_and_teacher_in_one_harness(teacher_folder):
    latency = run(FakeSource(1), EvaluateSpec(), tiny_teacher(teacher_folder)).report.latency
    assert latency.speedup == pytest.approx(latency.teacher_ms_per_rig / latency.student_ms_per_rig)
    assert 0 < latency.student_ms_per_rig <= latency.student_p95_ms_per_rig
    assert (latency.device, latency.precision, latency.images_per_rig) == ("cpu", "fp32", 3)
    assert (latency.input, latency.teacher_input) == (STUDENT_SIZE, TEACHER_SIZE)


def test_flip_averages_with_what_the_mirrored_rig_gives_and_is_recorded():
    source = FakeSource(1)
    frame = source.frame("d/0")
    rig = rig_views(frame, resize_views(load_images(frame), STUDENT_SIZE), None, STUDENT_SIZE)
    model = student()
    ring = [0, 2, 1]
    mirrored = replace(rig, image=rig.image[ring][:, :, ::-1].copy(), intrinsics=rig.intrinsics[ring])
    plain, other = (predict_rig(model, r, CPU, "fp32") for r in (rig, mirrored))
    flipped = predict_rig(model, rig, CPU, "fp32", flip=True)
    np.testing.assert_allclose(flipped[1], (plain[1] + other[2, :, ::-1]) / 2, rtol=1e-5)
    assert np.abs(flipped - plain).max() > 1e-3
    assert run(source, replace(SPEC, flip=True)).report.flip
    assert not run(source).report.flip


def test_ddad_is_measured_to_200_m_and_the_rest_to_80():
    assert run(FakeSource(1)).report.range_m == (0.1, 80.0)
    assert run(FakeSource(1, name="ddad")).report.range_m == (0.1, 200.0)
