"""A student's depth in files, through the real command."""

import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from support.caches import contents
from support.commands import Command, HeldFrame
from support.data_sets.loose_images import camera, write_image, write_rig
from support.data_sets.moving_van import TOUR, YARD, write_moving_van
from support.fakes import NAMES, NATIVE_SIZE
from support.ply import read_ply
from support.students import LINEAGE, MEMORY_RECIPE, NEAR, run_predict, student, writing
from support.surround import surround

from data_cache.errors import FrameError, SurroundWarning
from data_cache.files import WriteError
from pipeline.api import load_student
from pipeline.runs import predict
from stages.compute.resize import depth_at, resized
from stages.evaluation.predictions import PNG_STEPS_PER_M, SIGMA_STEPS, read_prediction
from stages.inference.colours import colour_depth, depth_scale
from stages.inference.point_cloud import frame_cloud
from stages.student.checkpoint import Calibration, save_calibration, save_student

KINDS = ("png16", "npy", "colour", "ply", "glb", "html")


def test_every_kind_of_file_holds_what_the_student_says(folder):
    code, text = run_predict(folder, "--frame", 1, *writing(*KINDS))
    assert (code, "1 frame written, 0 already done" in text) == (0, True), text
    look = load_student(folder / "run/student/last.safetensors", precision="fp32")
    frame = NEAR.frame("d/1")
    said = look.look(frame)
    out = folder / "out"
    per_camera = {f"{kind}/{name}/d/1{suffix}" for name in NAMES
                  for kind, suffix in (("png16", ".png"), ("npy", ".npy"), ("colour", ".png"))}  # fmt: skip
    assert contents(out).keys() == per_camera | {"ply/d/1.ply", "glb/d/1.glb", "html/d/1.html", "predict.json"}
    for i, name in enumerate(NAMES):
        depth_m = depth_at(said.depth_m[i], NATIVE_SIZE)
        np.testing.assert_array_equal(np.load(out / f"npy/{name}/d/1.npy"), depth_m)
        read = read_prediction(out / f"png16/{name}/d/1.png", NATIVE_SIZE)
        np.testing.assert_allclose(read, depth_m, atol=0.5 / PNG_STEPS_PER_M + 1e-6)
        with Image.open(out / f"colour/{name}/d/1.png") as picture:
            expected = colour_depth(said.depth_m[i], depth_scale(LINEAGE.depth_range_m))
            np.testing.assert_array_equal(np.array(picture), expected)
    cloud = frame_cloud(frame, said, LINEAGE.depth_range_m, 4)
    assert f"{len(cloud.points_m):,} points in the last cloud" in text
    vertices = read_ply((out / "ply/d/1.ply").read_bytes())
    np.testing.assert_array_equal(np.stack([vertices[axis] for axis in "xyz"], axis=1), cloud.points_m)
    (points,) = trimesh.load_scene(out / "glb/d/1.glb").geometry.values()
    np.testing.assert_array_equal(points.vertices, cloud.points_m)
    assert f"{len(cloud.points_m):,} point" in (out / "html/d/1.html").read_text()


def test_confidence_is_written_and_a_student_without_calibration_says_so(folder):
    checkpoint = folder / "run/student/last.safetensors"
    with pytest.warns(SurroundWarning, match="this student has no calibration"):
        code, text = run_predict(folder, "--frame", 1, *writing("confidence", "ply"))
    assert code == 0, text
    plain = load_student(checkpoint, precision="fp32")
    frame = NEAR.frame("d/1")
    assert len(read_ply((folder / "out/ply/d/1.ply").read_bytes())) == len(
        frame_cloud(frame, plain.look(frame), LINEAGE.depth_range_m, 4).points_m
    )
    save_calibration(checkpoint, Calibration(0.5, "near", "d[:1]", 1234))
    assert surround("predict", checkpoint, "--out", folder / "sure", "--frame", 1, *writing("confidence"))[0] == 0
    sigma = plain.look(frame, uncalibrated=True).sigma
    for i, name in enumerate(NAMES):
        for out, scale, said in (("out", 1.0, "none"), ("sure", 0.5, "near d[:1]")):
            with Image.open(folder / out / f"confidence/{name}/d/1.png") as picture:
                assert (picture.size[::-1], picture.info["calibration"]) == (NATIVE_SIZE, said)
                found = np.asarray(picture) / SIGMA_STEPS
            np.testing.assert_allclose(found, scale * resized(sigma[i], NATIVE_SIZE), atol=0.6 / SIGMA_STEPS)


