import json
import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from support.repository import REPOSITORY
from support.surround import recomputes_what_it_stored, surround

from data_cache.shards.encodings import ENCODINGS
from pipeline.api import load_rig
from pipeline.cli.main import main
from stages.compute.cpu import ISA_VARIABLE
from stages.compute.progress import QUIET
from stages.compute.waiting import DECIDED_BY

VERBS = [[], ["doctor"], ["fit-bins"], ["teacher-cache"], ["train-student"], ["calibrate"], ["eval"], ["compare"], ["report"], ["ablate"], ["zero-shot"], ["predict"], ["export"], ["cache"], ["cache", "size"], ["cache", "status"], ["cache", "verify"], ["rig"], ["rig", "export"], ["weights"]]  # fmt: skip # noqa: E501


def test_a_run_folder_holds_what_the_contract_says(run):
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {
        "recipe.toml", "cache/cache.json", "student/last.safetensors", "student/states/00000003.safetensors",
        "student/log.jsonl", "eval/report.json", "eval/report.md", "eval/report.html",
    } <= found  # fmt: skip
    assert "student/best.safetensors" not in found  # the recipe names no selection split


def test_the_report_keeps_its_contract(run):
    report = json.loads((run / "eval/report.json").read_text())
    assert {"dataset", "split", "protocol", "frames", "images", "valid_pixels", "student", "teacher", "consistency",
            "latency", "provenance"} <= report.keys()  # fmt: skip
    assert (report["dataset"], report["split"], report["protocol"]) == ("synthetic", "drive-01[:1]", "surrounddepth")
    assert (report["frames"], report["images"]) == (1, 6)
    for scores in (*report["student"].values(), report["teacher"]["affine_invariant"]):
        assert scores.keys() == {"mean", "per_camera", "by_distance_m"}
        entries = [scores["mean"], *scores["per_camera"].values(), *scores["by_distance_m"].values()]
        for entry in entries:
            assert entry.keys() == {"abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3", "images", "pixels"}
    assert report["student"].keys() == {"metric", "median_scaled", "affine_invariant"}
    assert {"student_ms_per_rig", "teacher_ms_per_rig", "speedup", "precision", "device", "input", "teacher_input"} <= report["latency"].keys()  # fmt: skip # noqa: E501
    agreement = report["consistency"]
    assert agreement.keys() == {"overlap_abs_rel", "pairs", "overlap_with_gross", "pairs_with_gross", "overlap_share", "pairs_share"}  # fmt: skip # noqa: E501
    assert len(agreement["pairs_share"]) == 6
    assert 0 < agreement["overlap_share"] <= 1
    assert {"versions", "recipe_sha256", "cache_id", "checkpoint_sha256", "git_commit", "teacher", "teacher_licence", "machine", "date"} <= report["provenance"].keys()  # fmt: skip # noqa: E501
    assert "lidar_drives" not in report["provenance"]  # all of them taught


