"""What the doctor says of a measurement; the measurements themselves: stages/checkup."""

from pathlib import Path

from support.fakes import FakeSource

from pipeline.doctor import findings
from stages.checkup.alignment import Alignment, Change
from stages.checkup.readable import MissingFiles, read_sample
from stages.checkup.ring import RingCheck


def test_missing_files_are_a_warning_and_a_problem_where_no_frame_is_whole():
    by_sensor = {"cam": (3, 4), "lidar": (2, 4)}
    finding = findings.files_finding(MissingFiles(by_sensor, 4, 1, ("b",), Path("cam/a_1")))
    assert (finding.level, "cam 3 of 4" in finding.found, "unpack" in finding.remedy) == ("warning", True, True)
    assert findings.files_finding(MissingFiles(by_sensor, 4, 0, ("b",), Path("cam/a_1"))).level == "problem"
    assert findings.files_finding(MissingFiles({}, 4, 4)).level == "ok"


def test_frames_that_cannot_be_read_and_views_without_returns_are_told():
    source = FakeSource(broken={"d/1": "image cannot be decoded"}, no_lidar=("d/2",))
    sample = read_sample(source, ["d/0", "d/1", "d/2"], (42, 70))
    frame = findings.sample_finding(sample)
    assert (frame.level, frame.found.startswith("2 of 3")) == ("warning", True)
    lidar = findings.lidar_finding(source.rig.camera_names, sample)
    assert (lidar.level, "1 of 2 frames have none" in lidar.found) == ("warning", True)
    none = findings.lidar_finding(source.rig.camera_names, read_sample(source, ["d/2"], (42, 70)))
    assert (none.level, "no return" in none.found, "millimetres" in none.remedy) == ("problem", True, True)
    assert findings.no_sweep_finding("ddad", 2, True).level == "problem"
    without = findings.no_sweep_finding("nuscenes", 1, False)
    assert (without.level, without.found) == ("warning", "none of 1 training frame has a sweep")
    assert "data.nearby_sweep_s" in without.remedy
    all_broken = read_sample(source, ["d/1"], (42, 70))
    assert findings.sample_finding(all_broken).level == "problem"


def test_a_camera_that_fits_better_turned_is_warned_of_by_name_and_the_others_are_not():
    turned = Alignment(1000, 0.2, Change(right_deg=-2.0), 0.4)
    (warning, rest) = findings.calibration_findings(("a", "b"), {0: Alignment(1000, 0.4, None, 0.4), 1: turned})
    assert (warning.level, rest.level) == ("warning", "ok")
    assert warning.found.startswith("b: 20% of LiDAR's depth jumps")
    assert warning.found.endswith("40% with the camera turned 2 degrees further left")
    assert "a 40%" in rest.found


def test_a_camera_that_shares_no_jump_is_doubted_and_one_with_too_few_is_left_open():
    lost, open_ = Alignment(1000, 0.05, None, 0.05), Alignment(100, 0.5, None, 0.5)
    found = findings.calibration_findings(("a", "b"), {0: lost, 1: open_})
    assert [finding.level for finding in found] == ["warning", "ok"]
    assert found[0].found.startswith("a: 5% of LiDAR's depth jumps")
    assert "exchanged" in found[0].found
    assert "too few jumps to judge b" in found[1].found


def test_rings_that_are_wrong_are_problems_and_gaps_are_warnings():
    names = ("front", "left", "right")
    apart = {("front", "left"): 0.0, ("left", "right"): 0.0, ("right", "front"): 0.2}
    order, gap = findings.ring_findings(RingCheck(("front", "right", "left"), False, apart), names)
    assert (order.level, gap.level) == ("problem", "warning")
    assert "clockwise front, right, left" in order.found
    assert "no overlap at 10 m: front-left, left-right" in gap.found
    order, shared = findings.ring_findings(RingCheck(names, True, apart | {("left", "right"): 0.25}), names)
    assert (order.level, shared.level, "left-right 25%" in shared.found) == ("ok", "ok", True)
