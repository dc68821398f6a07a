import json
from dataclasses import replace

import pytest
from support.reports import REPORT, Page, pictures

from pipeline.recipe.run_folder import RunFolder
from pipeline.report.baseline import Supervised, is_supervised, supervised_baseline
from pipeline.report.one_run import write_report
from pipeline.report.tables import better
from stages.evaluation.results import Evaluation

TABLE = {
    "rows": [
        {"name": "KL", "lidar_share": 1.0, "seeds": [0], "lidar_protocol_mean": 7.0, "lidar_protocol_std": None},
        {
            "name": "supervised",
            "lidar_share": 0.1,
            "seeds": [0],
            "lidar_protocol_mean": 9.0,
            "lidar_protocol_std": None,
        },
        {
            "name": "supervised",
            "lidar_share": 1.0,
            "seeds": [0, 1, 2],
            "lidar_protocol_mean": 125.0,
            "lidar_protocol_std": 2.5,
        },
    ],
    "measured_on": {"source": "synthetic", "split": ["val"], "frames": 3, "images": 11},
    "recipe": {"eval": {"protocol": "surrounddepth", "flip": False}, "train_student": {"steps": 864}},
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "ablate").mkdir()

    def write(content):
        (tmp_path / "ablate/table.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return RunFolder(tmp_path)

    return write


def test_the_ablation_of_a_run_says_what_lidar_alone_teaches(run):
    assert supervised_baseline(run(TABLE), REPORT) == Supervised(125.0, 2.5, 3, 864)


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "ddad"}, {"split": "val[:2]"}, {"frames": 2}, {"images": 12}, {"protocol": "fsm"}, {"flip": True}],
)
def test_what_was_measured_otherwise_is_no_baseline(run, changes):
    assert supervised_baseline(run(TABLE), replace(REPORT, **changes)) is None


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", json.dumps(TABLE | {"rows": []}), json.dumps(TABLE | {"rows": [3]})]
)
def test_a_table_that_says_nothing_is_no_baseline(run, tmp_path, content):
    assert supervised_baseline(run(content), REPORT) is None
    assert supervised_baseline(RunFolder(tmp_path / "nowhere"), REPORT) is None


def test_the_page_shows_it_beside_the_student(run, tmp_path):
    """100 instead of 125 is a fifth better."""
    run(TABLE)
    page = Page(write_report(tmp_path / "eval", Evaluation(REPORT, (pictures(),)), {}))
    place = page.texts.index("Against LiDAR alone")
    assert "20.0 % better" in page.texts[place : place + 4]
    assert "AbsRel when LiDAR alone teaches: 125.000 ±2.500, 864 steps, 3 seeds" in page.texts[place : place + 6]


def test_a_recipe_without_distillation_is_supervised(tmp_path):
    path = tmp_path / "recipe.toml"
    assert not is_supervised(path)
    path.write_text('[losses]\nsupervised = 1.0\nkl = 0.0\ncompletion_radius_px = 3\nframe = "lidar"\n')
    assert is_supervised(path)
    path.write_text("[losses]\nsupervised = 1.0\nkl = 0.3\n")
    assert not is_supervised(path)
    path.write_text("no = toml = here")
    assert not is_supervised(path)


@pytest.mark.parametrize(
    ("value", "base", "higher", "said"),
    [
        (0.15, 0.20, False, "25.0 % better"),
        (0.15, 0.20, True, "25.0 % worse"),
        (0.25, 0.20, False, "25.0 % worse"),
        (0.20004, 0.2, False, "the same"),
        (0.1, 0.0, False, "-"),
        (float("nan"), 0.1, False, "-"),
    ],
)
def test_differences_are_said_in_words(value, base, higher, said):
    assert better(value, base, higher=higher) == said
