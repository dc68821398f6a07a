import math
import os

import numpy as np
import pytest
import torch
from support.fakes import random_record, rig_tensors, tiny_identity

from data_cache.dataset import (
    CachedFrames,
    CachedRigs,
    LoaderError,
    batches,
    collate,
    moved_m,
    same_drive,
    single,
)
from data_cache.metres import write_metres
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.errors import DamagedCacheError
from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.reader import CacheReader
from data_cache.shards.records import FrameRecord
from data_cache.shards.schema import array_table, shard_name
from data_cache.shards.writer import CacheWriter

FRAMES = SplitFrames(("d/0", "d/1"), ())
TYPES = {
    "bin_first": torch.uint8,
    "bin_prob": torch.uint8,
    "bin_map": torch.int32,
    "bin_dense": torch.float16,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_stored_bins_are_served_as_tensors_and_stacked_into_batches(tmp_path, encoding):
    identity = tiny_identity(FRAMES, encoding=encoding)
    records = [random_record(identity, seed) for seed in (0, 1)]
    if encoding == "closed_form":
        records[1].bins.bin_map[2, 1, 0] = 65535
    CacheWriter(tmp_path, identity, Resolved("fp32", 6, 1), FRAMES).commit(0, records, {}, {})
    frames = CachedFrames(CacheReader(tmp_path), FRAMES.train)
    batch = collate([frames[0], frames[1]])
    assert batch.frame_ids == FRAMES.train
    assert type(batch.bins) is ENCODINGS[encoding]
    for name, tensor in vars(batch.bins).items():
        assert tensor.dtype == TYPES[name]
        for i, record in enumerate(records):
            assert tensor[i].tolist() == getattr(record.bins, name).tolist()
    if encoding == "closed_form":
        assert batch.bins.bin_map[1, 2, 1, 0] == 65535


def drive_record(seed: int, x_m: float = 0.0, missing: tuple[int, ...] = ()) -> FrameRecord:
    """A rig of three at (400 km + x_m, 5,000 km, 0): camera 0 looks along world x, camera 1 stands 2 m ahead of it."""
    record = random_record(tiny_identity(FRAMES), seed)
    record.view_valid[:] = [i not in missing for i in range(3)]
    record.intrinsics[:] = [[[4, 0, 2.5], [0, 5, 1.5], [0, 0, 1]]] * 3
    record.intrinsics[:, 0, 0] += np.arange(3)
    record.world_from_cam[:] = [[0, 0, 1, 4e5 + x_m], [-1, 0, 0, 5e6], [0, -1, 0, 0], [0, 0, 0, 1]]
    record.world_from_cam[1, 0, 3] += 2
    for i in missing:  # as FORMAT.md says
        record.intrinsics[i], record.world_from_cam[i], record.image[i] = 0, np.eye(4), 0
    return record


def served(tmp_path, ids: tuple[str, ...], records: list[FrameRecord], **options: bool) -> list[CachedRigs]:
    frames = SplitFrames(ids, ())
    identity = tiny_identity(frames, shard_frames=len(ids))
    CacheWriter(tmp_path, identity, Resolved("fp32", 6, 1), frames).commit(0, records, {}, {})
    dataset = CachedFrames(CacheReader(tmp_path), ids, **options)
    return [dataset[i] for i in range(len(ids))]


def test_poses_lead_to_the_first_camera_and_keep_millimetres(tmp_path):
    """In float32 a place 5,000 km from the origin is known to half a metre."""
    record = drive_record(0)
    record.world_from_cam[2, :3, 3] += 0.001, 0, -1.5  # a millimetre ahead, 1.5 m below
    (rig,) = served(tmp_path, ("d/0",), [record])
    expected = torch.eye(4).repeat(3, 1, 1)
    expected[1, 2, 3] = 2.0
    expected[2, :3, 3] = torch.tensor([0, 1.5, 0.001])
    torch.testing.assert_close(rig.rig_from_cam, expected, atol=1e-8, rtol=0)
    assert rig.intrinsics[1].tolist() == [[5, 0, 2.5], [0, 5, 1.5], [0, 0, 1]]
    assert rig.focal_px.tolist() == [4, 5, 6]


def test_without_its_first_camera_a_rig_begins_at_the_next_and_missing_ones_stay_finite(tmp_path):
    (rig,) = served(tmp_path, ("d/0",), [drive_record(0, missing=(0,))])
    assert rig.view_valid.tolist() == [False, True, True]
    assert rig.focal_px.tolist() == [1, 5, 6]
    assert rig.intrinsics[0].tolist() == rig.rig_from_cam[0, :3, :3].tolist() == torch.eye(3).tolist()
    assert rig.rig_from_cam[:, :3, 3].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, -2]]
    assert torch.equal(rig.image[0], rig.image[1])


