"""Small stand-ins with the real interfaces: a source in memory, a tiny teacher of the real class."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_cache.dataset import CachedRigs, map_rigs
from data_cache.errors import FrameError
from data_cache.files import file_sha256
from data_cache.frames.rig import Camera, Frame, Rig, Sweep, View, make_sweep
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.identity import CacheIdentity, SplitFrames
from data_cache.shards.records import FrameRecord, record_from_arrays
from data_cache.shards.schema import array_table
from stages.compute.quiet_transformers import quiet_transformers
from stages.teacher.load import LoadedTeacher, teacher_class

NATIVE_SIZE = (48, 80)
TEACHER_SIZE = (42, 70)
STUDENT_SIZE = (32, 64)
NAMES = ("front", "right", "left")
CPU = torch.device("cpu")


@dataclass
class FakeSource:
    """Three cameras 120 degrees apart that look at random pixels; LiDAR points all around.

    `broken` maps a frame id to a reason why it cannot be read; `missing` to the views it lacks; `no_lidar` lists frames
    without a sweep; `nan_points` frames of whose points the first five are NaN.
    """

    frame_count: int = 6
    name: str = "fake"
    broken: dict[str, str] = field(default_factory=dict)
    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    no_lidar: tuple[str, ...] = ()
    nan_points: tuple[str, ...] = ()
    rig: Rig = Rig("fake", NAMES)
    on_frame: Callable[[str], None] = lambda _: None

    @property
    def drives(self) -> dict[str, tuple[str, ...]]:
        return {"d": tuple(f"d/{i}" for i in range(self.frame_count))}

    @property
    def splits(self) -> dict[str, tuple[str, ...]]:
        return {}

    def frame(self, frame_id: str) -> Frame:
        self.on_frame(frame_id)
        if frame_id in self.broken:
            raise FrameError(self.broken[frame_id])
        index = int(frame_id.removeprefix("d/"))
        views = tuple(
            None if i in self.missing.get(frame_id, ()) else fake_view(i, index)
            for i in range(len(self.rig.camera_names))
        )
        load_sweep = None if frame_id in self.no_lidar else lambda: self._sweep(frame_id, index)
        return Frame(frame_id, views, load_sweep, world_from_ego=fake_ego(index))

    def _sweep(self, frame_id: str, index: int) -> Sweep:
        points = np.random.default_rng([index, 99]).uniform(-20, 20, (4000, 3)) * (1, 1, 0.2)
        if frame_id in self.nan_points:
            points[:5] = np.nan
        return make_sweep(points, np.eye(4), frame_id)


def fake_ego(index: int) -> np.ndarray:
    """The vehicle stands 1.5 m below its cameras, and a little to the left of them in each frame."""
    world_from_ego = np.eye(4)
    world_from_ego[:3, 3] = 0.0, 0.1 * index, -1.5
    return world_from_ego


def fake_view(i: int, index: int) -> View:
    """Camera `i` of a three-camera ring, clockwise from the front, x forward and z up in the world."""
    yaw = -2 * np.pi * i / 3
    forward, left = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = np.stack([-left, [0, 0, -1], forward], axis=1)
    K_px = np.array([[40.0 + i, 0, 40], [0, 40, 24], [0, 0, 1]])
    rgb = np.random.default_rng([index, i]).integers(0, 256, (6, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return View(
        Camera(NAMES[i], K_px, NATIVE_SIZE[1], NATIVE_SIZE[0]), world_from_cam, index, lambda at_least=None: rgb
    )


def save_tiny_teacher(folder: Path) -> Path:
    """A randomly initialised Depth Anything, small enough for tests, saved as the real one is."""
    from transformers import AutoConfig, DepthAnythingForDepthEstimation  # not in processes that only write a cache

    torch.manual_seed(7)
    config = AutoConfig.for_model(
        "depth_anything",
        backbone_config={
            "model_type": "dinov2",
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "mlp_ratio": 2,
            "image_size": 70,
            "patch_size": 14,
            "out_indices": [1, 2, 3, 4],
            "apply_layernorm": True,
            "reshape_hidden_states": False,
        },
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # the usual initialisation is so small that the output would be constant
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        model.head.conv3.bias.fill_(1.0)
    with quiet_transformers():
        model.save_pretrained(folder)
    return folder


def tiny_teacher(folder: Path, input_size: tuple[int, int] = TEACHER_SIZE, precision: str = "fp32") -> LoadedTeacher:
    """A teacher of any family in a folder, loaded through the code that loads the real ones."""
    weights = folder / "model.safetensors"
    return teacher_class(folder)(
        folder,
        name="tiny",
        licence="none",
        weights_sha256=file_sha256(weights) if weights.is_file() else "none",
        input_size=input_size,
        device=torch.device("cpu"),
        precision=precision,
    )


def random_images(count: int, size: tuple[int, int] = TEACHER_SIZE) -> torch.Tensor:
    """Images of noise as a teacher takes them, the same each time."""
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tiny_identity(frames: SplitFrames, **changes: Any) -> CacheIdentity:
    """A cache identity of three views with the smallest sizes that are all different."""
    values: dict[str, Any] = {
        "camera_names": NAMES,
        "frame_count": len(frames.ordered),
        "frames_sha256": frames.sha256(),
        "source": "fake",
        "train": ("d",),
        "selection": (),
        "image_size": (4, 6),
        "image_definition": "test",
        "prob_size": (2, 3),
        "encoding": "window",
        "window_width": 5,
        "bin_count": 8,
        "bin_sigma": 1.0,
        "bin_definition": "test",
        "relation_grid": (1, 2),
        "relation_definition": "test",
        "shard_frames": 2,
        "teacher_name": "t",
        "teacher_licence": "none",
        "teacher_weights_sha256": "0" * 64,
        "teacher_preprocessing": "none",
        "teacher_input_size": (14, 14),
    }
    values |= changes
    settings = ENCODINGS[values["encoding"]].settings
    for name in {"window_width", "bin_count", "bin_sigma"} - {*settings}:
        values[name] = None
    return CacheIdentity(**values)


def random_record(identity: CacheIdentity, seed: int) -> FrameRecord:
    """A record of the right shapes and types full of noise."""
    rng = np.random.default_rng(seed)
    values = {
        name: rng.integers(0, 2 if spec.dtype == "bool" else 200, spec.shape).astype(spec.dtype)
        for name, spec in array_table(identity).items()
    }
    return record_from_arrays(identity.encoding, values)


def rig_tensors(rigs: CachedRigs) -> list[torch.Tensor]:
    """Every tensor of a rig, of its bins and of its neighbour, in one order."""
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_rigs(keep, rigs)
    return found