def test_a_calibrated_student_is_measured_on_how_sure_it_is_and_keeps_its_depth(run, recipe, tmp_path):
    checkpoint, how = tmp_path / "s.safetensors", (recipe, "--run", tmp_path / "run", "--set", "eval.latency=false")
    checkpoint.write_bytes((run / "student/last.safetensors").read_bytes())
    how += ("--set", "eval.teacher=false", "--checkpoint", checkpoint)
    code, text = surround("calibrate", *how)
    assert (code, "data.selection: expected frames to calibrate on" in text) == (2, True), text
    code, text = surround("calibrate", *how, "--set", 'data.selection=["drive-02[:1]"]')
    assert (code, "LiDAR returns of synthetic drive-02[:1]" in text) == (0, True), text
    # Measured where it was calibrated, 68 % lie inside one sigma, right to half a bin of the histogram.
    code, text = surround("eval", *how, "--set", 'data.test=["drive-02[:1]"]')
    assert code == 0, text
    report = json.loads((tmp_path / "run/eval/report.json").read_text())
    found, scale = report["uncertainty"], report["provenance"]["calibration"]["sigma_scale"]
    assert found["calibration"]["sigma_scale"] == scale
    assert found["lidar"]["all"]["inside_68"] == pytest.approx(0.68, abs=0.01)
    assert found["lidar"]["all"]["pixels"] == found["calibration"]["pixels"] == report["valid_pixels"]
    assert found["dense_truth"].keys() == {"all", "edges", "above_lidar", "at_lidar"}
    assert found["dense_truth"]["all"]["all"]["pixels"] == report["dense_truth"]["all"]["mean"]["pixels"]
    assert len(found["lidar"]["per_camera"]) == 6
    page = (tmp_path / "run/eval/report.html").read_text()
    assert 'aria-label="Sigma, front' in page
    assert "Confidence on dense truth" in page
    # The same without a calibration: the same depth, and nothing about sigma.
    how = (*how[:-1], run / "student/last.safetensors")
    assert surround("eval", *how, "--set", 'data.test=["drive-02[:1]"]')[0] == 0
    plain = json.loads((tmp_path / "run/eval/report.json").read_text())
    assert plain["uncertainty"] is None
    assert "`surround calibrate`" in plain["provenance"]["calibration"]
    for truth in ("student", "dense_truth"):
        for scores, others in zip(plain[truth].values(), report[truth].values(), strict=True):
            assert scores["mean"] == pytest.approx(others["mean"], rel=1e-4)


def test_a_second_run_of_each_stage_does_nothing_again(run, recipe):
    before = {p: p.read_bytes() for p in (run / "cache").rglob("*") if p.is_file()}
    assert "0 shards written" in surround("teacher-cache", recipe, "--run", run)[1]
    assert {p: p.read_bytes() for p in (run / "cache").rglob("*") if p.is_file()} == before
    assert "train-student: already finished, 3 steps" in surround("train-student", recipe, "--run", run)[1]


def test_status_and_verify_take_a_run_or_a_cache_folder(run):
    for folder in (run, run / "cache"):
        assert "1 of 1 shards" in surround("cache", "status", folder)[1]
        assert surround("cache", "verify", folder)[0] == 0


def test_verify_takes_the_recipe_too_and_asks_the_teacher_again(run, recipe):
    code, text = surround("cache", "verify", recipe, "--run", run, "--recompute", 1)
    assert (code, "1 frame: values are finite and not constant, probabilities sum to one" in text) == (0, True), text
    assert "recomputed drive-00/0: " in text
    assert recomputes_what_it_stored(text), text
    assert "inputs equal" in text
    for target in (run, run / "cache"):
        assert "recomputed" in surround("cache", "verify", target, "--recompute", 1)[1]


def test_size_predicts_the_cache_per_encoding_before_anything_is_written(run, recipe, tmp_path):
    code, text = surround("cache", "size", recipe, "--run", tmp_path / "new", "--frames", 1)
    rows = {
        words[0]: words for line in text.splitlines() if (words := line.split()) and words[0].strip("*") in ENCODINGS
    }
    assert (code, list(rows)) == (0, ["window*", "closed_form", "dense"]), text
    actual = sum(p.stat().st_size for p in (run / "cache/arrays.zarr").rglob("c.*"))
    assert float(rows["window*"][1]) == pytest.approx(actual / 1e3, rel=0.1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [{}, {"cache.json": "{}"}, {"cache.json": "\x00"}, {"something.txt": "else"}])
