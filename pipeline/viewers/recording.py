"""Writes a drive as a Rerun recording (.rrd): images, depth, cameras and the vehicle's path. An optional extra."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from data_cache.errors import SettingError
from data_cache.frames.rig import Frame
from stages.evaluation.predictions import PNG_STEPS_PER_M, png_steps
from stages.inference.point_cloud import PointCloud, thinned
from stages.inference.predict import Prediction

APPLICATION = "surround-distill"
JPEG_QUALITY = 85
CLOUD_POINTS = 120_000


class Recording:
    """A recording that is written frame by frame; `with` closes it.

    Entities: `world/ego` (pose of the vehicle), `world/ego/cloud`, `world/ego/CAMERA` (pose and pinhole) with `image`
    and `depth` (uint16 of 1/256 m), at the student's input size. Timelines: `frame` counts frames, `time` is that of
    the first camera. At most CLOUD_POINTS points of a cloud are kept.

    Args:
        path: of the .rrd file; it grows with every frame.

    Raises:
        SettingError: if rerun-sdk is not installed.
        OSError: if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._rerun = require_rerun()
        path.touch()  # raises the system's own error if the file cannot be written
        self._stream: Any = self._rerun.RecordingStream(APPLICATION)
        self._stream.save(path)
        self._stream.log("world", self._rerun.ViewCoordinates.FLU, static=True)
        self._count = 0

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()
        self._stream.disconnect()

    def add(self, frame: Frame, prediction: Prediction, cloud: PointCloud) -> None:
        """Add a frame whose vehicle pose is known (`frame_cloud` in `stages.inference.point_cloud` needs it, too)."""
        rr, log = self._rerun, self._stream.log
        assert frame.world_from_ego is not None
        self._stream.set_time("frame", sequence=self._count)
        self._count += 1
        times_ns = [view.time_ns for view in frame.views if view is not None]
        if times_ns and times_ns[0] > 0:
            self._stream.set_time("time", timestamp=np.datetime64(times_ns[0], "ns"))
        log("world/ego", rr.Transform3D(**_pose(frame.world_from_ego)))
        shown = thinned(cloud, CLOUD_POINTS)
        log("world/ego/cloud", rr.Points3D(shown.points_m, colors=shown.rgb))
        ego_from_world = np.linalg.inv(frame.world_from_ego)
        height, width = prediction.depth_m.shape[1:]
        for i, view in enumerate(frame.views):
            if view is None:
                continue
            entity = f"world/ego/{view.camera.name}"
            log(entity, rr.Transform3D(**_pose(ego_from_world @ view.world_from_cam)))
            K_px, axes = prediction.rig.intrinsics[i], rr.ViewCoordinates.RDF
            log(entity, rr.Pinhole(image_from_camera=K_px, resolution=(width, height), camera_xyz=axes))
            log(f"{entity}/image", rr.Image(prediction.rig.image[i]).compress(JPEG_QUALITY))
            depth = png_steps(prediction.depth_m[i])
            log(f"{entity}/depth", rr.DepthImage(depth, meter=float(PNG_STEPS_PER_M)))


def _pose(dst_from_src: np.ndarray) -> dict[str, np.ndarray]:
    return {"translation": dst_from_src[:3, 3], "mat3x3": dst_from_src[:3, :3]}


def require_rerun() -> ModuleType:
    """Import the module rerun; raises SettingError if it is missing."""
    try:
        import rerun
    except ImportError as error:
        raise SettingError(f"a recording needs pip install 'surround-distill[rerun]' ({error})") from error
    module: ModuleType = rerun
    return module
