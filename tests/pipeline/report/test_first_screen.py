"""What a report says first: a title in words, one frame, four numbers."""

from dataclasses import replace

import pytest
from support.reports import HOSTILE, PROVENANCE, REPORT, WITHOUT_LIDAR, Page, errors, pictures, scores

from pipeline.report.one_run import headlines, write_report
from pipeline.report.tables import details, title
from stages.evaluation.ranking import FrameErrors
from stages.evaluation.results import Consistency, Evaluation

EQUAL = replace(REPORT.latency, teacher_input=(96, 160))
ALONE = replace(REPORT.latency, teacher_ms_per_rig=None, teacher_p95_ms_per_rig=None, speedup=None, teacher_input=None)


def page_of(tmp_path, report=REPORT, frames=None):
    frames = (pictures(),) if frames is None else tuple(frames)
    return Page(write_report(tmp_path, Evaluation(report, frames), PROVENANCE))


def latency_note(latency) -> str:
    """What the table of times says above its rows."""
    (table,) = [table for table in details(replace(REPORT, latency=latency)) if table.title == "Latency"]
    return table.note


@pytest.mark.parametrize(
    ("dataset", "split", "frames", "words"),
    [
        ("synthetic", "test[:48:6]", 8, "8 frames of the synthetic street, test drives"),
        ("synthetic", "drive-49[:1]", 1, "1 frame of the synthetic street, drive 49"),
        ("ddad", "train[:8], selection[::3]", 12, "12 frames of DDAD, training drives and selection drives"),
        ("ddad", "val (first 2 scenes, 20 frames)", 20, "20 frames of DDAD, validation drives"),
        ("nuscenes", "mini_val", 81, "81 frames of nuScenes, validation drives of the mini release"),
        ("nuscenes", "list:val.txt[:100]", 100, "100 frames of nuScenes, the list val.txt"),
        ("pandaset", "002[17:]", 6, "6 frames of PandaSet, drive 002"),
        ("pandaset", "002[17:], 002[:2], 005", 90, "90 frames of PandaSet, drives 002, 005"),
        ("pandaset", "001, 002, 003, 005", 320, "320 frames of PandaSet, 4 drives"),
        ("rig_folder", "test", 1200, "1,200 frames of a rig folder, test drives"),
        ("others", "a [b], (first)", 2, "2 frames of others, drives a [b], (first)"),
    ],
)  # fmt: skip
def test_the_title_says_in_words_what_was_measured(dataset, split, frames, words):
    assert title(replace(REPORT, dataset=dataset, split=split, frames=frames)) == words


def test_the_selector_stands_below_the_title(tmp_path):
    page = page_of(tmp_path, replace(REPORT, split="test[:12:6]"))
    body = page.texts[len(page.texts) - page.texts[::-1].index("3 frames of the synthetic street, test drives") :]
    below = [text for text in body if text]
    assert below[0].startswith("Data set synthetic, split test[:12:6]. Protocol surrounddepth")
    assert below[1] == "drive/07"
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# 3 frames of the synthetic street, test drives\n\nData set synthetic, split test[:12:6].")


def test_the_median_frame_comes_before_all_numbers(tmp_path):
    """Camera, student and error, and nothing else; its depth is that of the strip below, not a second copy."""
    frames = [pictures(f"drive/0{rank}", rank=rank, ranked=9) for rank in (1, 4, 5, 9)]
    page = page_of(tmp_path, frames=frames)
    assert page.texts.index("drive/05") < page.texts.index("AbsRel") < page.texts.index("drive/01")
    ring = ("left", "front", "right & <i>aft</i>", "back")
    assert page.lead_canvases == [f"{kind}, {camera}" for camera in ring for kind in ("Student", "Error")]
    assert [image["alt"] for image in page.lead_images[:4]] == [image["alt"] for image in page.images[2:6]]
    shown = [attrs for tag, attrs in page.tags if attrs.get("class") == "frame"]
    assert [attrs["data-grids"] for attrs in shown] == [f"frames-{number}-grids" for number in (3, 1, 2, 3, 4)]
    stored = [attrs["id"] for tag, attrs in page.tags if tag == "script" and attrs.get("id", "").endswith("-grids")]
    assert stored == [f"frames-{number}-grids" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("ranks", "first"),
    [((1, 9), 1), ((1, 4, 9), 4), ((1, 7, 9), 7), ((0, 0), 0), ((1, 6, 0), 6)],
)
def test_the_frame_nearest_to_the_median_comes_first(tmp_path, ranks, first):
    frames = [pictures(f"rank-{rank}", rank=rank, ranked=9) for rank in ranks]
    texts = page_of(tmp_path, frames=frames).texts
    assert next(text for text in texts if text.startswith("rank-")) == f"rank-{first}"