def test_a_neighbour_is_the_frame_before_or_else_the_one_after(tmp_path):
    """Frames 6 m apart, the fourth of another drive: each sees the frame before, the first one the second."""
    ids = ("a/0", "a/1", "a/2", "b/0")
    records = [drive_record(i, x_m) for i, x_m in enumerate((0, 6, 12, 6))]
    rigs = served(tmp_path, ids, records, neighbours=True)
    for rig, other, ahead_m in zip(rigs[:3], (1, 0, 1), (6, -6, -6), strict=True):
        assert rig.neighbour is not None
        assert torch.equal(rig.neighbour.image, rigs[other].image)
        assert rig.neighbour.view_valid.all()
        assert rig.neighbour.rig_from_cam[0, :3, 3].tolist() == [0, 0, ahead_m]
        assert rig.neighbour.rig_from_cam[1, :3, 3].tolist() == [0, 0, ahead_m + 2]
    assert rigs[3].neighbour is not None
    assert not rigs[3].neighbour.view_valid.any()


def test_a_camera_that_the_neighbour_lacks_is_a_gap_there(tmp_path):
    rigs = served(tmp_path, ("a/0", "a/1"), [drive_record(0), drive_record(1, 6, missing=(2,))], neighbours=True)
    assert rigs[0].view_valid.all()
    assert rigs[0].neighbour is not None
    assert rigs[0].neighbour.view_valid.tolist() == [True, True, False]
    assert rigs[0].neighbour.rig_from_cam[2].tolist() == torch.eye(4).tolist()


@pytest.mark.parametrize(("apart_m", "there"), [(0.1, False), (0.3, True), (14.9, True), (15.1, False)])
def test_frames_that_stand_still_or_lie_far_apart_are_no_neighbours(tmp_path, apart_m, there):
    """Ids without a drive, as the tokens of nuScenes are: only the poses tell."""
    rigs = served(tmp_path, ("f3a", "07c"), [drive_record(0), drive_record(1, apart_m)], neighbours=True)
    for rig in rigs:
        assert rig.neighbour is not None
        assert rig.neighbour.view_valid.tolist() == [there] * 3


def test_who_hardly_moves_is_compared_with_the_first_frame_far_enough_away(tmp_path):
    """0, 0.1, 0.19 and 0.25 m on: only the first and the last are more than 0.2 m apart."""
    ids = ("a/0", "a/1", "a/2", "a/3")
    rigs = served(tmp_path, ids, [drive_record(i, x_m) for i, x_m in enumerate((0, 0.1, 0.19, 0.25))], neighbours=True)
    for rig, other in zip(rigs, (3, None, None, 0), strict=True):
        assert rig.neighbour is not None
        assert rig.neighbour.view_valid.all() == (other is not None)
        assert other is None or torch.equal(rig.neighbour.image, rigs[other].image)


def test_only_what_was_asked_for_is_read(tmp_path, monkeypatch):
    """Of other frames the cameras, and the images of that one which is the neighbour."""
    ids = ("a/0", "a/1", "a/2")
    served(tmp_path, ids, [drive_record(0), drive_record(1), drive_record(2, 6)])
    reader, read = CacheReader(tmp_path), []

    def noting(name):
        return lambda frame_id: read.append((name, frame_id)) or getattr(CacheReader, name)(reader, frame_id)

    for name in ("read", "read_cameras", "read_image"):
        monkeypatch.setattr(reader, name, noting(name))
    assert CachedFrames(reader, ids)[1].neighbour is None
    assert read == [("read", "a/1")]
    read.clear()
    rig = CachedFrames(reader, ids, neighbours=True)[1]
    assert rig.neighbour is not None
    assert read == [("read", "a/1"), ("read_cameras", "a/0"), ("read_cameras", "a/2"), ("read_image", "a/2")]
    read.clear()
    CachedFrames(reader, ids[2:], neighbours=True)[0]
    assert read == [("read", "a/2")]  # a/1 is not among these frames


def test_drives_by_id():
    assert same_drive("drive-07/3", "drive-07/4")
    assert same_drive("log/001/3", "log/001/4")
    assert same_drive("e93e98b63d3b40209056d129dc53ceee", "14d5adfe50bb4445bc3aa5fe607691a8")
    assert not same_drive("drive-07/5", "drive-08/0")
    assert not same_drive("log/001/3", "log/002/3")


def test_the_way_of_a_rig_is_that_of_a_camera_which_both_frames_have():
    record, other = drive_record(0, missing=(0,)), drive_record(1, 6.0, missing=(1,))
    other.world_from_cam[2, 1, 3] += 8
    assert moved_m(record, other) == 10
    assert moved_m(record, drive_record(1, 6.0, missing=(1, 2))) == math.inf