def test_all_test_frames_are_looked_at_and_what_is_missing_or_damaged_is_no_reason_to_stop(folder):
    code, text = run_predict(folder)
    assert (code, "3 frames written" in text, "d/3: image missing: x" in text) == (3, True, True), text
    assert "some of their files were not written" in text
    found = contents(folder / "out")
    assert "png16/right/d/1.png" in found
    assert "png16/right/d/2.png" not in found
    assert {name.split("/")[0] for name in found} == {"png16", "colour", "ply", "predict.json"}


def test_what_is_there_is_not_written_again(folder, monkeypatch):
    assert run_predict(folder, "--frame", 0, "--frame", 2)[0] == 0
    before = contents(folder / "out")
    looked = []
    real = predict.SurroundStudent.look
    monkeypatch.setattr(
        predict.SurroundStudent, "look", lambda self, f, **how: looked.append(f.id) or real(self, f, **how)
    )
    (folder / "out/colour/left/d/2.png").unlink()
    code, text = run_predict(folder, "--frame", 0, "--frame", 1, "--frame", 2)
    assert (code, "2 frames written, 1 already done" in text, looked) == (0, True, ["d/1", "d/2"]), text
    after = contents(folder / "out")
    assert {name: after[name] for name in before} == before
    assert run_predict(folder, "--frame", 0, *writing("npy"))[0] == 0
    assert looked == ["d/1", "d/2", "d/0"]
    assert "0 frames written, 1 already done" in run_predict(folder, "--frame", 0, *writing("npy"))[1]


def test_depth_maps_measure_like_the_student_that_made_them(folder):
    """`surround eval --predictions` of exact maps gives the very numbers of the student."""
    options = ("--run", folder / "run", "--set", "eval.latency=false", "--set", "eval.teacher=false",
               "--set", 'data.test=["d[:3]"]', "--set", "student.input_size=[32, 64]")  # fmt: skip
    # The fake's student is not of the recipe's architecture, so it is measured by what `eval` shares with `predict`.
    assert run_predict(folder, *writing("npy"), "--set", 'data.test=["d[:3]"]')[0] == 0
    code, text = surround("eval", folder / "run/recipe.toml", *options, "--predictions", folder / "out/npy")
    assert code == 0, text
    measured = json.loads((folder / "run/eval/report.json").read_text())
    from stages.evaluate import evaluate
    from stages.evaluation.spec import EvaluateSpec

    look = load_student(folder / "run/student/last.safetensors", precision="fp32")
    spec = EvaluateSpec(latency=False, teacher=False)
    expected = evaluate(
        NEAR, NEAR.drives["d"][:3], "d[:3]", look.network, None, spec, device=look.device, precision="fp32"
    )
    metric = expected.report.student.metric.mean
    assert measured["student"]["metric"]["mean"]["abs_rel"] == metric.abs_rel
    assert (measured["images"], measured["valid_pixels"]) == (expected.report.images, expected.report.valid_pixels)


def test_a_folder_belongs_to_one_student_and_one_data_set(folder):
    assert run_predict(folder, "--frame", 0)[0] == 0
    before = contents(folder / "out")
    write_rig(folder, *(camera(name) for name in NAMES))
    for name in NAMES:
        write_image(folder / f"in/{name}.png")
    code, text = run_predict(folder, folder / "in", "--rig", folder / "rig.json")
    assert (code, "predictions of another student or data set" in text) == (2, True), text
    save_student(folder / "run/student/last.safetensors", student(), LINEAGE.__class__(**{**vars(LINEAGE), "steps": 9}))
    code, text = run_predict(folder, "--frame", 0)
    assert (code, "checkpoint_sha256 was" in text, "name another folder" in text) == (2, True, True), text
    (folder / "out/predict.json").write_text("[]")
    code, text = run_predict(folder, "--frame", 0)
    assert (code, "predict.json cannot be read" in text) == (2, True), text
    assert {**contents(folder / "out"), "predict.json": b""} == {**before, "predict.json": b""}


