import copy
import json
import os

import numpy as np
import pytest
from PIL import Image
from support.data_sets.rig_folder import AHEAD, BEHIND, MOUNT, RIG, line, write
from support.vehicle import write_vehicle

from data_cache.errors import FrameError, SourceError
from data_cache.frames.geometry import cam_from_lidar, project, sparse_depth
from data_cache.sources.rig_folder.source import RigFolderSource
from data_cache.sources.selectors import select
from data_cache.sources.synthetic import source as synthetic
from data_cache.sources.synthetic.world import STREET


def edited(value, path, new):
    """A copy in which what lies at `path` is `new`; with a function, what it makes of the old."""
    value = copy.deepcopy(value)
    *way, last = path
    inner = value
    for key in way:
        inner = inner[key]
    if new is None:
        del inner[last]
    else:
        inner[last] = new
    return value


def test_a_point_of_the_lidar_lands_where_the_hand_says(folder):
    """The LiDAR saw (12, 0.5, -1) from x = 9.5, 2 m up: (21.5, 0.5, 1) in the world.

    The camera takes its image later, at (11.5, 0, 1). So it lies 10 m ahead, 0.5 m to the left and level:
    u = 3.5 + 0.5 - 10 * 0.5 / 10, v = 2.5 + 0.5.
    """
    frame = RigFolderSource(folder).frame("m/2")
    view, sweep = frame.views[0], frame.load_sweep()
    seen = project(sweep.points_m, cam_from_lidar(view, sweep), view.camera.K_px, (6, 8))
    assert (seen.u_px.tolist(), seen.v_px.tolist(), seen.depth_m.tolist()) == ([3.5], [3.0], [10.0])
    assert sweep.dropped_count == 1


def test_frames_have_ids_drives_times_and_places_in_the_ring(folder):
    write(folder, lines=[line(1), "", line(2, cameras={"back": {"image": "images/b2.png"}}), line(3, drive="noon")],
          splits={"train": ["morning"], "test": ["noon"]})  # fmt: skip
    source = RigFolderSource(folder)
    assert (source.name, source.rig.name, source.rig.camera_names) == ("rig_folder", "van", ("front", "back"))
    assert dict(source.drives) == {"morning": ("m/1", "m/2"), "noon": ("m/3",)}
    assert dict(source.splits) == {"train": ("morning",), "test": ("noon",)}
    front, back = source.frame("m/1").views
    assert (front.time_ns, back.time_ns) == (1001, 5)
    assert front.load_image()[0, 0].tolist() == [1, 0, 0]
    assert source.frame("m/2").views[0] is None
    assert source.frame("m/3").load_sweep().points_m.tolist() == [[12, 0.5, -1]]


def test_pixel_centers_say_what_the_principal_point_means(folder):
    for centers, cx, cy in (("integers", 4.0, 3.0), ("half_integers", 3.5, 2.5)):
        write(folder, rig=RIG | {"pixel_centers": centers})
        K = RigFolderSource(folder).frame("m/1").views[0].camera.K_px
        np.testing.assert_array_equal(K, [[10, 0, cx], [0, 12, cy], [0, 0, 1]])


def test_only_an_image_that_is_not_undistorted_is_its_file(folder):
    front, back = RigFolderSource(folder).frame("m/1").views
    assert front.image_file == folder / "images/1.png"
    assert back.image_file is None
    assert back.load_image()[2, 4].tolist() == [0, 1, 0]


def test_a_frame_may_have_poses_and_intrinsics_of_its_own(folder):
    moved = np.eye(4)
    moved[:3, 3] = 3, -2, 1
    one = line(1)
    one["cameras"]["front"] |= {"world_from_cam": moved.tolist(), "intrinsics": [[20, 0, 1], [0, 20, 2], [0, 0, 1]]}
    one["cameras"]["back"] |= {"world_from_ego": BEHIND}
    one["lidar"] = {"points": "lidar/1.npy", "world_from_lidar": moved.tolist()}
    front, back = (frame := RigFolderSource(write(folder, lines=[one])).frame("m/1")).views
    np.testing.assert_array_equal(front.world_from_cam, moved)
    np.testing.assert_array_equal(front.camera.K_px, [[20, 0, 1.5], [0, 20, 2.5], [0, 0, 1]])
    np.testing.assert_array_equal(back.world_from_cam[:3, 3], [11, 0, 1])
    np.testing.assert_array_equal(frame.load_sweep().world_from_lidar, moved)