@pytest.mark.parametrize("neighbours", [False, True])
def test_a_batch_taken_apart_is_the_frames_it_was_made_of(tmp_path, neighbours):
    rigs = served(tmp_path, ("a/0", "a/1"), [drive_record(0), drive_record(1, 6, missing=(1,))], neighbours=neighbours)
    batch = collate(rigs)
    assert batch.frame_ids == ("a/0", "a/1")
    assert batch.focal_px.shape == (2, 3)
    for i, rig in enumerate(rigs):
        assert single(batch, i).frame_ids == rig.frame_ids
        pairs = list(zip(rig_tensors(single(batch, i)), rig_tensors(rig), strict=True))
        assert len(pairs) == 9 + 4 * neighbours
        assert all(torch.equal(a, b) for a, b in pairs)


def test_what_a_worker_cannot_read_is_the_same_error_as_in_this_process(tmp_path):
    """Not its traceback as text, which torch makes of it; what was read before it arrives."""
    for shard in (0, 1):
        writer = CacheWriter(tmp_path, tiny_identity(FRAMES, shard_frames=1), Resolved("fp32", 6, 1), FRAMES)
        writer.commit(shard, [random_record(tiny_identity(FRAMES), shard)], {}, {})
    reader = CacheReader(tmp_path)
    path = tmp_path / shard_name("image", array_table(reader.identity)["image"], 1)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    said = []
    for workers in (0, 1):
        with batches(CachedFrames(reader, FRAMES.train), [[0], [1]], workers) as loader:
            assert next(loader).frame_ids == ("d/0",)
            with pytest.raises(DamagedCacheError) as caught:
                next(loader)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "Traceback" not in said[1]


class Deadly(CachedFrames):
    """Whoever reads the second frame dies at once, as one that the system kills for its memory."""

    def __getitem__(self, position: int) -> CachedRigs:
        if position == 1:
            os._exit(9)
        return super().__getitem__(position)


def test_a_worker_that_dies_is_one_clear_error(tmp_path):
    CacheWriter(tmp_path, tiny_identity(FRAMES), Resolved("fp32", 6, 1), FRAMES).commit(
        0, [random_record(tiny_identity(FRAMES), i) for i in (0, 1)], {}, {}
    )
    with (
        batches(Deadly(CacheReader(tmp_path), FRAMES.train), [[0], [1]], 1) as loader,
        pytest.raises(LoaderError, match=r"a loader worker has died .*lower train_student.workers"),
    ):
        list(loader)


def test_frames_outside_those_with_lidar_are_served_without_returns(tmp_path):
    records = [random_record(tiny_identity(FRAMES), seed) for seed in (0, 1)]
    CacheWriter(tmp_path, tiny_identity(FRAMES), Resolved("fp32", 6, 1), FRAMES).commit(0, records, {}, {})
    fit = torch.tensor([[0.5, 0.25], [0.0, 0.0], [2.0, 1.0]])
    every = CachedFrames(CacheReader(tmp_path), FRAMES.train)
    some = CachedFrames(every.reader, FRAMES.train, lidar_ids={"d/0"}, teacher_fits={"d/1": fit})
    assert all((every[i].lidar_depth_m > 0).any() for i in (0, 1))
    assert every[0].teacher_fit is None
    assert torch.equal(some[0].lidar_depth_m, every[0].lidar_depth_m)
    assert some[1].lidar_depth_m.abs().sum() == 0
    batch = collate([some[0], some[1]]).teacher_fit
    assert batch is not None
    assert torch.equal(batch, torch.stack([torch.zeros(3, 2), fit]))
    assert some.read_from(every.reader)[1].lidar_depth_m.abs().sum() == 0


def test_metres_stand_for_lidar_in_frames_without_alone(tmp_path):
    records = [random_record(tiny_identity(FRAMES), seed) for seed in (0, 1)]
    CacheWriter(tmp_path / "cache", tiny_identity(FRAMES), Resolved("fp32", 6, 1), FRAMES).commit(0, records, {}, {})
    every = CachedFrames(CacheReader(tmp_path / "cache"), FRAMES.train)
    metres = torch.full_like(every[0].lidar_depth_m, 2.5)
    metres[1] = 0
    files = {frame_id: tmp_path / f"{i}.npz" for i, frame_id in enumerate(("d/0", "d/1"))}
    write_metres(files["d/1"], metres.numpy())
    some = CachedFrames(every.reader, FRAMES.train, lidar_ids={"d/0"}, metres=files)
    assert torch.equal(some[0].lidar_depth_m, every[0].lidar_depth_m)
    assert torch.equal(some.read_from(every.reader)[1].lidar_depth_m, metres)
    files["d/1"].write_bytes(files["d/1"].read_bytes()[:-1])
    with pytest.raises(match=r"1\.npz, metres of frame d/1.; delete the file, the same command makes it again"):
        some[1]
