import base64
import hashlib
import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from support.reports import CAMERAS, HOSTILE, PROVENANCE, REPORT, WITHOUT_LIDAR, Page, errors, pictures, scores

from data_cache.files import count_text
from pipeline.report.one_run import report_table, rewrite_html, write_report
from pipeline.report.page import asset
from pipeline.report.results_file import read_report_file, write_report_file
from pipeline.report.tables import details
from pipeline.viewers.cloud_page import viewer_script
from stages.evaluation.ranking import FrameErrors
from stages.evaluation.results import Consistency, Evaluation
from stages.inference.point_cloud import PointCloud
from stages.student.checkpoint import Calibration
from stages.uncertainty.coverage import Sureness, SurenessScores, Uncertainty
from stages.uncertainty.sparsification import Sparsification


def page_of(tmp_path, report=REPORT, frames=None, provenance=PROVENANCE):
    frames = (pictures(),) if frames is None else frames
    return Page(write_report(tmp_path, Evaluation(report, frames), provenance))


def cells(markdown):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_json_keeps_the_contract(tmp_path):
    write_report(tmp_path / "run" / "eval", Evaluation(REPORT), PROVENANCE)
    content = strict_json(tmp_path / "run" / "eval" / "report.json")
    assert content.keys() >= {"dataset", "split", "protocol", "frames", "images", "valid_pixels"}
    assert content.keys() >= {"student", "teacher", "consistency", "latency", "provenance"}
    assert content["student"].keys() == {"metric", "median_scaled", "affine_invariant"}
    assert content["teacher"].keys() == {"affine_invariant"}
    assert content["student"]["metric"].keys() == {"mean", "per_camera", "by_distance_m"}
    assert content["student"]["median_scaled"]["per_camera"]["back"]["rmse"] == 203.002
    assert content["student"]["metric"]["by_distance_m"]["20-40"]["d1"] == 106.004
    assert content["teacher"]["affine_invariant"]["mean"]["pixels"] == 400_000
    assert content["consistency"] == {
        "overlap_abs_rel": 0.0625,
        "pairs": {"front-back": 0.0312, "back-left": 0.0938},
        "overlap_with_gross": 0.156,
        "pairs_with_gross": {"front-back": 0.123, "back-left": 0.189},
        "overlap_share": 0.75,
        "pairs_share": {"front-back": 0.872, "back-left": 0.628},
    }
    assert content["latency"]["speedup"] == 8.0
    assert content["latency"]["teacher_input"] == [392, 644]
    assert content["provenance"] == PROVENANCE
    assert list(content["student"]["metric"]["per_camera"]) == list(CAMERAS)


def test_json_of_absent_parts_is_null(tmp_path):
    write_report(tmp_path, Evaluation(replace(REPORT, teacher=None, latency=None)), {})
    content = strict_json(tmp_path / "report.json")
    assert content["teacher"] is None
    assert content["latency"] is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_costs_only_itself(tmp_path, number):
    metric = replace(REPORT.student.metric, mean=replace(errors(100), rmse=number))
    page_of(tmp_path, replace(REPORT, student=replace(REPORT.student, metric=metric)), provenance={"loss": number})
    content = strict_json(tmp_path / "report.json")
    assert content["student"]["metric"]["mean"]["rmse"] is None
    assert content["student"]["metric"]["mean"]["sq_rel"] == 100.001
    assert content["provenance"] == {"loss": None}
    assert "| student metric           | 100.000 | 100.001 |       - |" in (tmp_path / "report.md").read_text()


def test_the_table_has_each_number_in_its_place():
    rows = cells(report_table(REPORT))
    assert rows[0] == ["estimate", "AbsRel", "SqRel", "RMSE", "RMSElog", "d1", "d2", "d3", "images", "pixels"]
    assert [row[0] for row in rows[2:]] == [
        "student metric",
        "student median-scaled",
        "student affine-invariant",
        "teacher affine-invariant",
    ]
    assert rows[3][1:] == [*(f"200.00{i}" for i in range(7)), "2,000", "200,000"]
    assert rows[5][3] == "400.002"