def test_what_is_written_about_rig_and_frames_has_a_hash_that_their_layout_and_other_frames_do_not_change(folder):
    def found(ids=("m/1", "m/2")):
        return RigFolderSource(folder).metadata_sha256(ids)

    before = found()
    assert found(("m/1", "m/3")) != before
    (folder / "rig.json").write_text(json.dumps(dict(reversed(RIG.items())), indent=2))
    assert found() == before
    write(folder, lines=[line(1), line(2), line(3, world_from_ego=BEHIND), line(4)])
    assert found() == before
    write(folder, lines=[line(1), line(2, world_from_ego=BEHIND)])
    assert found() != before
    write(folder, rig=edited(RIG, ("cameras", 0, "intrinsics", 0, 0), 10.5))
    assert found() != before


def test_without_any_pose_the_world_is_the_vehicle(folder):
    one = edited(edited(line(1), ["world_from_ego"], None), ["lidar", "world_from_ego"], None)
    frame = RigFolderSource(write(folder, lines=[one])).frame("m/1")
    np.testing.assert_array_equal(frame.views[0].world_from_cam, MOUNT)
    assert frame.load_sweep().world_from_lidar[2, 3] == 2


def test_a_camera_may_only_have_its_place_in_the_ring(folder):
    rig = edited(RIG, ["cameras"], [*RIG["cameras"], {"name": "left"}])
    source = RigFolderSource(write(folder, rig=rig))
    assert source.rig.camera_names == ("front", "back", "left")
    assert source.frame("m/1").views[2] is None
    bad = line(1, cameras={"left": {"image": "images/1.png"}})
    with pytest.raises(SourceError, match=r"line 1: cameras\.left: expected its width, height and intrinsics in rig"):
        RigFolderSource(write(folder, rig=rig, lines=[bad]))


MIRROR = [[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]
STRETCHED = [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (["format"], 2, "format: expected 1, found 2"),
        (["format"], True, "format: expected 1, found True"),
        (["pixel_centers"], None, "expected the key 'pixel_centers'"),
        (["pixel_centers"], "corners", r"expected \"integers\" .* found 'corners'"),
        (["name"], "../up", "name: expected a name of at most 64 letters"),
        (["cams"], [], "no key \"cams\"; did you mean 'cameras'"),
        (["cameras"], [], "expected a list of 1 to 64 values, found 0 values"),
        (["cameras"], {}, r"expected a list of 1 to 64 values, found \{\}"),
        (["cameras", 1, "name"], "front", r"cameras\[1\]\.name: expected each name once, found 'front' twice"),
        (["cameras", 0, "width"], 10**9, r"cameras\[0\] \(front\)\.width: expected a whole number from 1 to 16384"),
        (["cameras", 0, "height"], 6.0, "expected a whole number"),
        (["cameras", 0, "width"], True, "expected a whole number"),
        (["cameras", 0, "width"], None, "expected the key 'width'"),
        (["cameras", 0, "K"], 1, 'no key "K"'),
        (["cameras", 0, "intrinsics", 0, 0], -10,
         r"cameras\[0\] \(front\): expected \[\[fx, s, cx\].* fx, fy > 0 px, found \[\[-10\.0, 0\.0, 3\.5\]"),
        (["cameras", 0, "intrinsics", 0], [1, 2], "expected 3 rows of 3 numbers"),
        (["cameras", 0, "intrinsics", 0, 0], 10**400, "expected a finite number"),
        (["cameras", 1, "distortion", "model"], "omni", "unknown distortion model 'omni'; it is one of plumb_bob"),
        (["cameras", 1, "distortion", "coefficients"], [1, 2, 3], "expected 4 finite coefficients"),
        (["cameras", 1, "distortion", "coefficients"], ["a"], r"coefficients\[0\]: expected a finite number, found"),
        (["cameras", 1, "distortion", "coefficients"], [-9, 0, 0, 0], "without folding it"),
        (["cameras", 0, "ego_from_cam"], MIRROR, r"\(front\)\.ego_from_cam: expected a right-handed rotation"),
        (["cameras", 0, "ego_from_cam"], STRETCHED, "expected a rigid transform"),
        (["cameras", 0, "ego_from_cam"], np.transpose(MOUNT).tolist(), "the last one 0 0 0 1, .*: transpose it"),
        (["cameras", 0, "ego_from_cam", 0, 0], 0.1, "at right angles, within 0.001, found an error of 0.1:"),
        (["cameras", 0, "ego_from_cam", 0, 3], 1500, "expected a translation below 100 m, .*; poses are in metres"),
        (["lidar", "ego_from_lidar", 2, 3], 1800, "expected a translation below 100 m"),
        (["cameras", 1, "distortion", "model"], "radtan", "unknown .* model 'radtan'.*radtan is plumb_bob here"),
        (["cameras", 1, "distortion", "model"], "equi", "equi is fisheye here"),
        (["lidar", "ego_from_lidar", 0], [1, 0, 0], "expected 4 rows of 4 numbers"),
        (["cameras", 0, "ego_from_cam"], None, "front: expected world_from_cam here or ego_from_cam in rig.json"),
        (["lidar"], None, r"line 1: lidar: expected world_from_lidar here or ego_from_lidar in rig\.json"),
    ],
)  # fmt: skip
def test_a_rig_that_cannot_be_is_one_error_that_names_file_and_key(folder, path, new, message):
    with pytest.raises(SourceError, match=rf"(rig\.json|frames\.jsonl).*{message}"):
        RigFolderSource(write(folder, rig=edited(RIG, path, new)))


