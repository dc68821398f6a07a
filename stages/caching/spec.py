"""The section `teacher_cache` of a recipe."""

from dataclasses import dataclass

from stages.compute.devices import require_known
from stages.teacher.runtime import require_known_runtime


@dataclass(frozen=True, kw_only=True)
class TeacherCacheSpec:
    """How stage one runs.

    Attributes:
        weights: a name that `surround weights` knows, a folder with a depth model of transformers or a Marigold
            pipeline of diffusers, or such a model on the model hub, pinned: "hub:owner/name@<40-digit commit>".
        input_size: (H, W) of the teacher's input, multiples of its patch size.
        precision, device: auto, or as named in stages/compute/devices.py.
        runtime: what computes the teacher: auto, torch or openvino, see stages/teacher/runtime.py.
        batch_images: images per forward pass, over views and frames; 0 chooses by device.
        shard_frames: frames per shard, the unit of work.
        tokens: also store the teacher's pooled features, which two baselines learn from; about 0.25 MB a frame.
        location: location of the cache, a folder or s3://bucket/prefix, gs://bucket/prefix; empty for RUN/cache.
    """

    weights: str = "depth-anything-v2-small"
    input_size: tuple[int, int]
    precision: str = "auto"
    device: str = "auto"
    runtime: str = "auto"
    batch_images: int = 0
    shard_frames: int = 32
    tokens: bool = False
    location: str = ""

    def __post_init__(self) -> None:
        require_known(self.device, self.precision)
        require_known_runtime(self.runtime)
        if min(self.input_size) < 14:
            raise ValueError(f"input_size: expected sides of at least 14 px, got {list(self.input_size)}")
        if self.batch_images < 0:
            raise ValueError(f"batch_images: expected 1 or more, or 0 to choose, got {self.batch_images}")
        if self.shard_frames < 1:
            raise ValueError(f"shard_frames: expected at least 1, got {self.shard_frames}")
