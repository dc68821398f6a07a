import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.fakes import FakeSource, fake_view
from support.surround import surround

from data_cache.frames.rig import Camera, Frame, View
from data_cache.sources.base import StoredSource
from data_cache.sources.registry import open_source
from data_cache.sources.selectors import select
from data_cache.sources.synthetic.source import SyntheticSource
from pipeline.doctor import findings
from pipeline.doctor.checks import check_devices, check_loaders, check_scheduler, run_doctor
from pipeline.doctor.findings import Finding
from pipeline.recipe.config import load_recipe
from pipeline.recipe.run_folder import RunFolder
from stages.checkup.alignment import AS_GIVEN, CHANGES, Change, JumpCounts, alignment, check_alignment, count_jumps
from stages.checkup.files import MissingFiles, has_sweep, missing_files, read_sample
from stages.checkup.ring import RingCheck, check_ring, shared_view
from stages.evaluation.protocols import PROTOCOLS
from stages.teacher.base import TeacherOutput

SIZE = (192, 320)
OF_CHANGE = {change: i for i, change in enumerate(CHANGES)}


class Oracle:
    """A teacher that knows the true depth of the views that it is shown, one after the other."""

    name, licence, space, input_size = "oracle", "none", "disparity", SIZE
    weights_sha256, preprocessing, precision, runtime = "0" * 64, "none", "fp32", "torch"

    def __init__(self, frame: Frame):
        self.truths_m = [truth() for truth in frame.load_truth_m or ()]

    def __call__(self, images: torch.Tensor) -> TeacherOutput:
        truth_m = torch.from_numpy(np.stack([self.truths_m.pop(0)[::2, ::2] for _ in images]))
        disparity = torch.where(truth_m > 0, 1 / truth_m.clamp(min=0.1), 0.0)
        return TeacherOutput(disparity, torch.zeros(len(images), 4, *(side // 14 for side in SIZE)))


class BadlyMounted(SyntheticSource):
    """The synthetic drives with one camera whose calibration says 2 degrees more to the left or the right."""

    def __init__(self, view: int, right_deg: float):
        super().__init__()
        self._view, self._right = view, np.deg2rad(right_deg)

    def frame(self, frame_id):
        frame = super().frame(frame_id)
        c, s = np.cos(self._right), np.sin(self._right)
        turn = np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])
        views = list(frame.views)
        views[self._view] = replace(views[self._view], world_from_cam=views[self._view].world_from_cam @ turn)
        return replace(frame, views=tuple(views))


@pytest.mark.parametrize(("view", "right_deg"), [(0, 2.0), (4, -2.0)])
def test_a_camera_turned_by_two_degrees_is_found_and_no_other(view, right_deg):
    source = BadlyMounted(view, right_deg)
    sample = read_sample(source, ["drive-03/0"], SIZE)
    found = check_alignment(Oracle(source.frame("drive-03/0")), sample.frames)
    assert [i for i, aligned in found.items() if aligned.suspicious] == [view]
    better = found[view].better
    assert better is not None
    assert (np.sign(better.right_deg), abs(better.right_deg) >= 1, better.down_deg) == (-np.sign(right_deg), True, 0)
    (warning, rest) = findings.calibration_findings(source.rig.camera_names, found)
    assert (warning.level, rest.level) == ("warning", "ok")
    side = "left" if right_deg > 0 else "right"
    assert warning.found.startswith(source.rig.camera_names[view])
    assert f"further {side}" in warning.found


def test_a_jump_counts_where_the_teacher_sees_it_too():
    """By hand: returns at 10 m and 20 m on either side of an edge; the teacher sees it there, or 6 columns further."""
    depth_m = np.zeros((40, 70))
    depth_m[10, 19], depth_m[10, 20] = 10, 20
    K_px = np.array([[60.0, 0, 35], [0, 60, 20], [0, 0, 1]])
    columns = np.arange(70)
    same = np.broadcast_to(np.where(columns < 20, 0.8, 0.5), (40, 70))
    later = np.broadcast_to(np.where(columns < 26, 0.8, 0.5), (40, 70))
    there, elsewhere = count_jumps(same, depth_m, K_px), count_jumps(later, depth_m, K_px)
    assert (there.pairs[AS_GIVEN], there.agreed[AS_GIVEN]) == (1, 1)
    assert (elsewhere.pairs[AS_GIVEN], elsewhere.agreed[AS_GIVEN]) == (1, 0)
    # A degree is a pixel here: the camera has to be turned to the left for the returns to move to the right.
    assert there.agreed[OF_CHANGE[Change(right_deg=-3.0)]] == there.agreed[OF_CHANGE[Change(right_deg=3.0)]] == 0
    reversed_u = count_jumps(1 - same, depth_m, K_px)
    assert reversed_u.agreed[AS_GIVEN] == 0


def counts(given, pairs=1000, **shares):
    agreed = np.full(len(CHANGES), 100)
    agreed[AS_GIVEN] = given
    for name, value in shares.items():
        change = {"near": Change(right_deg=1.0), "far": Change(down_deg=-2.0), "zoom": Change(zoom=1.1)}[name]
        agreed[OF_CHANGE[change]] = value
    return JumpCounts(agreed, np.full(len(CHANGES), pairs))


@pytest.mark.parametrize(
    ("jumps", "suspicious"),
    [
        (counts(300), False),
        (counts(300, near=470), False),  # 1.57 times
        (counts(300, near=490), True),  # 1.63
        (counts(300, far=350), False),  # 1.17
        (counts(300, far=370), True),  # 1.23
        (counts(300, zoom=380), False),  # 1.27
        (counts(300, zoom=400), True),  # 1.33
        (counts(5, far=130), True),
        (counts(30, pairs=190, far=90), False),  # too few pairs
    ],
)  # fmt: skip
def test_another_calibration_is_believed_if_it_fits_better_than_chance_can(jumps, suspicious):
    assert alignment(jumps).suspicious is suspicious


def test_a_camera_that_shares_no_jump_is_doubted_and_one_with_too_few_is_left_open():
    lost = JumpCounts(np.full(len(CHANGES), 50), np.full(len(CHANGES), 1000))
    open_ = JumpCounts(np.full(len(CHANGES), 50), np.full(len(CHANGES), 100))
    assert (alignment(lost).lost, alignment(lost).suspicious, alignment(open_).lost) == (True, False, False)
    found = findings.calibration_findings(("a", "b"), {0: alignment(lost), 1: alignment(open_)})
    assert [finding.level for finding in found] == ["warning", "ok"]
    assert found[0].found.startswith("a: 5% of LiDAR's depth jumps")
    assert "exchanged" in found[0].found
    assert "too few jumps to judge b" in found[1].found


def camera(yaw_right_deg, height_px=20):
    yaw = np.deg2rad(yaw_right_deg)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    K_px = np.array([[40.0, 0, 40], [0, 40, height_px / 2], [0, 0, 1]])
    return View(Camera(f"c{yaw_right_deg}", K_px, 80, height_px), pose, 0, lambda: np.zeros((height_px, 80, 3)))


def test_two_cameras_of_ninety_degrees_forty_five_apart_share_half():
    assert shared_view(camera(0), camera(45, height_px=400)) == 0.5
    assert shared_view(camera(0), camera(180)) == 0
    assert shared_view(camera(0), camera(0)) == 1


def test_a_ring_is_read_clockwise_from_its_first_camera():
    views = tuple(fake_view(i, 0) for i in range(3))
    ring = check_ring(Frame("f", views))
    assert (ring.clockwise, ring.in_order) == (("front", "right", "left"), True)
    assert ring.shared == {("front", "right"): 0, ("right", "left"): 0, ("left", "front"): 0}
    wrong = check_ring(Frame("f", (views[0], views[2], views[1])))
    assert (wrong.clockwise, wrong.in_order) == (("front", "right", "left"), False)
    assert check_ring(Frame("f", (views[0], None, views[2]))).shared == {("left", "front"): 0.0}


def test_rings_that_are_wrong_are_problems_and_gaps_are_warnings():
    names = ("front", "left", "right")
    apart = {("front", "left"): 0.0, ("left", "right"): 0.0, ("right", "front"): 0.2}
    order, gap = findings.ring_findings(RingCheck(("front", "right", "left"), False, apart), names)
    assert (order.level, gap.level) == ("problem", "warning")
    assert "clockwise front, right, left" in order.found
    assert "nothing in common at 10 m: front-left, left-right" in gap.found
    order, shared = findings.ring_findings(RingCheck(names, True, apart | {("left", "right"): 0.25}), names)
    assert (order.level, shared.level, "left-right 25%" in shared.found) == ("ok", "ok", True)


class OnDisk(FakeSource):
    """Two drives of two frames, a file for each of two sensors."""

    root: Path

    @property
    def drives(self):
        return {"a": ("a/0", "a/1"), "b": ("b/0", "b/1")}

    def files(self, frame_id):
        return {sensor: self.root / sensor / frame_id.replace("/", "_") for sensor in ("cam", "lidar")}


def test_missing_files_are_counted_by_sensor_and_empty_drives_are_named(tmp_path):
    source = OnDisk()
    source.root = tmp_path
    assert isinstance(source, StoredSource)
    assert not isinstance(FakeSource(), StoredSource)
    ids = select(source, ["a", "b"])
    for frame_id in ids:
        for path in source.files(frame_id).values():
            path.parent.mkdir(exist_ok=True)
            path.touch()
    assert missing_files(source, ids) == MissingFiles({}, 4, 4)
    for gone in ("cam/a_1", "cam/b_0", "cam/b_1", "lidar/b_0", "lidar/b_1"):
        (tmp_path / gone).unlink()
    missing = missing_files(source, ids)
    assert missing.by_sensor == {"cam": (3, 4), "lidar": (2, 4)}
    assert (missing.complete, missing.empty_drives) == (1, ("b",))
    assert missing.example in {tmp_path / "cam/a_1"}
    finding = findings.files_finding(missing)
    assert (finding.level, "cam 3 of 4" in finding.found, "unpack" in finding.remedy) == ("warning", True, True)
    shutil.rmtree(tmp_path / "cam")
    assert findings.files_finding(missing_files(source, ids)).level == "problem"


@pytest.mark.parametrize(
    ("kind", "folder", "version", "sensors"),
    [("pandaset", "pandaset", "", 7), ("ddad", "ddad/ddad_train_val", "", 7), ("nuscenes", "nuscenes", "v1.0-mini", 7)],
)
def test_every_file_that_real_metadata_name_is_there(real_data, kind, folder, version, sensors):
    source = open_source(kind, real_data / folder, version)
    frame_ids = [frame_id for drive in source.drives.values() for frame_id in drive]
    assert len(source.files(frame_ids[0])) == sensors
    assert missing_files(source, frame_ids).by_sensor == {}


def test_a_sample_says_what_cannot_be_read_and_how_many_returns_each_view_has():
    source = FakeSource(broken={"d/1": "image cannot be decoded"}, no_lidar=("d/2",))
    sample = read_sample(source, ["d/0", "d/1", "d/2"], (42, 70))
    assert dict(sample.refused) == {"d/1": "image cannot be decoded"}
    frame = findings.sample_finding(sample)
    assert (frame.level, frame.found.startswith("2 of 3")) == ("warning", True)
    lidar = findings.lidar_finding(source.rig.camera_names, sample)
    assert (lidar.level, "1 of 2 frames have none" in lidar.found) == ("warning", True)
    assert sample.points(0) == int((sample.frames[0].lidar_depth[0] > 0).sum()) > 0
    none = findings.lidar_finding(source.rig.camera_names, read_sample(source, ["d/2"], (42, 70)))
    assert (none.level, "no return" in none.found, "millimetres" in none.remedy) == ("problem", True, True)
    assert [has_sweep(source, ids) for ids in (["d/2"], ["d/2", "d/0"], [])] == [False, True, False]
    assert findings.no_sweep_finding("ddad", 2, True).level == "problem"
    without = findings.no_sweep_finding("nuscenes", 1, False)
    assert (without.level, without.found) == ("warning", "none of 1 training frame has a sweep")
    assert "data.nearby_sweep_s" in without.remedy
    all_broken = read_sample(source, ["d/1"], (42, 70))
    assert findings.sample_finding(all_broken).level == "problem"


@pytest.mark.parametrize(("free", "level"), [(99, "problem"), (119, "warning"), (121, "ok"), (None, "ok")])
def test_room_is_a_problem_where_it_is_too_small_and_a_warning_where_it_is_close(free, level):
    finding = findings.room_finding("disk", "cache", 100, free, "larger disk")
    assert (finding.level, bool(finding.remedy)) == (level, level != "ok")


def test_open_files_weights_and_workers_have_a_remedy_each():
    assert findings.open_files_finding(300, 256).remedy.startswith("run `ulimit -n 600`")
    assert findings.open_files_finding(300, 1024).level == "ok"
    missing = findings.weights_finding("teacher", "depth-anything-v2-small", None)
    assert (missing.level, "surround weights depth-anything-v2-small" in missing.remedy) == ("warning", True)
    assert "Apache-2.0" in findings.weights_finding("teacher", "x", ("/w", "Apache-2.0")).found
    assert findings.scheduler_finding("tcp://h:1", 0).remedy == "start some: `dask worker tcp://h:1 --nthreads 1`"
    assert findings.scheduler_finding("tcp://h:1", 3).found == "tcp://h:1 answers, 3 workers"


def test_problems_come_first_and_remedies_below_them():
    text = findings.findings_text(
        [
            Finding("disk", "ok", "room"),
            Finding("ring order", "problem", "wrong", "turn it"),
            Finding("a", "warning", "b"),
        ]
    )
    assert text.splitlines() == [
        "problem  ring order  wrong",
        "                     -> turn it",
        "warning  a           b",
        "ok       disk        room",
    ]


def test_the_command_looks_at_everything_and_writes_a_picture_alone(recipe, tmp_path):
    code, text = surround("doctor", recipe, "--run", tmp_path, "--json", "--set", "train_student.workers=1")
    found = json.loads(text)
    assert code == 0, text
    assert all(f.keys() == {"check", "level", "found", "remedy"} for f in found)
    assert {f["level"] for f in found} <= {"ok", "warning"}
    assert all(f["remedy"] for f in found if f["level"] != "ok")
    assert list(dict.fromkeys(f["check"] for f in found)) == ["teacher", "data", "open files", "/dev/shm", "frames", "lidar", "calibration", "ring order", "neighbours", "picture", "disk", "memory", "devices"]  # fmt: skip # noqa: E501
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "doctor/lidar_on_images.png"]
    with Image.open(files[0]) as picture:
        assert picture.size == (3 * 640, 2 * 384)