def test_status_of_a_folder_that_holds_no_cache_is_one_clear_error(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    code, text = surround("cache", "status", tmp_path)
    assert (code, "Error: " in text, "cache.json" in text) == (1, True, True), text


def test_status_and_verify_of_an_unfinished_cache_say_how_far_it_is(run, recipe, tmp_path):
    code, text = surround("cache", "status", recipe, "--run", tmp_path)
    assert (code, "no cache at" in text) == (1, True), text
    subprocess.run(["cp", "-r", run / "cache", tmp_path / "cache"], check=True)
    (tmp_path / "cache/receipts/000000.json").unlink()
    assert "0 of 1 shards" in surround("cache", "status", tmp_path)[1]
    code, text = surround("cache", "verify", tmp_path)
    assert (code, "INCOMPLETE: 0 of 1 shards" in text, "verified" in text) == (1, True, False), text
    assert "Error: the cache is not finished; run teacher-cache again" in text


def test_verify_names_damage_and_fails(run, tmp_path):
    subprocess.run(["cp", "-r", run / "cache", tmp_path / "cache"], check=True)
    path = tmp_path / "cache/arrays.zarr/image/c.0.0.0.0.0"
    path.write_bytes(path.read_bytes()[::-1])
    code, text = surround("cache", "verify", tmp_path)
    assert (code, "image" in text, "content differs" in text) == (1, True, True)


def test_stage_two_refuses_a_cache_of_another_recipe(run, recipe):
    code, text = surround("train-student", recipe, "--run", run, "--set", "bins.count=32")
    assert (code, "bin_count: cache has 64, recipe says 32" in text) == (1, True)
    code, text = surround("teacher-cache", recipe, "--run", run, "--set", 'data.train=["drive-02[:1]"]')
    assert (code, "train: cache has ('drive-00[:1]',), recipe says ('drive-02[:1]',)" in text) == (1, True)


def test_eval_refuses_a_checkpoint_of_another_architecture(run, recipe):
    code, text = surround("eval", recipe, "--run", run, "--set", "student.decoder_channels=16")
    assert (code, "decoder_channels: checkpoint has 8, recipe says 16" in text) == (1, True)


def test_a_refused_command_leaves_the_recorded_recipe_alone(run, recipe):
    before = (run / "recipe.toml").read_text()
    for stage in ("teacher-cache", "train-student"):
        assert surround(stage, recipe, "--run", run, "--set", "bins.sigma=2.0")[0] == 1
    assert surround("train-student", recipe, "--run", run, "--set", "train_student.learning_rate=0.5")[0] == 1
    assert (run / "recipe.toml").read_text() == before


def test_eval_knows_what_was_learnt_from_the_cache_and_needs_no_training_data(run, recipe):
    code, text = surround("eval", recipe, "--run", run, "--set", 'data.test=["drive-00[:2]"]')
    assert (code, "both learnt from and tested on" in text) == (2, True)
    options = ("--set", 'data.train=["gone"]', "--set", "eval.latency=false", "--set", "eval.teacher=false")
    assert surround("eval", recipe, "--run", run, *options)[0] == 0


def test_eval_refuses_other_bins(run, recipe):
    code, text = surround("eval", recipe, "--run", run, "--set", "bins.count=32")
    assert (code, "count: checkpoint has 64, recipe says 32" in text) == (1, True)


@pytest.mark.parametrize("stage", ["teacher-cache", "train-student", "eval"])
def test_a_run_folder_that_cannot_be_written_is_one_clear_error(run, recipe, tmp_path, stage):
    (tmp_path / "file").write_text("")
    code, text = surround(stage, recipe, "--run", tmp_path / "file")
    assert (code, "Error: " in text) == (1, True), text


def test_stages_out_of_order_say_what_to_run_first(recipe, tmp_path):
    code, text = surround("train-student", recipe, "--run", tmp_path)
    assert (code, "run teacher-cache first" in text) == (1, True)
    code, text = surround("eval", recipe, "--run", tmp_path)
    assert (code, "run train-student first" in text) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher-cache", "nope"], "no recipe 'nope'"),
        (["teacher-cache", "demo", "--set", "student.encodr=x"], "did you mean 'encoder'"),
        (["teacher-cache", "pandaset"], "pass --data DIR"),
        (["teacher-cache", "pandaset", "--data", "/nowhere"], "found nothing at /nowhere"),
        (["teacher-cache", "demo", "--data", "/nowhere"], "synthetic: expected no data folder, found /nowhere"),
        (["teacher-cache", "demo", "--part", "x"], "expected I/N"),
        (["cache", "status", "/nowhere"], "a cache folder, an address or a recipe, found nothing at /nowhere"),
        (["teacher-cache"], "Missing argument"),
        (["teacher-cache", "demo", "--set", 'data.train=["drive-99"]'], "no drive or split 'drive-99'"),
        (["teacher-cache", "demo", "--set", 'data.test=["train[:1]"]'], "both learnt from and tested on"),
        (["teacher-cache", "demo", "--set", "teacher_cache.weights=/nowhere"], "nor a folder with model.safetensors"),
        (["cache", "size", "demo", "--frames", "0"], "0 is not in the range x>=1"),
        (["cache", "verify", "demo", "--recompute", "-1"], "-1 is not in the range x>=0"),
        (["eval", "demo", "--protocol", "mine"], "protocol: expected one of surrounddepth"),
    ],
)
def test_bad_usage_is_one_clear_error_and_exit_2(arguments, message, tmp_path):
    code, text = surround(*arguments, *(["--run", tmp_path] if arguments[1:] else []))
    assert (code, message in text) == (2, True), text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_broken_frame_is_quarantined_with_exit_3_and_retried(recipe, tmp_path, monkeypatch):
    from data_cache.errors import FrameError
    from data_cache.sources.synthetic.source import SyntheticSource

    whole = SyntheticSource.frame

    def broken(self, frame_id):
        if frame_id == "drive-00/1":
            raise FrameError("image cannot be decoded: x.jpg")
        return whole(self, frame_id)

    options = ("--run", tmp_path, "--set", 'data.train=["drive-00[:2]"]')
    monkeypatch.setattr(SyntheticSource, "frame", broken)
    code, text = surround("teacher-cache", recipe, *options)
    assert (code, "drive-00/1: image cannot be decoded: x.jpg" in text) == (3, True)
    assert surround("teacher-cache", recipe, *options)[0] == 3
    assert surround("cache", "status", tmp_path)[0] == 3
    code, text = surround("cache", "verify", tmp_path)
    assert (code, "verified: 2 of 2 shards" in text) == (3, True), text
    assert "drive-00/1: image cannot be decoded: x.jpg" in text
    assert surround("train-student", recipe, *options)[0] == 0
    monkeypatch.undo()
    assert surround("teacher-cache", recipe, *options, "--retry")[0] == 0


