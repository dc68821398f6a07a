"""A student on data sets that it has not learnt from, through the real command."""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fakes import NAMES, NATIVE_SIZE, STUDENT_SIZE, FakeSource
from support.students import LINEAGE, MEMORY_RECIPE, student
from support.surround import surround

from data_cache.errors import SourceError
from data_cache.frames.geometry import sparse_depth
from data_cache.frames.rig import Frame
from data_cache.frames.views import load_images, rig_views
from pipeline.runs import splits
from stages.compute.devices import resolve_precision
from stages.compute.resize import resize_views
from stages.evaluate import evaluate
from stages.evaluation.metrics import depth_errors
from stages.evaluation.spec import EvaluateSpec
from stages.inference.predict import predict_frame, predict_rig
from stages.student.checkpoint import save_student
from stages.student.fold import folded

CPU = torch.device("cpu")


@dataclass
class LongLens(FakeSource):
    """The same images through lenses of twice the focal length."""

    def frame(self, frame_id: str) -> Frame:
        frame = super().frame(frame_id)
        views = []
        for view in frame.views:
            if view is not None:
                K_px = view.camera.K_px.copy()
                K_px[:2, :2] *= 2
                view = replace(view, camera=replace(view.camera, K_px=K_px))
            views.append(view)
        return replace(frame, views=tuple(views))


@dataclass
class Dense(FakeSource):
    """Knows its depth everywhere: twice the student's disparity, plus 0.01 per metre."""

    def frame(self, frame_id: str) -> Frame:
        frame = super().frame(frame_id)
        seen_m = predict_frame(folded(student()), frame, CPU, resolve_precision("auto", CPU)).depth_m
        return replace(frame, load_truth_m=tuple(partial(np.copy, 1 / (2 / m + 0.01)) for m in seen_m))