def test_loose_images_with_a_rig(folder):
    rig = write_rig(folder, *(camera(name) for name in NAMES))
    for name in NAMES:
        write_image(folder / f"in/{name}.png")
    code, text = run_predict(folder, folder / "in", "--rig", rig, *writing("npy", "ply"))
    assert (code, "1 frame written" in text) == (0, True), text
    assert np.load(folder / "out/npy/front/images.npy").shape == NATIVE_SIZE
    # Every camera of this rig stands at (1.5, 0.25, 1.6) and looks ahead: nothing lies behind it.
    vertices = read_ply((folder / "out/ply/images.ply").read_bytes())
    assert vertices["x"].min() > 1.5
    many = [folder / f"in/{name}.png" for name in NAMES]
    code, text = surround(
        "predict", folder / "run/student/last.safetensors", *many, "--rig", rig, "--out", folder / "b"
    )
    assert (code, "1 frame written" in text) == (0, True), text


def test_a_loose_image_that_was_overwritten_is_looked_at_again(folder):
    rig = write_rig(folder, *(camera(name) for name in NAMES))
    for name in NAMES:
        write_image(folder / f"in/{name}.png")
    command = (folder / "in", "--rig", rig, *writing("npy"))
    assert "1 frame written, 0 already done" in run_predict(folder, *command)[1]
    assert "0 frames written, 1 already done" in run_predict(folder, *command)[1]
    before = np.load(folder / "out/npy/front/images.npy")
    write_image(folder / "in/front.png", 7)
    assert "1 frame written, 0 already done" in run_predict(folder, *command)[1]
    assert not np.array_equal(np.load(folder / "out/npy/front/images.npy"), before)


def test_a_checkpoint_that_is_not_there_is_told_first(folder):
    code, text = surround("predict", folder / "nowhere.safetensors", "--out", folder / "out")
    assert (code, f"no checkpoint at {folder}/nowhere.safetensors; it is RUN/student/" in text) == (1, True), text
    assert not (folder / "out").exists()


def test_images_of_a_rig_that_stands_nowhere_have_depth_and_the_cloud_says_why_not(folder):
    plain = camera("front")
    del plain["ego_from_cam"]
    rig = write_rig(folder, plain)
    write_image(folder / "in/front.png")
    assert run_predict(folder, folder / "in", "--rig", rig, *writing("npy"))[0] == 0
    code, text = run_predict(folder, folder / "in", "--rig", rig)
    assert (code, "give ego_from_cam in rig.json" in text, "Traceback" in text) == (2, True, False), text
    assert (folder / "out/png16/front/images.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/in"], "images and --rig go together"),
        (["--rig", "{}/rig.json"], "images and --rig go together"),
        (["{}/in", "--rig", "{}/rig.json", "--on", "demo"], "--on and --set choose frames of a recipe"),
        (["{}/in", "--rig", "{}/rig.json"], "{}/in: expected one image right.jpg"),
        (["{}/in/front.png", "--rig", "{}/one.json"], "front.png: expected 48 x 80 px (h x w), found 24 x 40"),
        (["{}/nowhere", "--rig", "{}/rig.json"], "found nothing at {}/nowhere"),
        (["--frame", "4"], "frame 4: expected a number from 0 to 3"),
        (["--frame", "-1"], "frame -1: expected a number from 0 to 3"),
        (["--frame", "3"], "Error: image missing: x"),
        (["--on", "nope"], "no recipe 'nope'"),
        (["--set", "data.tset=1"], "did you mean 'test'"),
        (["--write", "jpg"], "'jpg' is not one of"),
    ],
)
def test_what_cannot_be_is_one_clear_error(folder, arguments, message):
    write_rig(folder, camera("front")).rename(folder / "one.json")
    write_rig(folder, *(camera(name) for name in NAMES))
    write_image(folder / "in/front.png", size=(24, 40))
    code, text = run_predict(folder, *(argument.format(folder) for argument in arguments))
    assert (code, message.format(folder) in text, "Traceback" in text) == (2, True, False), text
    assert not list(folder.glob("out/[!p]*"))


