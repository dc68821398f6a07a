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


def step_alone(rank: int, process_count: int, port: int, folder: Path) -> None:
    """Process `rank` joins the others and takes its share of one step."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(process_count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with joined("cpu"):
        take_share(rank, process_count, folder)


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


def test_the_step_of_two_processes_is_that_of_one_also_where_frames_lack_different_things(tmp_path):
    """Terms, every gradient and the statistics of batch norm."""
    torch.multiprocessing.spawn(step_alone, (2, _free_port(), tmp_path), nprocs=2)
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