NAN = [[1, 0, 0, float("nan")], *AHEAD[1:]]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (line(2, id="m/1"), "expected each id once, found 'm/1' also in line 1"),
        (line(2, id="a\nb"), "id: expected text of 1 to 1024 printable characters"),
        (line(2, drive="a[1]"), r"drive: expected a name without \[ and \]"),
        (line(2, drive="list:a"), "drive: expected a name that does not begin with list:"),
        (line(2, world_from_ego=[*AHEAD[:2], [0, 0, 1, 1e9], AHEAD[3]]), r"expected a translation below 1e\+08 m"),
        (line(2, cameras={}), "cameras: expected at least one camera, found none"),
        (line(2, time_ns=1000), "found that the frame goes back 1 ns in drive morning"),
        (edited(line(2), ["cameras", "back", "time_ns"], 4), "found that the back goes back 1 ns"),
        (edited(line(2), ["lidar", "time_ns"], 4), "found that the LiDAR goes back 987 ns"),
        (line(2, time_ns=-1), "time_ns: expected a whole number from 0"),
        (line(2, time_ns=1e18), "time_ns: expected a whole number"),
        (edited(line(2), ["time_ns"], None), r"cameras\.front: expected the key 'time_ns' here or in the line"),
        (line(2, world_from_ego=NAN), "expected finite numbers, found NaN"),
        (line(2, world_from_ego=MIRROR), "world_from_ego: expected a right-handed rotation"),
        (line(2, world_from_ego=STRETCHED), "world_from_ego: expected a rigid transform"),
        (line(2, world_from_ego="here"), "expected 4 rows of 4 numbers, found \"here\""),
        (edited(line(2), ["world_from_ego"], None), r"cameras\.front: expected a pose, found none while others"),
        (edited(edited(line(2), ["world_from_ego"], None), ["lidar", "world_from_ego"], None),
         "expected poses in every frame of drive morning or in none, found none here and some in line 1"),
        (edited(line(2), ["lidar", "world_from_lidar"], AHEAD), "expected one of world_from_lidar and world_from_ego"),
        (edited(line(2), ["cameras", "top"], {"image": "a.png"}), "no camera 'top' in rig.json; it has front, back"),
        (edited(line(2), ["cameras", "front", "imag"], "a"), r"cameras\.front: no key \"imag\"; did you mean 'image'"),
        (edited(line(2), ["cameras", "front"], "images/2.png"), r"cameras\.front: expected an object with image"),
        (edited(line(2), ["cameras", "front", "image"], "/etc/passwd"), "expected a path below the folder"),
        (edited(line(2), ["cameras", "front", "image"], "images/../../secret.png"), "expected a path below the folder"),
        (edited(line(2), ["cameras", "front", "image"], "C:/x.png"), "expected a path below the folder"),
        (edited(line(2), ["cameras", "front", "image"], "images\\..\\x.png"), "expected a path below the folder"),
        (edited(line(2), ["lidar", "points"], "../x.npy"), r"lidar\.points: expected a path below the folder"),
        (edited(line(2), ["cameras", "front", "intrinsics"], [[1]]), "expected 3 rows of 3 numbers"),
        ("[1, 2]", "expected an object with id, drive, cameras"),
        ('{"id": "a", "id": "b"}', "expected each key once, found \"id\" twice"),
        ("{", "expected JSON, found Expecting property name"),
        ("[" * 100_000, "expected JSON, found maximum recursion depth"),
        (" " * 2**20 + "{}", "expected at most 1048576 bytes, found more"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_is_one_error_that_names_file_and_number(folder, second, message):
    with pytest.raises(SourceError, match=rf"frames\.jsonl line 2: .*{message}") as caught:
        RigFolderSource(write(folder, lines=[line(1), second]))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["noon"]}, "train: expected drives of frames.jsonl, found 'noon', which has no frame"),
        ({"train": ["morning", "morning"]}, "expected a list of 1 to 1 values, found 2 values"),
        ({"morning": ["morning"]}, "expected a name that is not a drive's"),
        ({"train": "morning"}, "expected a list"),
        (["train"], "expected an object"),
    ],
)
def test_splits_that_cannot_be_are_an_error(folder, splits, message):
    with pytest.raises(SourceError, match=rf"splits\.json: .*{message}"):
        RigFolderSource(write(folder, splits=splits))