SOURCES = {
    "dense": Dense(2, name="dense"),
    "home": FakeSource(4, name="home"),
    "near": FakeSource(4, name="near", missing={"d/2": (1,)}),
    "ddad": LongLens(3, name="ddad", broken={"d/1": "image missing: x"}),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A run with a student of `home`, and recipes home, near, far whose sources lie in memory."""

    def open_source(kind: str, root: Path | None, version: str = "", **options: object):
        if root is not None and not root.is_dir():
            raise SourceError(f"expected a data folder, found nothing at {root}")
        return SOURCES[kind]

    monkeypatch.setattr(splits, "open_source", open_source)
    save_student(tmp_path / "run/student/last.safetensors", student(), LINEAGE)
    for name, source in (("home", "home"), ("near", "near"), ("far", "ddad")):
        (tmp_path / f"{name}.toml").write_text(MEMORY_RECIPE.format(source=source))
    return tmp_path


def zero_shot(folder: Path, *arguments: object) -> tuple[int, str]:
    return surround("zero-shot", folder / "run/student/last.safetensors", *arguments)


def test_the_rows_are_what_evaluate_says_of_the_same_student_at_its_own_size(folder):
    code, text = zero_shot(folder, "--on", folder / "near.toml", "--on", folder / "far.toml")
    assert (code, "d/1: image missing: x" in text) == (3, True), text
    assert "Zero-shot: a sanity check, not a benchmark\n" in text
    written = json.loads((folder / "run/zero_shot/zero_shot.json").read_text())
    assert written["trained_on"] == json.loads(json.dumps(asdict(LINEAGE)))
    for target, name in zip(written["targets"], ("near", "ddad"), strict=True):
        source = SOURCES[name]
        spec = EvaluateSpec(latency=False, teacher=False)
        expected = evaluate(
            source, source.drives["d"][1:], "d[1:]", folded(student()), None, spec, device=CPU, precision="fp32"
        )
        assert target == json.loads(json.dumps(asdict(replace(expected.report, protocol="zero-shot"))))
    near, far = written["targets"]
    assert (near["frames"], near["images"], far["frames"], far["images"]) == (3, 8, 1, 3)
    assert (near["range_m"], far["range_m"]) == ([0.1, 80.0], [0.1, 200.0])
    page = (folder / "run/zero_shot/zero_shot.md").read_text()
    assert page.splitlines()[0] == "# Zero-shot: a sanity check, not a benchmark"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| h"]
    assert [row[0] for row in rows] == ["home to near d[1:]", "home to ddad d[1:]"]
    for row, target in zip(rows, written["targets"], strict=True):
        metric, affine = (target["student"][kind]["mean"] for kind in ("metric", "affine_invariant"))
        values = (metric["abs_rel"], metric["rmse"], metric["d1"], affine["abs_rel"])
        assert row[1:4] == [str(target["frames"]), str(target["images"]), f"{target['valid_pixels']:,}"]
        assert row[5:] == [f"{value:.3f}" for value in values]
        assert " | ".join(row[5:]) in " | ".join(cell.strip() for cell in page.split("|"))


def test_pixels_and_error_of_a_target_by_hand(folder):
    """The student's metres follow the target's focal length: f is twice as long, so is the depth of the same images."""
    assert zero_shot(folder, "--on", folder / "far.toml")[0] == 3
    target = json.loads((folder / "run/zero_shot/zero_shot.json").read_text())["targets"][0]
    sides, means, pixels = [], [], 0
    for source in (SOURCES["home"], SOURCES["ddad"]):
        frame = source.frame("d/2")
        rig = rig_views(frame, resize_views(load_images(frame), STUDENT_SIZE), None, STUDENT_SIZE)
        sides.append(predict_rig(student(), rig, CPU, "fp32"))
    np.testing.assert_allclose(sides[1], 2 * sides[0], rtol=1e-5)
    for i, view in enumerate(SOURCES["ddad"].frame("d/2").views):
        truth_m = sparse_depth(view, SOURCES["ddad"].frame("d/2").load_sweep(), NATIVE_SIZE)
        valid = (truth_m > 0.1) & (truth_m < 200)
        native = torch.nn.functional.interpolate(
            torch.from_numpy(2 * sides[0][i])[None, None], NATIVE_SIZE, mode="bilinear"
        )
        predicted_m = native[0, 0].numpy()[valid].clip(0.1, 200)
        means.append(depth_errors(predicted_m=predicted_m, truth_m=truth_m[valid]).abs_rel)
        pixels += int(valid.sum())
    metric = target["student"]["metric"]
    assert target["valid_pixels"] == pixels > 0
    assert [metric["per_camera"][name]["abs_rel"] for name in NAMES] == pytest.approx(means, rel=1e-4)
    assert metric["mean"]["abs_rel"] == pytest.approx(np.mean(means), rel=1e-4)


def test_overrides_go_to_the_target_they_name_and_the_table_where_it_is_told(folder):
    options = ("--on", folder / "near.toml", "--on", folder / "far.toml", "--set", 'far.data.test=["d[2:]"]')
    code, text = zero_shot(folder, *options, "--out", folder / "out")
    assert (code, f"table: {folder / 'out/zero_shot.md'}" in text) == (0, True), text
    assert not (folder / "run/zero_shot").exists()
    targets = json.loads((folder / "out/zero_shot.json").read_text())["targets"]
    assert [target["split"] for target in targets] == ["d[1:]", "d[2:]"]
    code, text = surround("zero-shot", folder / "run/student/last.safetensors", "--on", folder / "out/far.toml")
    assert (code, "d[2:]" in text) == (0, True), text  # the folder holds what was measured, ready to be measured again


def test_a_student_in_no_run_has_its_table_beside_it(folder):
    (folder / "run/student/last.safetensors").rename(folder / "some.safetensors")
    assert surround("zero-shot", folder / "some.safetensors", "--on", folder / "near.toml")[0] == 0
    assert (folder / "zero_shot/zero_shot.json").is_file()


def test_the_data_set_that_it_has_learnt_from_is_refused_before_anything_is_measured(folder):
    code, text = zero_shot(folder, "--on", folder / "near.toml", "--on", folder / "home.toml")
    assert (code, "target home: not zero-shot" in text, "c0ffeec0ffee" in text) == (2, True, True), text
    assert not (folder / "run/zero_shot").exists()


def test_dense_truth_is_measured_as_it_is_and_after_a_fit_of_scale_and_shift(folder):
    """By hand: d against d / (2 + 0.01 d) is an error of 1 + 0.01 d, and after the fit of no more than bf16 rounds."""
    (folder / "dense.toml").write_text(MEMORY_RECIPE.format(source="dense"))
    code, text = zero_shot(folder, "--on", folder / "dense.toml", "--on", folder / "near.toml")
    assert code == 0, text
    dense, without = json.loads((folder / "run/zero_shot/zero_shot.json").read_text())["targets"]
    assert 1 < dense["dense_truth"]["all"]["mean"]["abs_rel"] < 1.8
    fitted = dense["dense_affine_invariant"]["mean"]["abs_rel"]
    assert fitted == pytest.approx(0, abs=2**-8)
    assert (without["dense_truth"], without["dense_affine_invariant"]) == (None, None)
    header, first, second = (line for line in text.splitlines() if line[:3] in ("| s", "| h"))
    assert "dense AbsRel | dense AbsRel affine-invariant" in header
    assert first.split("|")[-2].strip() == f"{fitted:.3f}"
    assert [cell.strip() for cell in second.split("|")[-3:-1]] == ["-", "-"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing option '--on'"),
        (["--on", "nope"], 2, "no recipe 'nope'"),
        (["--on", "{}/near.toml=/nowhere"], 2, "target near: expected a data folder, found nothing at /nowhere"),
        (["--on", "{}/near.toml", "--set", 'near.data.test=["e"]'], 2, "target near: near: no drive or split 'e'"),
        (
            ["--on", "{}/near.toml", "--set", "data.root=x"],
            2,
            "expected RECIPE.SECTION.KEY=VALUE, RECIPE one of near",
        ),
        (["--on", "{}/near.toml", "--on", "{}/near.toml=x"], 2, "there is a target near already"),
        (["--on", "{}/near.toml", "--out", "{}/near.toml"], 1, "cannot write"),
    ],
)
def test_what_cannot_be_is_one_clear_error(folder, arguments, code, message):
    found, text = zero_shot(folder, *(argument.format(folder) for argument in arguments))
    assert (found, message in text, "Traceback" in text) == (code, True, False), text
    assert not (folder / "run/zero_shot").exists()


def test_a_checkpoint_that_is_none_is_one_clear_error(folder):
    (folder / "bad").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for path, message in ((folder / "bad", "expected format"), (folder / "gone", "no checkpoint at")):
        code, text = surround("zero-shot", path, "--on", folder / "near.toml")
        assert (code, message in text, "Traceback" in text) == (1, True, False), text


def test_the_protocol_is_not_one_for_a_run_s_own_data_set(folder):
    code, text = surround("eval", folder / "near.toml", "--run", folder / "run", "--protocol", "zero-shot")
    assert (code, "see `surround zero-shot --help`" in text) == (2, True), text