def test_a_page_without_pictures_begins_with_its_numbers(tmp_path):
    page = page_of(tmp_path, frames=())
    assert not page.lead_images
    assert {"AbsRel", "0.062"} <= set(page.texts)


def test_four_numbers_come_first_and_only_what_was_measured():
    values = {headline.label: headline.value for headline in headlines(REPORT, None)}
    assert values == {"AbsRel": "100.000", "d1": "100.004", "Neighbours": "0.062", "Latency": "12.5 ms"}
    untimed = headlines(replace(REPORT, latency=None), None)
    assert [headline.label for headline in untimed] == ["AbsRel", "d1", "Neighbours", "RMSE"]
    apart = headlines(replace(REPORT, latency=None, consistency=Consistency(None, {})), None)
    assert [headline.label for headline in apart] == ["AbsRel", "d1", "RMSE"]
    assert [headline.label for headline in headlines(WITHOUT_LIDAR, None)] == ["Disagreement", "Neighbours", "Latency"]
    lost = replace(REPORT.student.metric, mean=replace(errors(100), d1=float("nan")))
    damaged = headlines(replace(REPORT, student=replace(REPORT.student, metric=lost)), None)
    assert [headline.label for headline in damaged] == ["AbsRel", "Neighbours", "Latency", "RMSE"]


def test_a_speed_up_is_said_only_of_equal_inputs(tmp_path):
    """8.0 times is what report.json holds in both cases."""
    page = page_of(tmp_path)
    assert "per rig of 4 images at 96 x 160, bfloat16 on cpu; teacher 100.0 ms at 392 x 644" in page.texts
    for text in (page.raw, (tmp_path / "report.md").read_text()):
        assert "times as fast" not in text
        assert "Student 12.5 ms at 96 x 160; teacher 100.0 ms at 392 x 644." in text
    page = page_of(tmp_path, replace(REPORT, latency=EQUAL))
    for text in (page.raw, (tmp_path / "report.md").read_text()):
        assert "Student 12.5 ms at 96 x 160; 8.0 times as fast as the teacher at the same input size." in text
    card = "per rig of 4 images at 96 x 160, bfloat16 on cpu; 8.0 times as fast as the teacher at the same input size"
    assert card in page.texts


def test_times_are_said_with_the_teachers_runtime_and_in_units_that_read_well():
    slow = replace(REPORT.latency, student_ms_per_rig=52.0, teacher_ms_per_rig=3900.0, teacher_runtime="openvino")
    assert latency_note(slow).endswith("Student 52.0 ms at 96 x 160; teacher 3.9 s at 392 x 644 in openvino.")
    unknown = replace(slow, teacher_input=None, teacher_runtime=None)
    assert latency_note(unknown).endswith("Student 52.0 ms at 96 x 160; teacher 3.9 s at an unknown size.")
    in_runtime = replace(EQUAL, teacher_runtime="openvino")
    assert latency_note(in_runtime).endswith("as fast as the teacher in openvino at the same input size.")


def test_a_student_timed_alone_is_not_compared(tmp_path):
    texts = page_of(tmp_path, replace(REPORT, latency=ALONE)).texts
    assert {"12.5 ms", "per rig of 4 images at 96 x 160, bfloat16 on cpu"} <= set(texts)
    assert latency_note(ALONE) == "One rig of 4 images, bfloat16 on cpu."


def test_a_frame_without_anything_to_compare_with_shows_camera_and_student(tmp_path):
    frame = pictures(teacher_depth_m=None, errors=FrameErrors(None, None))
    frame = replace(frame, lidar_depth_m=0 * frame.lidar_depth_m)
    page = page_of(tmp_path, replace(WITHOUT_LIDAR, disagreement=scores(1)), [frame])
    assert {label.split(",")[0] for label in page.lead_canvases} == {"Student"}
    assert page.texts.count("nothing to compare with") == 4  # in the strip below


def test_hostile_names_stay_texts_in_title_and_lead(tmp_path):
    page = page_of(tmp_path, replace(REPORT, dataset=HOSTILE, split=HOSTILE), [pictures(HOSTILE)])
    assert f"3 frames of {HOSTILE}, drive {HOSTILE}" in page.texts
    assert page.raw.count("<script>") == 1