@pytest.mark.parametrize(
    ("protocol", "masked", "said"),
    [
        ("vfdepth", 0, "Self-occlusion masks on none of them, although the protocol expects them on all."),
        ("vfdepth", 7, "Self-occlusion masks on 7 of them, although the protocol expects them on all."),
        ("vfdepth", 11, "Self-occlusion masks on all images."),
        ("fsm", 0, "Self-occlusion masks on none of them."),
        ("surrounddepth", 0, "1,234 valid pixels.\n"),
    ],
)
def test_the_report_says_whether_masks_were_used(tmp_path, protocol, masked, said):
    report = replace(REPORT, protocol=protocol, masked_images=masked)
    write_report(tmp_path, Evaluation(report, ()), PROVENANCE)
    text = (tmp_path / "report.md").read_text()
    assert said in text
    assert ("mask" in text) == (protocol != "surrounddepth")
    assert strict_json(tmp_path / "report.json")["masked_images"] == masked


def test_the_table_lines_up_in_a_terminal():
    lines = report_table(REPORT).splitlines()
    assert len({len(line) for line in lines}) == 1
    bars = [[i for i, character in enumerate(line) if character == "|"] for line in lines]
    assert all(places == bars[0] for places in bars)
    assert set(lines[1]) == set("| -:")


def test_markdown_has_every_table_and_no_raw_markup(tmp_path):
    page_of(tmp_path)
    text = (tmp_path / "report.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Results",
        "Per camera",
        "By distance",
        "Student and teacher",
        "Overlap consistency",
        "Latency",
        "Quarantined frames",
        "Provenance",
    ]
    assert report_table(REPORT) in text
    lines = cells(text)
    assert ["back", "103.000", "303.000", "403.000"] in lines
    assert ["20-40 m", "106.000", "306.000", "406.000"] in lines
    rows = {row[0]: row[1:] for row in lines if len(row) != 4}
    pairs = [row for row in lines if row[0] in ("back-left", "mean of pairs")]
    assert rows["back"][:2] == ["103.000", "103.001"]
    assert rows["mean of cameras"][0] == "100.000"
    assert rows["20-40 m"][-1] == "106,000"
    assert pairs == [["back-left", "0.094", "0.189", "0.628"], ["mean of pairs", "0.062", "0.156", "0.750"]]
    assert rows["student"] == ["12.5", "15.2", "80", "96 x 160"]
    assert rows["teacher"] == ["100.0", "140.0", "10", "392 x 644"]
    assert rows["versions"] == ["torch 2.13.0, numpy 2.4"]
    assert "<" not in text
    assert r"&lt;script&gt;alert('x')&lt;/script&gt; &amp; " + r'"a\|b"' in text