def test_a_cache_that_is_copied_to_a_disk_of_the_node_teaches_the_same(run, recipe, tmp_path):
    (tmp_path / "cache").symlink_to(run / "cache")
    stage_to = f'train_student.stage_to="{tmp_path / "disk"}"'
    code, text = surround("train-student", recipe, "--run", tmp_path, "--set", stage_to)
    assert code == 0, text
    (copy,) = (tmp_path / "disk").iterdir()
    assert len(list((copy / "receipts").iterdir())) == 1
    assert (tmp_path / "student/last.safetensors").read_bytes() == (run / "student/last.safetensors").read_bytes()


def test_a_warning_of_ours_is_one_line_without_the_source_code():
    script = (
        "import warnings; from data_cache.errors import SurroundWarning; from pipeline.cli.main import main\n"
        "main(['weights'], standalone_mode=False)\n"
        "warnings.warn(SurroundWarning('the newest state is damaged')); warnings.warn('of a library')\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert told.splitlines()[0] == "Warning: the newest state is damaged"
    assert "UserWarning: of a library" in told.splitlines()[1]


def test_the_lines_of_the_readme_run(run, recipe, tmp_path, monkeypatch, capsys):
    """Exactly them, where README says that they run; only the run is a tiny one."""
    (snippet,) = re.findall(
        r"## From Python\n.*?```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL
    )
    lines = [line for line in snippet.splitlines() if line]
    assert len(lines) <= 10
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert surround("rig", "export", recipe, "--out", "example")[0] == 0
    exec(compile(snippet, "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [*load_rig("example/rig.json").cameras, "drive-00/0"]
    assert all(re.fullmatch(r"\w+ \(384, 640\) \d+\.\d+ to \d+\.\d+ m", line) for line in said[:6]), said
    assert re.fullmatch(r"drive-00/0 \(6, 32, 64, 3\) [1-7]\d\.\d+", said[6]), said


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        (("cache", "status"), "complete", True),
        (("cache", "verify"), "faults", []),
        (("cache", "size", "--frames", "1"), "frame_count", 1),
        (("train-student", "--dry-run"), "steps", 3),
        (("train-student",), "steps_skipped", 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_machines_read_json_and_nothing_else_on_standard_output(run, recipe, command, key, value):
    target = [run] if command[1:] in (("status",), ("verify",)) else [recipe, "--run", run]
    told = CliRunner().invoke(main, [*command, *map(str, target), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)[key] == value


def test_quiet_tells_results_alone(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv(QUIET, "0")
    told = CliRunner().invoke(main, ["teacher-cache", str(recipe), "--run", str(tmp_path), "--quiet"])
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout.startswith("teacher-cache: 1 shard written")
    assert os.environ[QUIET] == "1"  # for workers


def test_a_plan_of_stage_two_needs_what_the_run_needs(run, recipe, tmp_path):
    (tmp_path / "cache").symlink_to(run / "cache")
    options = ("--run", tmp_path, "--dry-run", "--set")
    code, text = surround("train-student", recipe, *options, 'train_student.stage_to="$NO_SUCH_DISK/x"')
    assert (code, "stage_to: '$NO_SUCH_DISK/x' names a variable that is not set; set it" in text) == (2, True), text


def test_a_plan_of_stage_two_is_printed_and_nothing_is_written(run, recipe, tmp_path):
    (tmp_path / "cache").symlink_to(run / "cache")
    code, text = surround("train-student", recipe, "--run", tmp_path, "--dry-run", "--set", "train_student.steps=900")
    assert code == 0
    assert "1 to train on, 0 quarantined, 0 to select on" in text
    assert "900 of 900 left, 1 frame each: 900 samples, 900.0 epochs" in text
    assert re.search(r"\d+ h \d\d min \d\d s: \d+\.\d\d s per step, \d+\.\d\d s to read its frames before each", text)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_help_of_no_verb_loads_a_heavy_library():
    """In one process: what one verb had loaded would be there after all that follow."""
    script = (
        "import sys; from pipeline.cli.main import main\n"
        f"for verb in {VERBS!r}:\n"
        "  try: main([*verb, '--help'])\n"
        "  except SystemExit as end: assert not end.code, verb\n"
        "  heavy = {'torch', 'numpy', 'zarr', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "  assert not heavy, (verb, heavy)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("Usage: ") == len(VERBS)


def test_weights_lists_the_known_ones():
    code, text = surround("weights")
    assert (code, "depth-anything-v2-small" in text, "Apache-2.0" in text, "resnet-18" in text) == (0, True, True, True)
    code, text = surround("weights", "nope")
    assert (code, "nope" in text) == (1, True)


def test_every_verb_decides_how_threads_wait_before_torch_is_loaded():
    """On a CPU that computes in fp32, as any does that is held to AVX2."""
    program = (
        "import os, sys; from pipeline.cli.main import main\n"
        "assert 'torch' not in sys.modules\n"
        "main(['weights'], standalone_mode=False); print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in DECIDED_BY}
    environment |= {ISA_VARIABLE: "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "1000", done.stderr
