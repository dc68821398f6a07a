"""A step of several processes is that of one; whole trainings of several: pipeline/runs/test_training_processes.py."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.random_rigs import random_rig
from support.trainings import SPEC, STUDENT, training

from data_cache.dataset import CachedRigs, collate, map_rigs
from stages.compute.parallel import joined
from stages.losses.spec import LossSpec
from stages.training.step import mean_over_processes, term_values


def lopsided(count: int) -> CachedRigs:
    """Frames of three views that differ in what they lack: a camera, all LiDAR, nothing."""
    singles = [random_rig(3, size=STUDENT.input_size)[0] for _ in range(count)]
    generator = torch.Generator().manual_seed(5)
    found = []
    for i, rig in enumerate(singles):
        valid = torch.tensor([True, True, i != 0])
        lidar_m = (1 + 20 * torch.rand(rig.lidar_depth_m.shape, generator=generator)) * (i != 1) * valid[:, None, None]
        image = (torch.rand(rig.image.shape, generator=generator) * 255).to(torch.uint8)
        found.append(replace(rig, frame_ids=(f"d/{i}",), view_valid=valid, lidar_depth_m=lidar_m, image=image))
    return collate(found)


def step_of_the_other(_: int, port: int, folder: Path) -> None:
    """Process 1 joins process 0 and takes its share of one step."""
    os.environ |= launch(1, port)
    torch.set_num_threads(1)
    with joined("cpu"):
        take_share(1, 2, folder)


def launch(rank: int, port: int) -> dict[str, str]:
    """What a launcher of two processes tells one of them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return address | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}


def take_share(rank: int, process_count: int, folder: Path) -> None:
    """What came of the step of this process, in a file."""
    frames, size = lopsided(4), 4 // process_count
    share = map_rigs(lambda tensor: tensor[rank * size : (rank + 1) * size], frames)
    share = replace(share, frame_ids=frames.frame_ids[rank * size : (rank + 1) * size])
    made = training(replace(SPEC, batch_rigs=4, clip_norm=1e9), LossSpec(cross=0.3, output=1.0, agreement=1.0))
    terms = mean_over_processes(made.step([share], 0))
    gradients = {name: p.grad for name, p in made.learner.named_parameters() if p.grad is not None}
    found = gradients | {name: buffer for name, buffer in made.learner.named_buffers() if "running" in name}
    torch.save({"terms": term_values(terms), **found}, folder / f"{process_count}-{rank}.pt")


def test_the_step_of_two_processes_is_that_of_one_also_where_frames_lack_different_things(tmp_path, monkeypatch):
    """Terms, every gradient and the statistics of batch norm; this process is the first of the two."""
    port = _free_port()
    other = torch.multiprocessing.spawn(step_of_the_other, (port, tmp_path), nprocs=1, join=False)
    with monkeypatch.context() as patch:
        for name, value in launch(0, port).items():
            patch.setenv(name, value)
        with joined("cpu"):
            take_share(0, 2, tmp_path)
    while not other.join():
        pass
    take_share(0, 1, tmp_path)
    one = torch.load(tmp_path / "1-0.pt")
    for rank in range(2):
        two = torch.load(tmp_path / f"2-{rank}.pt")
        assert two.pop("terms") == pytest.approx(one["terms"], rel=1e-5)
        assert two.keys() == one.keys() - {"terms"}
        for name, value in two.items():
            scale = one[name].abs().max().item() + 1e-6
            torch.testing.assert_close(value / scale, one[name] / scale, atol=2e-4, rtol=0, msg=name)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