def test_the_page_loads_nothing(tmp_path):
    page = page_of(tmp_path, frames=(pictures(), pictures(HOSTILE)))
    assert "http://" not in page.raw
    assert "https://" not in page.raw
    assert "@import" not in page.raw
    assert "url(" not in page.raw
    assert not {"iframe", "object"} & {tag for tag, _ in page.tags}
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs]
    assert links
    assert all(link.startswith(("data:image/webp;base64,", "data:,", "#")) for link in links)
    (policy,) = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(asset("frames.js").encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'"
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {allowed}"
    assert page.raw.count("<script>") == 1


def test_texts_of_strangers_stay_texts(tmp_path):
    provenance = {"machine <b>": {"node": "<img src=x>"}}
    page = page_of(tmp_path, replace(REPORT, dataset=HOSTILE), (pictures(HOSTILE),), provenance)
    assert page.raw.count("<script>") == 1
    assert {HOSTILE, "image <missing>", "machine <b>", "node <img src=x>", *CAMERAS} <= set(page.texts)
    labels = {attrs.get("aria-label") for _, attrs in page.tags}
    assert {"Student, right & <i>aft</i>", f"Cameras of frame {HOSTILE}, left to right"} <= labels


def test_the_page_can_be_read_aloud_and_in_the_dark(tmp_path):
    page = page_of(tmp_path)
    counts = Counter(tag for tag, _ in page.tags)
    assert counts["h1"] == counts["main"] == counts["header"] == 1
    assert counts["h2"] == 1 + 9
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    assert all(image["alt"] for image in page.images)
    assert ("html", {"lang": "en"}) in page.tags
    assert "prefers-color-scheme: dark" in page.raw
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_the_page_shows_the_numbers(tmp_path):
    texts = page_of(tmp_path).texts
    assert {"100.002", "100.004", "103.001", "12.5 ms", "0.031", "drive/07"} <= set(texts)
    how = "Protocol surrounddepth, 0.1 to 80 m: 3 frames, 11 images, 1,234 valid pixels."
    assert f"Data set synthetic, split val. {how}" in texts


def sureness(start: int) -> Sureness:
    """Values that differ from each other and from those of every other start."""
    order, other = (Sparsification(0.1 * start + i, start + i + 0.25, start + i + 0.125) for i in (0.01, 0.02))
    return Sureness(10 * start, 0.001 * start, 0.002 * start, 0.003 * start, 0.004 * start, 0.5 * start, order, other)


UNCERTAIN = Uncertainty(
    Calibration(0.19, "synthetic", "selection[::3]", 579030),
    SurenessScores(sureness(1), {"front": sureness(2)}, {"0-20": sureness(3)}),
    {"all": SurenessScores(sureness(4), {}, {"20-40": sureness(5)}), "edges": SurenessScores(sureness(6), {}, {})},
)


def test_how_sure_the_student_is_has_tables_a_strip_and_a_place_in_json(tmp_path):
    """0 percent means a missing camera; the strip keeps percent where others keep metres."""
    report = replace(REPORT, uncertainty=UNCERTAIN)
    sigma = np.full((4, 48, 80), 0.125, np.float32)
    page = page_of(tmp_path, report, (pictures(sigma=sigma),))
    assert read_report_file(tmp_path / "report.json").report == report
    assert Counter(label.split(",")[0] for label in page.canvases)["Sigma"] == 4
    text = (tmp_path / "report.md").read_text()
    at_lidar = text.split("## Confidence at LiDAR returns")[1].split("##")[0]
    rows = {row[0]: row[1:] for row in cells(at_lidar) if len(row) > 2}
    assert list(rows)[2:] == ["all pixels", "front", "0-20 m"]
    assert rows["0-20 m"] == ["0.3 %", "0.6 %", "0.9 %", "1.2 %", "1.50", "0.310", "3.135", "3.260", "0.320", "3.145", "3.270", "30"]  # fmt: skip # noqa: E501
    dense = text.split("## Confidence on dense truth")[1].split("##")[0]
    names = [row[0] for row in cells(dense) if len(row) > 2]
    assert names[2:] == ["all pixels", "20-40 m", "within 3 px of a depth edge"]
    assert "Calibrated on 579,030 LiDAR returns of synthetic selection[::3]." in text
    assert "Confidence" not in (write_report(tmp_path, Evaluation(REPORT), PROVENANCE)).read_text()


def test_every_frame_has_its_strips_of_every_camera_from_left_to_right(tmp_path):
    page = page_of(tmp_path, frames=(pictures(), pictures("drive/08")))
    kinds = Counter(label.split(",")[0] for label in page.canvases)
    assert kinds == {"LiDAR": 8, "Teacher": 8, "Student": 8, "Error": 8}
    assert [image["alt"] for image in page.images[2:]] == 2 * [
        "Camera image, left",
        "Camera image, front",
        "Camera image, right & <i>aft</i>",
        "Camera image, back",
    ]
    one = page_of(tmp_path)
    np.testing.assert_allclose(one.rgb("Camera image, back")[20, 20], (0, 0, 200), atol=12)
    assert "Teacher: fitted per image, by scale and shift of disparity, to LiDAR." in page.texts


def test_every_camera_can_be_reached_by_keyboard(tmp_path):
    page = page_of(tmp_path)
    views = [attrs for tag, attrs in page.tags if attrs.get("class") == "view"]
    assert [(attrs["tabindex"], attrs["role"]) for attrs in views] == [("0", "application")] * (4 + 4)
    assert views[7]["aria-label"] == "back: arrow keys move the cursor"


@pytest.mark.parametrize(
    ("rank", "ranked", "said"),
    [
        (1, 9, "worst of 9 frames, AbsRel 0.125"),
        (5, 9, "median of 9 frames, AbsRel 0.125"),
        (9, 9, "best of 9 frames, AbsRel 0.125"),
        (3, 9, "number 3 of 9 frames, from the worst, AbsRel 0.125"),
        (1, 1, "worst of 1 frame, AbsRel 0.125"),
        (0, 9, "not ranked, AbsRel 0.125"),
    ],
)
def test_a_frame_says_how_bad_it_is_among_the_others(tmp_path, rank, ranked, said):
    assert said in page_of(tmp_path, frames=(pictures(rank=rank, ranked=ranked),)).texts


def test_a_missing_camera_is_a_labelled_box(tmp_path):
    page = page_of(tmp_path, frames=(pictures(view_valid=(True, True, False, True)),))
    assert len(page.images) == 2 + 3
    assert "no image from back" in page.texts
    assert not [attrs for tag, attrs in page.tags if attrs.get("aria-label", "").endswith(", back")]


def test_views_without_lidar_are_compared_with_the_teacher(tmp_path):
    """Of two views that have LiDAR and two that have not, and of a frame that has none at all."""
    some = pictures().lidar_depth_m * np.array([1, 1, 0, 0], np.float32)[:, None, None]
    page = page_of(tmp_path, frames=(pictures(lidar_depth_m=some, teacher_on_lidar=(True, True, False, False)),))
    assert page.texts.count("no LiDAR") == 2
    for labels in (page.canvases, page.lead_canvases):
        assert {"Against teacher, back", "Against teacher, left", "Error, front"} <= set(labels)
    assert any(text.endswith("to LiDAR if there is any, else to the student.") for text in page.texts)
    blind = pictures(
        lidar_depth_m=0 * some, teacher_on_lidar=(False,) * 4, errors=FrameErrors(None, 0.3), rank=1, ranked=1
    )
    page = page_of(tmp_path, frames=(blind,))
    assert "no LiDAR" not in page.texts
    assert "worst of 1 frame, disagreement with the teacher 0.300" in page.texts
    assert any(text.endswith("to the student, as there is no LiDAR.") for text in page.texts)


def test_without_lidar_the_report_tells_what_can_be_told(tmp_path):
    page = page_of(tmp_path, WITHOUT_LIDAR)
    assert "No frame has a LiDAR point in range: nothing is measured in metres." in page.texts
    assert {"Disagreement", "500.000", "0.062", "12.5 ms"} <= set(page.texts)
    assert "Student and teacher" in page.headings
    assert not {"Per camera", "By distance"} & {*page.headings}
    assert "AbsRel" not in page.texts[: page.texts.index("Results")]
    assert ["back", "503.000"] in cells((tmp_path / "report.md").read_text())
    content = strict_json(tmp_path / "report.json")
    assert (content["student"], content["teacher"], content["images"]) == (None, None, 0)
    assert content["disagreement"]["per_camera"]["back"]["abs_rel"] == 503
    rows = cells(report_table(WITHOUT_LIDAR))
    assert rows[0] == ["No frame has a LiDAR point in range: nothing is measured in metres."]
    assert rows[-3:] == [
        ["disagreement of student and teacher", "500.000"],
        ["difference of neighbouring cameras", "0.062"],
        ["the same with gross differences", "0.156"],
    ]


@pytest.mark.parametrize(
    "report", [REPORT, WITHOUT_LIDAR, replace(REPORT, latency=None, dense_truth={"all": scores(7)})]
)
def test_a_report_reads_back_equal(tmp_path, report):
    path = write_report_file(tmp_path / "run" / "eval", report, PROVENANCE)
    read = read_report_file(path)
    assert (read.report, read.provenance, read.name) == (report, PROVENANCE, "run")


def test_a_report_of_an_older_version_has_empty_cells_for_what_it_did_not_measure(tmp_path):
    page_of(tmp_path)
    content = strict_json(tmp_path / "report.json")
    content["consistency"] = {name: content["consistency"][name] for name in ("overlap_abs_rel", "pairs")}
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert "back-left" in Page(rewrite_html(tmp_path)).texts
    old = read_report_file(tmp_path / "report.json").report
    assert old.consistency == Consistency(0.0625, {"front-back": 0.0312, "back-left": 0.0938})
    (table,) = (table for table in details(old) if table.title == "Overlap consistency")
    assert table.rows[1:] == (("back-left", "0.094", "-", "-"), ("mean of pairs", "0.062", "-", "-"))


def test_a_pair_that_agrees_nowhere_is_shown_with_what_is_known(tmp_path):
    gross = Consistency(None, {}, 0.7, {"front-back": 0.7}, 0.0, {"front-back": 0.0, "back-left": 0.0})
    (table,) = (table for table in details(replace(REPORT, consistency=gross)) if table.title == "Overlap consistency")
    assert table.rows == (
        ("front-back", "-", "0.700", "0.000"),
        ("back-left", "-", "-", "0.000"),
        ("mean of pairs", "-", "0.700", "0.000"),
    )


def test_a_report_without_teacher_latency_overlap_or_pictures_renders(tmp_path):
    bare = replace(REPORT, teacher=None, latency=None, consistency=Consistency(None, {}), quarantined={})
    page = page_of(tmp_path, bare, (pictures(teacher_depth_m=None),), {})
    assert len(page.images) == 2 + 4
    assert {"Not measured.", "None.", "Not recorded.", "No neighbouring cameras see the same surface."} <= set(
        page.texts
    )
    assert not [text for text in page.texts if text.startswith("teacher")]
    assert len(cells(report_table(bare))) == 2 + 3
    assert "The teacher was not measured." in (tmp_path / "report.md").read_text()
    assert not page_of(tmp_path, bare, ()).images


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path):
    page_of(tmp_path)
    page_of(tmp_path, replace(REPORT, split="other"))
    names = ["pictures.json", "report.html", "report.json", "report.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert strict_json(tmp_path / "report.json")["split"] == "other"
    assert strict_json(tmp_path / "report.json")["range_m"] == list(asdict(REPORT)["range_m"])


def test_one_is_singular_and_thousands_are_parted():
    assert [count_text(n, "shard") for n in (0, 1, 2, 1234)] == ["0 shards", "1 shard", "2 shards", "1,234 shards"]


def test_a_report_has_the_points_of_a_frame_to_turn_and_keeps_them_for_the_next_page(tmp_path):
    points = PointCloud(np.array([[4.0, 1.0, 0.5]], np.float32), np.array([[200, 10, 30]], np.uint8))
    folder = tmp_path / "run" / "eval"
    html = write_report(folder, Evaluation(REPORT), PROVENANCE, ("drive/07", points))
    text = html.read_text()
    assert "The ring of frame drive/07 as the student sees it: 1 point." in text
    assert text.count("data-metres-per-unit=") == 1
    assert text.count(viewer_script()) == 1
    assert rewrite_html(folder, tmp_path / "again.html").read_text() == text
    assert "data-metres-per-unit=" not in write_report(folder, Evaluation(REPORT), PROVENANCE).read_text()