def test_a_student_in_no_run_needs_a_recipe_or_images(folder):
    (folder / "run/student/last.safetensors").rename(folder / "some.safetensors")
    code, text = surround("predict", folder / "some.safetensors", "--out", folder / "out")
    assert (code, "pass --on RECIPE[=DATA], or images and --rig rig.json" in text) == (2, True), text
    code, text = surround(
        "predict", folder / "gone.safetensors", "--out", folder / "out", "--on", folder / "run/recipe.toml"
    )
    assert (code, "no checkpoint at" in text) == (1, True), text
    assert not (folder / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error(folder):
    (folder / "out").write_text("a file")
    code, text = run_predict(folder)
    assert (code, "cannot write" in text, "Traceback" in text) == (1, True, False), text


def test_depth_that_is_not_finite_is_never_written(folder):
    network = student()
    network.classify.bias.data[:] = float("nan")
    save_student(folder / "run/student/last.safetensors", network, LINEAGE)
    code, text = run_predict(folder, "--frame", 0)
    assert (code, "depth of frame d/0 is not finite" in text) == (2, True), text
    assert contents(folder / "out").keys() == {"predict.json"}


def test_a_kill_leaves_whole_files_and_the_same_command_goes_on(folder, monkeypatch):
    saved = []
    real = predict._save

    def full(path: Path, data: bytes) -> None:
        if len(saved) == 2:
            raise WriteError("disk full")
        saved.append(path)
        real(path, data)

    monkeypatch.setattr(predict, "_save", full)
    assert run_predict(folder, *writing("colour", "ply"))[0] == 1
    monkeypatch.setattr(predict, "_save", real)
    assert "3 frames written, 0 already done" in run_predict(folder, *writing("colour", "ply"))[1]
    assert not list(folder.rglob("*.partial"))


def test_a_signal_ends_it_between_two_frames_with_75(folder, monkeypatch):
    """In a process of its own, as a cluster sends it, while it reads the third of four cameras of the second frame."""
    van, recipe = write_moving_van(folder / "van"), folder / "van.toml"
    text = MEMORY_RECIPE.format(source=f'rig_folder"\nroot = "{van}')
    recipe.write_text(text.replace("d[1:]", TOUR).replace("d[:1]", YARD))
    student = folder / "run/student/last.safetensors"
    options = ("--on", recipe, "--out", folder / "out", "--write", "npy")
    with HeldFrame(van / "rear.cam/tour1.bmp") as held:
        command = Command(folder / "log", "predict", student, *options)
        held.wait_for_reader()
        command.signal(signal.SIGTERM)
        held.restore()
        held.let_go()
        assert (command.end(), "Run the same command to continue" in command.output) == (75, True), command.output
    assert len(list((folder / "out/npy").rglob("*.npy"))) in (4, 8)
    monkeypatch.undo()  # the data are no longer those in memory
    assert surround("predict", student, *options)[0] == 0
    assert len(list((folder / "out/npy").rglob("*.npy"))) == 12
    assert not list(folder.rglob("*.partial"))


def test_frames_that_all_fail_are_counted_with_the_first_reason(folder, monkeypatch):
    def fail(self, frame, **_):
        raise FrameError(f"{frame.id} looks bad")

    monkeypatch.setattr(predict.SurroundStudent, "look", fail)
    code, text = run_predict(folder)
    assert (code, "none of 4 frames can be used: d/0 looks bad" in text) == (2, True), text


def test_a_recording_without_rerun_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    code, text = run_predict(folder, *writing("rrd"))
    assert (code, "pip install 'surround-distill[rerun]'" in text) == (2, True), text
    assert not list((folder / "out").glob("drive.rrd*"))


def test_the_help_lists_what_there_is():
    code, text = surround("predict", "--help")
    assert code == 0
    kinds = re.search(r"\[png16\|[^\]]*\]", text)
    assert kinds is not None
    assert set(kinds[0].strip("[]").split("|")) == {*predict.IMAGE_KINDS, *predict.CLOUD_KINDS, *predict.WHOLE_DRIVES}


def test_the_name_of_a_recipe_is_never_taken_for_a_recording(tmp_path, monkeypatch):
    """A folder of that name often lies beside it: `surround rig export demo --out demo`."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "monday", "van.toml"):
        (tmp_path / name).mkdir()
    found = {on: predict.is_recording(on) for on in ("demo", "monday", "van.toml", "tuesday", "rig=monday", "")}
    assert found == {"demo": False, "monday": True, "van.toml": False, "tuesday": False, "rig=monday": False, "": False}
