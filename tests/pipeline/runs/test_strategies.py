"""Stage one by recipe alone with every binning strategy and with teachers of other families, as users run it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.caches import contents
from support.commands import Command, dask_process, free_port, wait_until
from support.surround import RECIPE, recomputes_what_it_stored, surround
from support.tiny_teachers import save_tiny
from torch.nn.functional import interpolate

from data_cache.shards.reader import CacheReader, cache_status
from data_cache.shards.records import unpack_depth_m
from pipeline.errors import RecipeError
from pipeline.recipe.config import load_recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.fit_bins import run_fit_bins
from stages.targets.bins import decode, expected_position, map_disparity
from stages.targets.lidar_fit import fit_disparity
from stages.targets.spec import BinSpec

LOCAL = ("--set", "bins.strategy=local", "--set", 'data.lidar_drives=["drive-00[1:2]"]')
FITTED = ("--set", "bins.strategy=fitted", "--set", "bins.fit_frames=2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folder) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(teacher=teacher_folder).replace("drive-00[:1]", "drive-00[:2]"))
    return path


@pytest.fixture(scope="module")
def fitted(recipe) -> Path:
    """A run folder with a fitted map and the cache that was made with it."""
    folder = recipe.parent / "fitted"
    for verb in ("fit-bins", "teacher-cache"):
        code, text = surround(verb, recipe, "--run", folder, *FITTED)
        assert code == 0, text
    return folder


def position(cache: Path, frame_id: str) -> torch.Tensor:
    """Expected bin position of every pixel."""
    record = CacheReader(cache).read(frame_id)
    stored = type(record.bins)(*(torch.from_numpy(array) for array in vars(record.bins).values()))
    return expected_position(decode(stored, BinSpec(prob_stride=2)))


def test_what_was_fitted_is_part_of_the_cache_and_bends_its_bins(recipe, fitted, tmp_path):
    knots = json.loads((fitted / "bins.json").read_text())["knots"]
    identity = json.loads((fitted / "cache/cache.json").read_text())["identity"]
    assert identity["bin_knots"] == knots
    assert identity["bin_definition"].endswith("the piecewise linear map of bin_knots")
    assert surround("teacher-cache", recipe, "--run", tmp_path)[0] == 0
    assert "bin_knots" not in json.loads((tmp_path / "cache/cache.json").read_text())["identity"]
    plain, bent = position(tmp_path / "cache", "drive-00/1"), position(fitted / "cache", "drive-00/1")
    expected = np.interp(plain.numpy(), np.linspace(0, 1, len(knots)), knots)
    inside = (expected > 0.05) & (expected < 0.95)  # towards the ends the window of bins is cut off
    np.testing.assert_allclose(bent.numpy()[inside], expected[inside], atol=0.02)


def test_a_second_fit_does_nothing_and_nothing_of_the_first_is_left_over(recipe, fitted):
    before = (fitted / "bins.json").read_bytes()
    code, text = surround("fit-bins", recipe, "--run", fitted, *FITTED)
    assert (code, "2 frames, 12 images" in text, "already done" in text) == (0, True, True), text
    assert (fitted / "bins.json").read_bytes() == before
    assert not (fitted / "fit-bins").exists()


def test_without_a_fitted_map_stage_one_names_the_command(recipe, tmp_path):
    for verb in (["teacher-cache"], ["cache", "size"]):
        code, text = surround(*verb, recipe, "--run", tmp_path, *FITTED)
        assert (code, "needs a fitted map" in text, "surround fit-bins" in text) == (2, True, True), text
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("bins.fit_frames=1", "fit_frames: bins.json has 2, recipe says 1"),
        ("teacher_cache.input_size=[56, 70]", "teacher_input_size: bins.json has [42, 70], recipe says (56, 70)"),
        ("data.depth_range_m=[0.1, 50]", "depth_range_m: bins.json has [0.1, 80.0], recipe says (0.1, 50.0)"),
    ],
)
def test_a_map_of_another_recipe_is_refused_and_the_difference_named(recipe, fitted, override, named):
    for verb in ("fit-bins", "teacher-cache"):
        code, text = surround(verb, recipe, "--run", fitted, *FITTED, "--set", override)
        assert (code, named in text, "was fitted under another recipe" in text) == (1, True, True), text


def test_a_map_of_another_teacher_is_refused(recipe, fitted, teacher_folder, tmp_path):
    other = Path(shutil.copytree(teacher_folder, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["head.conv3.bias"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    code, text = surround(
        "teacher-cache", recipe, "--run", fitted, *FITTED, "--set", f'teacher_cache.weights="{other}"'
    )
    assert code == 1
    assert "teacher_name: bins.json has 'tiny', recipe says 'other'" in text
    assert "teacher_weights_sha256: bins.json has" in text


def test_a_cache_of_another_map_is_refused(recipe, fitted, tmp_path):
    shutil.copytree(fitted, tmp_path / "run")
    path = tmp_path / "run/bins.json"
    table = json.loads(path.read_text())
    table["knots"][3] += 0.01
    path.write_text(json.dumps(table))
    code, text = surround("teacher-cache", recipe, "--run", tmp_path / "run", *FITTED)
    assert (code, "bin_knots: cache has" in text) == (1, True), text


def test_stage_two_and_verify_need_the_cache_alone(recipe, fitted, tmp_path):
    shutil.copytree(fitted / "cache", tmp_path / "cache")
    code, text = surround("train-student", recipe, "--run", tmp_path, *FITTED)
    assert (code, "3 steps" in text) == (0, True), text
    code, text = surround("cache", "verify", tmp_path, "--recompute", 1)
    assert (code, recomputes_what_it_stored(text)) == (0, True), text
    code, text = surround("train-student", recipe, "--run", tmp_path)
    assert (code, "bin_definition: cache has" in text) == (1, True), text


@pytest.mark.torture
def test_workers_elsewhere_get_what_was_fitted(recipe, fitted, tmp_path):
    """A worker of a foreign scheduler, which sees no run folder of this process."""
    shutil.copytree(fitted, tmp_path / "run", ignore=lambda folder, names: {"cache"} & {*names})
    log = tmp_path / "log"
    url = f"tcp://127.0.0.1:{free_port()}"
    with dask_process("scheduler", "--host", "127.0.0.1", "--port", url.split(":")[-1], "--no-dashboard",
                      "--no-jupyter", log=log):  # fmt: skip
        wait_until(lambda: "Scheduler at" in log.read_text(), "the scheduler")
        with dask_process("worker", url, "--nthreads", 1, "--no-dashboard", "--death-timeout", 60, log=log):
            how = (*FITTED, "--set", "student.encoder=resnet-10", "--scheduler", url)  # an encoder that it knows
            code, text = surround("teacher-cache", recipe, "--run", tmp_path / "run", *how)
    assert (code, "2 shards written" in text) == (0, True), text
    assert contents(tmp_path / "run/cache") == contents(fitted / "cache")


def test_a_killed_fit_goes_on_with_the_frames_that_are_missing(recipe, fitted, tmp_path, monkeypatch):
    from data_cache.sources.synthetic.source import SyntheticSource

    honest, asked = SyntheticSource.frame, []

    def frame(self, frame_id):
        asked.append(frame_id)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return honest(self, frame_id)

    monkeypatch.setattr(SyntheticSource, "frame", frame)
    parsed = load_recipe(str(recipe), FITTED[1::2])
    with pytest.raises(KeyboardInterrupt):
        run_fit_bins(parsed, RunFolder(tmp_path))
    assert not (tmp_path / "bins.json").exists()
    run_fit_bins(parsed, RunFolder(tmp_path))
    assert asked == ["drive-00/0", "drive-00/1", "drive-00/1"]
    assert (tmp_path / "bins.json").read_bytes() == (fitted / "bins.json").read_bytes()


@pytest.mark.torture
def test_fit_bins_as_a_process_says_what_it_found(recipe, tmp_path):
    command = Command(tmp_path / "log", "fit-bins", recipe, "--run", tmp_path / "run", "--set", "bins.fit_frames=1")
    assert command.end() == 0, command.output
    assert "fit-bins: 1 frame, 6 images" in command.output
    assert 'Note: teacher-cache uses them only with bins.strategy = "fitted"' in command.output


def test_zoedepth_bins_in_its_own_metres(recipe, tmp_path):
    """The whole of stage one by recipe; bins are the logarithm of its metres between the recipe's 0.5 and 2."""
    folder = save_tiny(tmp_path / "zoe", "zoedepth")
    text = recipe.read_text().replace("[bins]", '[bins]\nstrategy = "metric"\nmetric_range_m = [0.5, 2.0]')
    text = text.replace("input_size = [42, 70]", "input_size = [64, 96]")
    path = tmp_path / "zoe.toml"
    path.write_text("\n".join(f'weights = "{folder}"' if "weights =" in line else line for line in text.splitlines()))
    for verb in ("teacher-cache", "train-student"):
        code, said = surround(verb, path, "--run", tmp_path / "run")
        assert code == 0, said
    identity = json.loads((tmp_path / "run/cache/cache.json").read_text())["identity"]
    assert identity["bin_definition"] == "metric log map: u = 1 at 0.5 m, 0 at 2 m"
    assert identity["teacher_preprocessing"].endswith("mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5)")
    from pipeline.runs.stage_one import open_stage_one
    from stages.caching.teacher_input import prepare_frame

    stage = open_stage_one(load_recipe(str(path)))
    frame = prepare_frame(stage.source, "drive-00/0", (64, 96), (32, 64))
    depth_m = stage.teacher(torch.from_numpy(np.stack(frame.teacher_images[:1]))).prediction
    per_m = torch.nn.functional.interpolate(1 / depth_m[None], size=(16, 32), mode="area")[0, 0]
    expected = torch.log(2 * per_m) / np.log(4)
    assert ((expected > 0.1) & (expected < 0.9)).all()
    found = position(tmp_path / "run/cache", "drive-00/0")[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_lidar_corrects_the_bins_of_the_frames_that_may_use_it(recipe, tmp_path):
    """Frame 0 keeps the map that `affine` gives it and says so; frame 1 comes closer to its LiDAR."""
    assert surround("teacher-cache", recipe, "--run", tmp_path / "affine")[0] == 0
    code, text = surround("teacher-cache", recipe, "--run", tmp_path, *LOCAL)
    assert code == 0, text
    reader = CacheReader(tmp_path / "cache")
    assert reader.identity.bin_lidar == "0.1..80 m of drive-00[1:2]"
    assert "corrected in grids" in reader.identity.bin_definition
    assert "bin_lidar" not in json.loads((tmp_path / "affine/cache/cache.json").read_text())["identity"]
    kept, corrected = (position(tmp_path / "cache", f"drive-00/{i}") for i in (0, 1))
    assert torch.equal(kept, position(tmp_path / "affine/cache", "drive-00/0"))
    assert cache_status(tmp_path / "cache").notes["drive-00/0"] == "every camera keeps affine bins"
    lidar_m = torch.from_numpy(unpack_depth_m(reader.read("drive-00/1").lidar_depth))
    before, after = (lidar_error(u, lidar_m) for u in (position(tmp_path / "affine/cache", "drive-00/1"), corrected))
    assert after < 0.8 * before
    code, text = surround("cache", "verify", tmp_path, "--recompute", 2)
    assert (code, recomputes_what_it_stored(text)) == (0, True), text
    code, text = surround("teacher-cache", recipe, "--run", tmp_path, *LOCAL[:2])
    assert (code, "bin_lidar: cache has" in text) == (1, True), text
    # A refiner would learn from bins that LiDAR has corrected.
    code, text = surround("train-student", recipe, "--run", tmp_path, *LOCAL, "--dry-run")
    assert (code, "set losses.without_lidar = 'motion'" in text) == (2, True), text
    motion = ("--set", "losses.without_lidar='motion'", "--set", "train_student.batch_rigs=2")
    assert surround("train-student", recipe, "--run", tmp_path, *LOCAL, *motion)[0] == 0


def lidar_error(u: torch.Tensor, lidar_m: torch.Tensor) -> float:
    """AbsRel at returns of a map that is fitted to them view by view."""
    x = map_disparity(interpolate(u[None], size=lidar_m.shape[-2:], mode="bilinear")[0])
    found_m = fit_disparity(x, lidar_m).depth_m(x)
    there = lidar_m > 0
    return float(((found_m - lidar_m).abs()[there] / lidar_m[there]).mean())


def test_returns_that_corrected_the_bins_cannot_be_left_out_of_a_training(recipe):
    with pytest.raises(RecipeError, match=r"lidar_share is 0.1, but with bins.strategy = \"local\" all returns"):
        load_recipe(str(recipe), ["bins.strategy=local", "train_student.lidar_share=0.1"])


def test_metric_bins_of_a_relative_teacher_are_refused_before_anything_is_written(recipe, tmp_path):
    code, text = surround("teacher-cache", recipe, "--run", tmp_path, "--set", "bins.strategy=metric")
    assert (code, "needs a teacher that predicts metres" in text) == (2, True), text
    assert not (tmp_path / "cache").exists()


def test_a_student_does_not_depend_on_where_its_teachers_bins_lay(recipe, fitted, tmp_path):
    """Evaluated under the recipe of another strategy."""
    shutil.copytree(fitted / "cache", tmp_path / "cache")
    assert surround("train-student", recipe, "--run", tmp_path, *FITTED)[0] == 0
    code, text = surround("eval", recipe, "--run", tmp_path)
    assert code == 0, text
