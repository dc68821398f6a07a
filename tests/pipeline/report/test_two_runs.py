from dataclasses import replace

import pytest
from support.reports import PROVENANCE, REPORT, WITHOUT_LIDAR, Page, errors, pictures, scores
from support.surround import surround

from pipeline.errors import RecipeError
from pipeline.report.one_run import write_report
from pipeline.report.two_runs import write_comparison
from stages.evaluation.results import Consistency, Evaluation, StudentScores

APART = Consistency(0.125, {"front-back": 0.0624, "other": 1.0}, 0.25, {"front-back": 0.246})
HALF = StudentScores(scores(50), scores(50), scores(50))


@pytest.fixture
def run(tmp_path):
    def write(name, report=REPORT, frames=("drive/07", "drive/08"), provenance=PROVENANCE):
        write_report(tmp_path / name / "eval", Evaluation(report, tuple(map(pictures, frames))), provenance)
        return tmp_path / name

    return write


def rows(page):
    """Cells of every table row of a page, by the first."""
    found = {}
    for text in page.raw.split("<tr>")[1:]:
        name, *cells = [cell for part in text.split("</tr>")[0].split(">") if (cell := part.split("<")[0]).strip()]
        found.setdefault(name, []).append(cells)
    return found


def test_two_runs_are_compared_camera_by_camera_and_band_by_band(run, tmp_path):
    """The second has a score of 51 where the first has 101: 49.5 % better where lower is better, worse where higher."""
    second = replace(REPORT, student=HALF, consistency=APART)
    code, text = surround("report", run("base"), run("mine", second))
    path = tmp_path / "base/eval/compare-mine.html"
    assert (code, text) == (0, f"report: {path}\n")
    page = Page(path)
    assert {
        "mine against base: 3 frames of the synthetic street, validation drives",
        "50.000",
        "50.0 % better; base: 100.000",
        "50.0 % worse; base: 100.004",
    } <= set(page.texts)
    found = rows(page)
    assert found["front"][0] == ["101.000", "51.000", "49.5 % better", "101.002", "51.002", "49.5 % better", "101.004", "51.004", "49.5 % worse"]  # fmt: skip # noqa: E501
    assert found["20-40 m"][0][:3] == ["106.000", "56.000", "47.2 % better"]
    assert found["front-back"] == [["0.031", "0.062", "100.0 % worse"], ["0.123", "0.246", "100.0 % worse"]]
    assert "other" not in found
    old = replace(REPORT, consistency=replace(APART, overlap_with_gross=None, pairs_with_gross={}))
    assert rows(Page(write_comparison(run("base"), run("old", old))))["front-back"] == found["front-back"][:1]
    assert {"Per camera", "By distance", "Overlap consistency", "Frames that both show"} <= set(page.headings)


def test_frames_that_only_one_shows_are_left_out(run, tmp_path):
    page = Page(write_comparison(run("a"), run("b", frames=("drive/08", "drive/09")), tmp_path / "page.html"))
    labels = [label for label in page.canvases if label.endswith("back")]
    kinds = ["LiDAR", "Teacher", "a", "b", "Error, a", "Error, b", "b against a"]
    assert labels == [f"{kind}, back" for kind in kinds]
    assert "drive/08" in page.texts
    assert not {"drive/07", "drive/09"} & set(page.texts)
    page = Page(write_comparison(run("a"), run("b", frames=("drive/09",)), tmp_path / "page.html"))
    assert "Frames that both show" not in page.headings


def test_it_says_what_differs_in_where_they_come_from_and_which_is_supervised(run, tmp_path):
    first, second = run("a"), run("b", provenance=PROVENANCE | {"git_commit": "1234567"})
    (second / "eval/recipe.toml").write_text("[losses]\nsupervised = 1.0\nkl = 0.0\n")
    page = Page(write_comparison(first, second))
    assert "b (supervised) against a: 3 frames of the synthetic street, validation drives" in page.texts
    assert rows(page)["git_commit"] == [["ab07491", "1234567", "differs"]]
    assert rows(page)["versions"][0][-1] == "the same"


def test_what_does_not_compare_is_refused(run):
    code, text = surround("report", run("a"), run("b", replace(REPORT, protocol="fsm")))
    assert (code, "do not compare:\n  protocol: surrounddepth in" in text) == (2, True)
    with pytest.raises(RecipeError, match="frames: 3 in"):
        write_comparison(run("a"), run("b", replace(REPORT, frames=4)))


def test_reports_without_lidar_compare_by_what_they_have(run):
    other = replace(WITHOUT_LIDAR, disagreement=scores(250))
    page = Page(write_comparison(run("a", WITHOUT_LIDAR), run("b", other)))
    assert "50.0 % less; a: 500.000" in page.texts
    assert rows(page)["front"] == [["501.000", "251.000", "49.9 % less"]]
    assert "Per camera" not in page.headings


def test_the_page_begins_with_the_errors_of_the_middle_frame_that_both_show(run, tmp_path):
    """Of 9 frames that were ranked, the page of the first shows three; the other shows two of these."""

    def write(name, ranks):
        shown = tuple(pictures(f"drive/0{rank}", rank=rank, ranked=9) for rank in ranks)
        write_report(tmp_path / name / "eval", Evaluation(REPORT, shown), PROVENANCE)
        return tmp_path / name

    page = Page(write_comparison(write("a", (1, 5, 8)), write("b", (1, 8))))
    assert page.texts.index("drive/08") < page.texts.index("drive/01")
    assert [label for label in page.lead_canvases if "left" in label] == [
        f"{kind}, left" for kind in ("Error, a", "Error, b", "b against a")
    ]
    assert [bar["alt"].split(",")[0] for bar in page.lead_images[4:]] == ["Colour bar from orange"]
    assert not Page(write_comparison(tmp_path / "b", write("c", (2,)))).lead_images


def test_times_of_unlike_work_are_not_said_to_be_better_or_worse(run):
    """Half the time for a quarter of the pixels is no gain."""
    quick = replace(REPORT.latency, student_ms_per_rig=6.25)
    texts = Page(write_comparison(run("a"), run("b", replace(REPORT, latency=quick)))).texts
    assert "50.0 % better; a: 12.5 ms; 4 images at 96 x 160, bfloat16 on cpu" in texts
    small = replace(quick, input=(48, 80))
    texts = Page(write_comparison(run("a"), run("c", replace(REPORT, latency=small)))).texts
    assert "4 images at 48 x 80, bfloat16 on cpu; a: 12.5 ms, 4 images at 96 x 160, bfloat16 on cpu" in texts
    assert "6.2 ms" in texts


def test_numbers_that_are_none_are_dashes(run):
    metric = replace(HALF.metric, mean=replace(errors(50), rmse=float("nan")))
    page = Page(write_comparison(run("a"), run("b", replace(REPORT, student=replace(HALF, metric=metric)))))
    assert rows(page)["mean of cameras"][0][3:6] == ["100.002", "-", "-"]


def test_one_run_is_written_again(run, tmp_path):
    html = run("a") / "eval/report.html"
    before = html.read_bytes()
    html.unlink()
    assert surround("report", tmp_path / "a") == (0, f"report: {html}\n")
    assert html.read_bytes() == before
    assert surround("report", tmp_path / "a", "--out", tmp_path / "x.html")[0] == 0
    assert (tmp_path / "x.html").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no report at nowhere/eval/report.json; pass run folders after `surround eval`"),
        (["a", "b", "c"], "expected one run or two, got 3"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage_is_one_clear_error(arguments, message):
    code, text = surround("report", *arguments)
    assert (code, message in text, "Traceback" in text) == (2, True, False), text
