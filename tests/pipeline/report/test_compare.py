import json
from dataclasses import replace

import pytest
from support.reports import REPORT, errors, scores
from support.surround import surround

from data_cache.errors import SourceError
from pipeline.errors import RecipeError
from pipeline.report.compare import compare
from pipeline.report.one_run import write_report
from stages.evaluation.results import Consistency, Evaluation, StudentScores

BETTER = StudentScores(scores(10), scores(20), scores(30))


@pytest.fixture
def run(tmp_path):
    def write(name, **changes):
        write_report(tmp_path / name / "eval", Evaluation(replace(REPORT, **changes)), {})
        return tmp_path / name

    return write


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_reports_of_one_kind_share_a_table(run):
    code, text = surround("compare", run("base"), run("mine", student=BETTER, valid_pixels=1235) / "eval/report.json")
    intro, _, header, _, *rows = text.rstrip().splitlines()
    assert (code, intro) == (0, "synthetic, split val, protocol surrounddepth, 0.1 to 80 m: 3 frames, 11 images.")
    assert cells(header)[0] == ["run", "student", "AbsRel", "SqRel", "RMSE", "RMSElog", "d1", "d2", "d3", "overlap", "overlap, gross", "compared", "pixels"]  # fmt: skip # noqa: E501
    assert [row[:3] for row in cells("\n".join(rows))] == [
        ["base", "metric", "100.000"],
        ["base", "median-scaled", "200.000"],
        ["mine", "metric", "10.000"],
        ["mine", "median-scaled", "20.000"],
    ]
    assert cells(rows[3])[0][3:9] == [f"20.00{i}" for i in range(1, 7)]
    assert cells(rows[3])[0][9:] == ["0.062", "0.156", "0.750", "1,235"]


def test_the_rows_are_those_that_the_protocol_is_about(run):
    text = compare([run("a", protocol="zero-shot")])
    assert [row[1] for row in cells(text)[4:]] == ["metric", "affine-invariant"]
    text = compare([run("b", protocol="vfdepth", masked_images=5, flip=True)])
    assert "protocol vfdepth, with flip averaging" in text
    assert "11 images, self-occlusion masks on 5 of them." in text


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "fsm"},
        {"dataset": "ddad"},
        {"split": "test"},
        {"flip": True},
        {"range_m": (0.1, 200.0)},
        {"frames": 2},
        {"images": 10},
        {"masked_images": 3},
    ],
)
def test_reports_that_differ_in_what_their_numbers_depend_on_are_refused(run, changes):
    (key,), first, second = changes, run("a"), run("b", **changes)
    with pytest.raises(RecipeError, match=f"these reports do not compare:\n  {key}: ") as error:
        compare([first, second])
    assert str(second / "eval/report.json") in str(error.value)
    assert len(str(error.value).splitlines()) == 3
    code, text = surround("compare", first, second)
    assert (code, "do not compare" in text, "Traceback" in text) == (2, True, False)


def test_reports_without_lidar_compare_by_what_they_have(run):
    bare = {"images": 0, "valid_pixels": 0, "student": None, "teacher": None}
    text = compare([run("a", disagreement=scores(40), **bare), run("b", **bare)])
    assert "3 frames. No frame has a LiDAR point in range" in text
    assert cells(text)[2] == ["run", "disagreement with the teacher", "d1", "overlap", "overlap, gross", "compared"]
    overlap = ["0.062", "0.156", "0.750"]
    assert cells(text)[4:] == [["a", "40.000", "40.004", *overlap], ["b", "-", "-", *overlap]]
    with pytest.raises(RecipeError, match="images: 11 in"):
        compare([run("c"), run("d", **bare)])


def test_a_number_that_is_none_is_a_dash(run):
    student = replace(BETTER, metric=replace(BETTER.metric, mean=replace(errors(1), rmse=float("nan"))))
    assert cells(compare([run("a", student=student)]))[4][4] == "-"


def test_a_report_of_an_older_version_compares_and_has_empty_cells(run):
    old = run("old", consistency=Consistency(0.0625, {"front-back": 0.0625}))
    rows = cells(compare([old, run("new")]))[4:]
    assert [(row[0], row[9:12]) for row in rows[::2]] == [
        ("old", ["0.062", "-", "-"]),
        ("new", ["0.062", "0.156", "0.750"]),
    ]


def test_runs_of_the_same_name_are_told_apart(run):
    first, second = run("a/x"), run("b/x")
    assert [row[0] for row in cells(compare([first, second]))[4::2]] == [
        str(path / "eval/report.json") for path in (first, second)
    ]


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[]", b'{"dataset": 1}', b"[" * 100_000])
def test_what_is_no_report_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/report.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"report\.json: expected (a report of `surround eval`|text|UTF-8 text)"):
        compare([tmp_path])


def test_a_run_without_a_report_says_where_it_was_looked_for_and_what_to_do(tmp_path):
    with pytest.raises(SourceError, match=r"no report at .*eval/report\.json; pass run folders after `surround eval`"):
        compare([tmp_path])


@pytest.mark.parametrize(
    ("way", "value", "found"),
    [
        (["protocol"], [], "text, found []"),
        (["range_m"], None, "NoneType"),
        (["range_m"], [0.1], ""),
        (["range_m", 0], "0", "a number or null, found '0'"),
        (["frames"], "3", "a whole number, found '3'"),
        (["frames"], True, "a whole number, found True"),
        (["valid_pixels"], None, "a whole number, found None"),
        (["masked_images"], "1", "a whole number, found '1'"),
        (["flip"], "no", "true or false, found 'no'"),
        (["student"], [], ""),
        (["student", "metric", "mean"], 3, ""),
        (["student", "metric", "mean", "rmse"], "1.0", "a number or null, found '1.0'"),
        (["consistency", "overlap_abs_rel"], [0.1], "a number or null, found [0.1]"),
    ],
)
def test_an_odd_value_is_one_error_that_names_the_file_and_the_key(run, way, value, found):
    path = run("a") / "eval/report.json"
    content = json.loads(path.read_text())
    inner = content
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError) as error:
        compare([path])
    told = str(error.value)
    assert told.startswith(f"{path}: expected a report of `surround eval`: ")
    assert found in told
    assert f"$.{way[0]}" in told
    assert "\n" not in told


def test_a_protocol_that_is_unknown_here_is_an_error(run):
    path = run("a") / "eval/report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": "eigen"}))
    with pytest.raises(SourceError, match="protocol 'eigen' is none of surrounddepth, vfdepth, fsm, zero-shot"):
        compare([path])
