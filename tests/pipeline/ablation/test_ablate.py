import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.commands import Command
from support.surround import RECIPE, surround

from data_cache.shards.identity import load_description
from data_cache.storage.claims import Claims
from data_cache.storage.locations import open_store
from pipeline.ablation import ablate as module
from pipeline.ablation.student import plan_students, train_and_measure
from pipeline.recipe.config import load_recipe
from pipeline.recipe.run_folder import RunFolder

ABLATE = """
[ablate]
seeds = [4]
lidar_shares = [1.0, 0.5]
[ablate.rows]
supervised = []
KL = ["losses.kl=0.3"]
"""
ELSEWHERE = ("--set", "student.encoder=resnet-10")
"""An encoder that other processes know, too."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folder) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(teacher=teacher_folder) + ABLATE)
    return path


def run_here(cells, jobs, here, on_done, should_stop):
    """Cells one after the other in this process; to start others takes longer than to train these students."""
    for cell in cells:
        train_and_measure(cell, here, should_stop)
        on_done(cell)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(module, "train_students", run_here)


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    """A cache, and the ablation run on it."""
    folder = recipe.parent / "run"
    assert surround("teacher-cache", recipe, "--run", folder)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_students", run_here)
        code, text = surround("ablate", recipe, "--run", folder)
    assert (code, "4 students trained, 0 already done" in text) == (0, True), text
    return folder


def test_the_table_has_every_row_and_density_and_says_where_it_comes_from(run):
    table = json.loads((run / "ablate/table.json").read_text())
    named = [(row["name"], row["lidar_share"], row["seeds"]) for row in table["rows"]]
    assert named == [(name, share, [4]) for share in (1.0, 0.5) for name in ("supervised", "KL")]
    for row in table["rows"]:
        assert {"abs_rel_mean", "abs_rel_std", "edges_mean", "above_lidar_mean", "at_lidar_mean", "overlap_mean"} <= {
            *row
        }
        assert {"overlap_with_gross_mean", "overlap_share_mean"} <= {*row}
        assert (row["gain_pct"] is None) == (row["name"] == "supervised")
    assert len(table["students"]) == 4
    assert {"command", "git_commit", "machine", "date", "cache_id"} <= table["provenance"].keys()
    assert table["measured_on"] == {"source": "synthetic", "split": ["drive-01[:1]"], "frames": 1, "images": 6}
    assert "| KL " in (run / "ablate/table.md").read_text()


def test_rows_of_one_seed_differ_and_each_trained_what_it_says(run):
    students = json.loads((run / "ablate/table.json").read_text())["students"]
    assert len({student["metrics"]["abs_rel"] for student in students}) == 4
    (folder,) = (run / "ablate").glob("kl-lidar0.5-seed4-*")
    trained = load_recipe(str(folder / "recipe.toml"))
    assert (trained.losses.kl, trained.losses.relation, trained.losses.supervised) == (0.3, 0.0, 1.0)
    assert (trained.train_student.lidar_share, trained.train_student.seed) == (0.5, 4)
    assert {"kl", "supervised"} < json.loads((folder / "student/log.jsonl").read_text().splitlines()[0]).keys()


def test_a_second_run_trains_nothing_and_a_lost_row_is_done_again_to_the_same_numbers(run, recipe, in_process):
    (lost,) = (run / "ablate").glob("kl-lidar1-seed4-*")
    (result,) = lost.glob("measured-*.json")
    (cell,) = [cell for cell in plan_students(load_recipe(str(recipe)), RunFolder(run)) if cell.result == result]
    before = json.loads(result.read_text())["metrics"]
    odd = json.dumps(json.loads(result.read_text()) | {"metrics": {"abs_rel": "x"}})
    for damage in ("", '{"row": "KL", "metr', '{"row": "KL", "metrics": {}}', odd):
        result.write_text(damage)
        assert cell.outcome() is None
    code, text = surround("ablate", recipe, "--run", run)
    assert (code, "1 student trained, 3 already done" in text) == (0, True), text
    after = json.loads(result.read_text())["metrics"]
    assert after | {"minutes": None} == before | {"minutes": None}
    assert "0 students trained, 4 already done" in surround("ablate", recipe, "--run", run)[1]


def test_a_dry_run_prints_what_is_done_and_writes_nothing(run, recipe):
    before = (run / "ablate/table.json").read_bytes()
    code, text = surround("ablate", recipe, "--run", run, "--set", "ablate.seeds=[4, 5]", "--dry-run")
    assert (code, "0 students trained, 4 already done, 4 still missing" in text) == (0, True), text
    assert "| KL         |  100% |     1 |" in text
    assert not list((run / "ablate").glob("*-seed5-*"))
    assert (run / "ablate/table.json").read_bytes() == before


def test_another_recipe_is_another_student_and_where_things_lie_is_not(run, recipe):
    folders = {
        name: [cell.folder.root.name for cell in plan_students(load_recipe(str(recipe), overrides), RunFolder(run))]
        for name, overrides in {
            "same": (), "longer": ("train_student.steps=4",), "root": ("data.root=x",),
            "test": ("data.test=[\"drive-02\"]",), "measure": ("ablate.measure=selection",),
        }.items()
    }  # fmt: skip
    assert len({cell.result.name for overrides in ((), ("data.test=[\"drive-02\"]",), ("eval.flip=true",))
                for cell in plan_students(load_recipe(str(recipe), overrides), RunFolder(run))}) == 3  # fmt: skip
    assert folders["root"] == folders["test"] == folders["measure"] == folders["same"]
    assert not {*folders["longer"]} & {*folders["same"]}
    assert len({*folders["same"]}) == 4


def test_parts_share_the_students_and_the_last_one_has_them_all(run, recipe, in_process):
    short = ("--set", "ablate.lidar_shares=[0.25]", "--run", run)
    code, text = surround("ablate", recipe, *short, "--part", "2/2")
    assert (code, "1 student trained, 0 already done, 1 still missing" in text) == (0, True), text
    code, text = surround("ablate", recipe, *short, "--part", "1/2")
    assert (code, "1 student trained, 0 already done; " in text) == (0, True), text


def test_a_student_that_another_process_trains_is_left_to_it(run, recipe, in_process):
    arguments = ("ablate", recipe, "--run", run, "--set", "ablate.seeds=[9]", "--set", "ablate.lidar_shares=[1.0]")
    cells = plan_students(load_recipe(str(recipe), ["ablate.seeds=[9]", "ablate.lidar_shares=[1.0]"]), RunFolder(run))
    cells[1].folder.root.mkdir(parents=True)
    claims = Claims(cells[1].folder.root / "claim.lock")
    assert claims.take(0)
    code, text = surround(*arguments)
    assert (code, "1 still missing" in text, "left to another process" in text) == (1, True, True), text
    assert [cell.outcome() is None for cell in cells] == [False, True]
    claims.release(0)
    assert "1 student trained, 1 already done;" in surround(*arguments)[1]


@pytest.mark.torture
def test_a_killed_worker_is_a_clear_error_and_its_student_goes_on_later(run, recipe, tmp_path):
    arguments = ("ablate", recipe, "--run", run, "--set", "train_student.steps=300", "--set", "ablate.seeds=[2]")
    command = Command(tmp_path / "log", *arguments, *ELSEWHERE, "--jobs", "1")
    wait_for(lambda: list((run / "ablate").glob("*-seed2-*/student/log.jsonl")), command)
    (worker,) = workers(command)
    os.kill(worker, signal.SIGKILL)
    assert command.process.wait(60) == 1, command.output
    assert "was killed, perhaps because memory ran out" in command.output
    assert "Traceback" not in command.output


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_row_that_makes_no_recipe_is_named_before_anything_is_trained(run, recipe):
    code, text = surround("ablate", recipe, "--run", run, "--set", 'ablate.rows.odd=["losses.crosss=1"]')
    assert (code, "row 'odd'" in text, "did you mean 'cross'" in text) == (2, True, True), text


@pytest.mark.torture
def test_students_train_in_two_processes_and_one_that_fails_does_not_stop_the_others(run, recipe):
    broken = 'ablate.rows.broken=["train_student.learning_rate=1e30"]'
    settings = ("--set", broken, "--set", "ablate.seeds=[6]", "--set", "ablate.lidar_shares=[1.0]")
    code, text = surround("ablate", recipe, "--run", run, *settings, *ELSEWHERE, "--jobs", 2)
    assert (code, "1 of 3 students failed" in text, "loss is not finite" in text) == (1, True, True), text
    assert len(list((run / "ablate").glob("*-seed6-*/measured-*.json"))) == 2
    assert "| KL         |  100% |     1 |" in text
    assert [(s["row"], s["seed"]) for s in json.loads((run / "ablate/table.json").read_text())["students"]] == [
        ("supervised", 6),
        ("KL", 6),
    ]


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ('ablate.rows.tokens=["losses.feature=1.0"]', 1, "teacher_cache.tokens = true"),
        ('ablate.rows.odd=["losses.kl"]', 2, "row 'odd'"),
        ('ablate.rows.supervised=["losses.kl=1.0"]', 2, "takes no overrides"),
        ("ablate.measure=selection", 2, "names no data.selection"),
        ("losses.supervised=0.0", 2, "every row starts from the supervised loss alone"),
        ("bins.prob_stride=4", 1, "prob_size"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(run, recipe, override, code, message):
    before = len(list((run / "ablate").iterdir()))
    found, text = surround("ablate", recipe, "--run", run, "--set", override)
    assert (found, message in text) == (code, True), text
    assert len(list((run / "ablate").iterdir())) == before


def test_students_of_a_cache_that_was_written_anew_are_other_students(run, recipe, tmp_path):
    other = tmp_path / "cache"
    shutil.copytree(run / "cache", other)
    description = other / "cache.json"
    description.write_text(
        description.read_text().replace('"teacher_weights_sha256": "', '"teacher_weights_sha256": "0')
    )
    identity, _ = load_description(open_store(other))
    for receipt in (other / "receipts").iterdir():
        receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"identity_sha256": identity.sha256}))
    here, there = (
        {cell.folder.root.name for cell in plan_students(load_recipe(str(recipe), overrides), RunFolder(run))}
        for overrides in ((), (f"teacher_cache.location={other}",))
    )
    assert not here & there


def test_losses_of_the_recipe_reach_every_row(run, recipe):
    parsed = load_recipe(str(recipe), ["losses.completion_radius_px=7", "losses.kl=0.9", "losses.frame=literal"])
    losses = [cell.recipe.losses for cell in plan_students(parsed, RunFolder(run))]
    assert {(spec.completion_radius_px, spec.frame) for spec in losses} == {(7, "literal")}
    assert {spec.kl for spec in losses} == {0.0, 0.3}


@pytest.mark.torture
def test_no_worker_outlives_a_killed_parent_and_its_student_is_saved(run, recipe, tmp_path):
    arguments = ("ablate", recipe, "--run", run, "--set", "train_student.steps=4000", "--set", "ablate.seeds=[3]")
    command = Command(tmp_path / "log", *arguments, *ELSEWHERE, "--jobs", "1")
    wait_for(lambda: list((run / "ablate").glob("*-seed3-*/student/log.jsonl")), command)
    (worker,) = workers(command)
    command.process.kill()
    command.process.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
    assert list((run / "ablate").glob("*-seed3-*/student/states/*.safetensors"))


@pytest.mark.torture
def test_a_worker_whose_parent_is_killed_while_it_starts_trains_nothing(run, recipe, tmp_path):
    arguments = ("ablate", recipe, "--run", run, "--set", "ablate.seeds=[8]", *ELSEWHERE)
    command = Command(tmp_path / "log", *arguments, "--jobs", "1")
    wait_for(lambda: workers(command), command)
    (worker,) = workers(command)
    command.process.kill()
    command.process.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists())


def workers(command: Command) -> list[int]:
    return [pid for pid in children(command.process.pid) if b"spawn_main" in cmdline(pid)]


@pytest.mark.torture
def test_ctrl_c_while_workers_start_is_a_stop(run, recipe, tmp_path):
    arguments = ("ablate", recipe, "--run", run, "--set", "ablate.seeds=[5]", *ELSEWHERE)
    command = Command(tmp_path / "log", *arguments, "--jobs", "1")
    wait_for(lambda: workers(command), command)
    command.signal(signal.SIGINT, group=True)
    assert command.process.wait(60) == 75, command.output
    assert "Traceback" not in command.output


def wait_for(condition, command: Command | None = None) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, command.output if command else "nothing happened"
        assert command is None or command.process.poll() is None, command.output
        time.sleep(0.05)


@pytest.mark.torture
def test_a_stop_leaves_saved_students_and_the_same_command_goes_on(run, recipe, tmp_path):
    arguments = ("ablate", recipe, "--run", run, "--set", "train_student.steps=4000", "--set", "ablate.seeds=[1]")
    command = Command(tmp_path / "log", *arguments, *ELSEWHERE, "--jobs", "2")
    wait_for(lambda: len(list((run / "ablate").glob("*-seed1-*/student/log.jsonl"))) == 2, command)
    command.signal(signal.SIGTERM)
    assert command.process.wait(60) == 75, command.output
    assert "Run the same command to continue" in command.output
    assert len(list((run / "ablate").glob("*-seed1-*/student/states/*.safetensors"))) == 2