def test_a_folder_without_its_two_files_says_what_was_found(folder):
    (folder / "frames.jsonl").write_text("\n\n")
    with pytest.raises(SourceError, match=r"frames\.jsonl: expected a frame per line, found none"):
        RigFolderSource(folder)
    (folder / "frames.jsonl").unlink()
    with pytest.raises(SourceError, match="expected rig.json and frames.jsonl, found in .*: images, lidar, rig.json"):
        RigFolderSource(folder)


@pytest.mark.parametrize("name", ["rig.json", "frames.jsonl", "splits.json"])
def test_text_that_is_not_utf_8_is_an_error(folder, name):
    (folder / name).write_bytes(b'{"\xff": 1}')
    with pytest.raises(SourceError, match=rf"{name}.*expected UTF-8"):
        RigFolderSource(folder)
    (folder / name).write_text("{}", encoding="utf-16")
    with pytest.raises(SourceError, match=rf"{name}.*looks like UTF-16: save it as UTF-8"):
        RigFolderSource(folder)


def test_an_empty_file_is_called_empty_and_a_byte_order_mark_is_no_matter(folder):
    for name in ("rig.json", "frames.jsonl"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert RigFolderSource(folder).frame("m/1").views[0] is not None
    (folder / "rig.json").write_bytes(b" ")
    with pytest.raises(SourceError, match=r"rig\.json: expected text, found an empty file"):
        RigFolderSource(folder)


def test_a_folder_without_splits_says_so_where_one_is_asked_for(folder):
    with pytest.raises(
        SourceError, match=r"no drive or split 'test'; splits: none; .*set data\.train.* write splits\.json"
    ):
        select(RigFolderSource(folder), ["test"])


def test_a_link_out_of_the_folder_is_refused(folder):
    (folder / "images/1.png").unlink()
    (folder / "images/1.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(FrameError, match=r"frames\.jsonl line 1: expected a file in .*leads to .*secret\.png"):
        RigFolderSource(folder).frame("m/1").views[0].load_image()
    (folder / "images").rename(folder.parent / "elsewhere")
    (folder / "images").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(SourceError, match=r"frames\.jsonl line 1: expected files in .*images leads to .*elsewhere"):
        RigFolderSource(folder)


def test_a_link_within_the_folder_is_followed(folder):
    (folder / "images").rename(folder / "kept")
    (folder / "images").symlink_to("kept")
    assert RigFolderSource(folder).frame("m/1").views[0].load_image()[0, 0].tolist() == [1, 0, 0]


def test_a_listed_file_that_is_missing_or_no_file_costs_only_its_frame(folder):
    (folder / "images/1.png").unlink()
    (folder / "images/b1.png").unlink()
    os.mkfifo(folder / "images/b1.png")
    (folder / "lidar/1.npy").unlink()
    (folder / "lidar/1.npy").symlink_to("1.npy")
    frame = RigFolderSource(folder).frame("m/1")
    for load, message in (
        (frame.views[0].load_image, r"file missing: .*images/1\.png, listed in .*frames\.jsonl line 1"),
        (frame.views[1].load_image, r"line 1: expected a file at .*b1\.png, found something else"),
        (frame.load_sweep, r"file missing: .*lidar/1\.npy"),
    ):
        with pytest.raises(FrameError, match=message):
            load()
    assert RigFolderSource(folder).frame("m/2").views[0].load_image().shape == (6, 8, 3)
    with pytest.raises(FrameError, match="no frame 'm/9'"):
        RigFolderSource(folder).frame("m/9")


def test_an_image_of_another_size_is_refused_before_it_is_decoded(folder, monkeypatch):
    Image.new("L", (4000, 4000)).save(folder / "images/1.png")
    Image.new("L", (4000, 4000)).save(folder / "images/b1.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for view in RigFolderSource(folder).frame("m/1").views:
        with pytest.raises(FrameError, match=r"expected [46] x 8 px \(h x w\), found 4000 x 4000"):
            view.load_image()


def test_a_made_up_vehicle_sees_through_every_lens_what_a_pinhole_camera_sees_there(tmp_path):
    """Renders the street again with the calibration and pose that the source gives; the LiDAR agrees with its depth."""
    source = RigFolderSource(write_vehicle(tmp_path, {0: 1}, {"train": [0]}))
    frame = source.frame("street-0/0")
    sweep = frame.load_sweep()
    assert len(frame.views) == 5
    for view in frame.views:
        truth = synthetic._tracer(STREET, 0).render(view.camera, view.world_from_cam, np.random.default_rng(0))
        difference = np.abs(view.load_image().astype(int) - truth.rgb)
        assert np.median(difference) <= 5, view.camera.name
        depth_m = sparse_depth(view, sweep, truth.depth_m.shape)
        both = (depth_m > 0) & (truth.depth_m > 0)
        assert both.sum() > 3000
        assert np.median(np.abs(depth_m / np.where(both, truth.depth_m, 1) - 1)[both]) < 0.01, view.camera.name


def test_a_mask_is_read_with_the_same_checks_as_an_image_and_through_the_same_lens(folder):
    one = edited(edited(line(1), ["cameras", "front", "mask"], "f.png"), ["cameras", "back", "mask"], "b.png")
    grey = np.full((6, 8), 255, np.uint8)
    grey[:, :3] = 0
    grey[0, 7] = 254
    Image.fromarray(grey).save(folder / "f.png")
    Image.fromarray(grey[:4]).save(folder / "b.png")
    source = RigFolderSource(write(folder, lines=[one]))
    front, back = (view.load_unoccluded() for view in source.frame("m/1").views)
    np.testing.assert_array_equal(front, grey == 255)
    assert (back.shape, back[:, :3].any(), back[2:, 5:].all()) == ((4, 8), False, True)
    assert source.files("m/1")["front mask"] == folder / "f.png"
    Image.fromarray(grey[1:]).save(folder / "f.png")
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to(folder.parent / "secret.png")
    for view, message in zip(source.frame("m/1").views, ("expected 6 x 8 px", "leads to"), strict=True):
        with pytest.raises(FrameError, match=rf"{message}") as caught:
            view.load_unoccluded()
        assert "frames.jsonl line 1" in str(caught.value)
    bad = edited(one, ["cameras", "front", "mask"], "../f.png")
    with pytest.raises(SourceError, match=r"cameras\.front\.mask: expected a path below the folder"):
        RigFolderSource(write(folder, lines=[bad]))


def test_every_error_of_a_file_names_the_line_that_lists_it(folder):
    (folder / "images/2.png").write_bytes(b"no image")
    Image.new("RGB", (9, 4)).save(folder / "images/b2.png")
    (folder / "lidar/2.npy").write_bytes(b"no array")
    frame = RigFolderSource(folder).frame("m/2")
    for load in (frame.views[0].load_image, frame.views[1].load_image, frame.load_sweep):
        with pytest.raises(FrameError, match=r", listed in .*frames\.jsonl line 2$"):
            load()
