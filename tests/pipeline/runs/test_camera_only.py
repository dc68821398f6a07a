"""Real nuScenes keyframes without LiDAR, through stages one and three."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.fakes import tiny_teacher

from data_cache.shards.reader import CacheReader
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.report.compare import compare
from pipeline.report.one_run import write_report
from pipeline.runs.splits import open_data, select_frames
from pipeline.runs.stage_one import open_stage_one
from stages.evaluate import evaluate
from stages.evaluation.spec import EvaluateSpec
from stages.student.model import Student
from stages.targets.spec import BinSpec

WITH_SWEEP = "3950bd41f74548429c0f7700ff3d8269"
"""The keyframe that has a sweep 50 ms before it."""


def camera_only(real_data: Path, teacher: Path, *overrides: str) -> Recipe:
    """The recipe of nuScenes on the release without LiDAR, with small sizes and a tiny teacher."""
    changes = (
        'data.version="v1.0-mini-camonly"',
        'data.train=["val[:4]"]',
        'data.test=["val[:4]"]',
        "teacher_cache.input_size=[42, 70]",
        f'teacher_cache.weights="{teacher}"',
        "student.input_size=[32, 64]",
        "student.decoder_channels=8",
        "student.pretrained=false",
        *overrides,
    )
    return load_recipe("nuscenes", changes, real_data / "nuscenes")


@pytest.mark.parametrize(("within_s", "with_lidar"), [(0.0, set()), (0.1, {WITH_SWEEP})])
def test_stage_one_stores_them_and_notes_what_they_lack(real_data, teacher_folder, tmp_path, within_s, with_lidar):
    test = 'data.test=["val[4:]"]'
    stage = open_stage_one(camera_only(real_data, teacher_folder, test, f"data.nearby_sweep_s={within_s}"))
    writer = stage.writer(str(tmp_path / "cache"))
    report = stage.write(writer, writer.pending(), retry_quarantined=False)
    assert report.frames_written == 4
    reader = CacheReader(tmp_path / "cache")
    records = {frame_id: reader.read(frame_id) for frame_id in reader.frames.train}
    assert {frame_id for frame_id, record in records.items() if record.lidar_depth.any()} == with_lidar
    assert all(record.view_valid.all() and record.image.any() for record in records.values())
    assert len(records) == 4


def test_teacher_and_student_are_measured_where_a_nearby_sweep_says_how_far(real_data, teacher_folder):
    """One frame of four has a sweep: its six images give the numbers, all four give pictures and agreement."""
    recipe = camera_only(real_data, teacher_folder, "data.nearby_sweep_s=0.1")
    found = measured(recipe, teacher_folder)
    assert (found.report.frames, found.report.images) == (4, 6)
    assert np.isfinite(found.report.teacher.affine_invariant.mean.abs_rel)
    assert [picture.lidar_depth_m.any() for picture in found.pictures] == [
        picture.frame_id == WITH_SWEEP for picture in found.pictures
    ]
    assert len(found.pictures) == 4


def test_without_any_sweep_there_is_a_report_of_what_can_be_told(real_data, teacher_folder, tmp_path):
    """No metres: how far teacher and student are apart, and pictures of both."""
    evaluation = measured(camera_only(real_data, teacher_folder), teacher_folder)
    report = evaluation.report
    assert (report.frames, report.images, report.student, report.teacher) == (4, 0, None, None)
    assert (report.disagreement.mean.images, np.isfinite(report.disagreement.mean.abs_rel)) == (24, True)
    assert [picture.teacher_depth_m.any() for picture in evaluation.pictures] == [True] * 4
    write_report(tmp_path / "eval", evaluation, {})
    text = (tmp_path / "eval/report.md").read_text()
    assert "4 frames. No frame has a LiDAR point in range: nothing is measured in metres." in text
    assert "disagreement with the teacher" in compare([tmp_path])


def measured(recipe: Recipe, teacher_folder: Path):
    source = open_data(recipe.data)
    torch.manual_seed(0)
    return evaluate(
        source,
        select_frames(recipe.data, source, recipe.data.test),
        recipe.data.named(recipe.data.test),
        Student(recipe.student, BinSpec()).eval(),
        tiny_teacher(teacher_folder),
        EvaluateSpec(latency=False, pictures=4),
        device=torch.device("cpu"),
        precision="fp32",
        decode_size=recipe.student.input_size,
    )