def test_a_problem_is_exit_1_and_the_other_checks_still_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runs.cluster.PROBE_S", 0.1)
    nobody = ("--scheduler", "tcp://127.0.0.1:9")
    code, text = surround(
        "doctor", recipe, "--run", tmp_path, "--set", "data.source=ddad", "--data", "/nowhere", *nobody
    )
    assert code == 1, text
    first, remedy, *rest = text.splitlines()
    assert first.startswith("problem  data")
    assert ("found nothing at /nowhere" in first, "->" in remedy) == (True, True)
    assert any(line.startswith("problem  scheduler") for line in rest)
    assert any(line.startswith("ok       devices") for line in rest)


def test_frames_both_learnt_from_and_tested_are_a_problem_and_the_rest_is_checked(recipe, tmp_path):
    leaky = load_recipe(str(recipe), ['data.test=["drive-00[:1]"]'])
    found = {f.check: f for f in run_doctor(leaky, RunFolder(tmp_path))}
    assert (found["data"].level, "both learnt from and tested on" in found["data"].found) == ("problem", True)
    assert found["disk"].level == "ok"


def test_weights_that_are_not_here_are_a_warning_with_the_route(recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("SURROUND_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    absent = load_recipe(str(recipe), ["teacher_cache.weights=depth-anything-v2-small"])
    found = {f.check: f for f in run_doctor(absent, RunFolder(tmp_path))}
    assert (found["teacher"].level, found["calibration"].level) == ("warning", "warning")
    assert "model hub" in found["teacher"].remedy
    assert "disk" not in found
    assert found["picture"].level == "ok"


def test_what_a_protocol_will_not_measure_is_found_here_not_after_training(recipe, tmp_path, monkeypatch):
    inner = replace(PROTOCOLS["vfdepth"], inner_only=("synthetic",))
    monkeypatch.setattr("pipeline.runs.data.PROTOCOLS", {**PROTOCOLS, "vfdepth": inner})
    short = load_recipe(str(recipe), ["eval.protocol=vfdepth"])
    found = {f.check: f for f in run_doctor(short, RunFolder(tmp_path))}
    assert (found["data"].level, "measures none of its 1 frames" in found["data"].found) == ("problem", True)
    assert found["disk"].level == "ok"


def test_shared_memory_is_counted_for_the_cameras_of_the_rig(recipe):
    one = load_recipe(str(recipe), ["train_student.workers=1"])
    needed = [check_loaders(one, views)[-1].found.split(",")[0] for views in (6, 12)]
    sizes = [float(text.split()[-2]) for text in needed]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)


def test_a_bad_recipe_or_scheduler_is_exit_2(recipe, tmp_path):
    code, text = surround("doctor", recipe, "--run", tmp_path, "--scheduler", "slrm")
    assert (code, "--scheduler: expected threads, local, slurm or an address" in text) == (2, True)
    assert surround("doctor", "nope", "--run", tmp_path)[0] == 2
    assert surround("doctor", "demo", "--set", "bins.cuont=3", "--run", tmp_path)[0] == 2


def test_a_gpu_that_is_not_there_is_a_problem(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding,) = check_devices(load_recipe(str(recipe), ["train_student.device=cuda"]))
    assert (finding.level, "torch sees no GPU" in finding.found) == ("problem", True)


def test_a_scheduler_that_does_not_answer_is_a_problem(recipe, monkeypatch):
    monkeypatch.setattr("pipeline.runs.cluster.PROBE_S", 0.1)
    (finding,) = check_scheduler(load_recipe(str(recipe)), "tcp://127.0.0.1:9")
    assert (finding.level, "no dask scheduler answers" in finding.found) == ("problem", True)
    assert check_scheduler(load_recipe(str(recipe)), "threads") == []
