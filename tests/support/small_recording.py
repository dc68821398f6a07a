"""A made-up recording of two seconds: a van with four cameras and a LiDAR drives ahead at 10 m/s and turns left."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from support.bags import Said, calibration, cloud, image_file, transform

START_NS = 1_700_000_000_000_000_000
SIZE = (16, 12)  # width, height
K = np.array([[20.0, 0, 7.5], [0, 20.0, 5.5], [0, 0, 1]])
AZIMUTH_DEG = {"front": 0, "left": 90, "back": 180, "right": -90}
LIDAR_TOPIC = "/lidar/points"
LIDAR_MOUNT = np.array([[1.0, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 2.0], [0, 0, 0, 1]])
SPEED_M_PER_S, TURN_RAD_PER_S = 10.0, 0.2


def at(seconds: float) -> int:
    """A time stamp."""
    return START_NS + round(seconds * 1e9)


def mount(azimuth_deg: float) -> np.ndarray:
    """ego_from_cam of a level camera, 1 m before the axle and 1.5 m up, that looks to an azimuth."""
    a = np.radians(azimuth_deg)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = [np.sin(a), -np.cos(a), 0], [0, 0, -1], [np.cos(a), np.sin(a), 0]
    pose[:3, 3] = [1.0, 0.0, 1.5]
    return pose


def world_from_ego(seconds: float) -> np.ndarray:
    yaw = TURN_RAD_PER_S * seconds
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = [SPEED_M_PER_S * seconds, 0.0, 0.0]
    return pose


def points(sweep: int) -> np.ndarray:
    """Three points of a sweep, float32."""
    return np.array([[5.0, 1.0, 0.1 * sweep], [-7.25, 2.0, 0.5], [3.0, -9.0, -1.0]], np.float32)


def jpeg(shade: int, size: tuple[int, int] = SIZE) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 40, 90)).save(stream, "JPEG")
    return stream.getvalue()


def statics() -> list[Said]:
    """Where the sensors sit."""
    found = [
        transform(at(0), "base_link", f"{name}_optical", mount(a), "/tf_static") for name, a in AZIMUTH_DEG.items()
    ]
    return [*found, transform(at(0), "base_link", "lidar", LIDAR_MOUNT, "/tf_static")]


def poses(rate_hz: float = 50.0, until_s: float = 2.0, parent: str = "odom", topic: str = "/tf") -> list[Said]:
    """Where the vehicle was."""
    return [
        transform(at(i / rate_hz), parent, "base_link", world_from_ego(i / rate_hz), topic)
        for i in range(round(until_s * rate_hz) + 1)
    ]


def camera(
    name: str, delay_s: float = 0.01, rate_hz: float = 10.0, count: int = 20, frame: str | None = None, **lens: object
) -> list[Said]:
    """Images and calibrations of a camera; it fires `delay_s` after the LiDAR."""
    said: list[Said] = []
    for i in range(count):
        time_ns, optical = at(i / rate_hz + delay_s), frame or f"{name}_optical"
        said.append(calibration(time_ns, f"/{name}/camera_info", optical, SIZE, lens.get("K", K), **_without_K(lens)))
        said.append(image_file(time_ns, f"/{name}/image_raw/compressed", optical, jpeg(10 * i)))
    return said


def lidar(count: int = 20, rate_hz: float = 10.0) -> list[Said]:
    return [cloud(at(i / rate_hz), LIDAR_TOPIC, "lidar", points(i)) for i in range(count)]


def recording(names: Iterable[str] = tuple(AZIMUTH_DEG)) -> list[Said]:
    """Everything, sorted by the time of recording."""
    said = [*statics(), *poses(), *lidar(), *(one for name in names for one in camera(name))]
    return in_order(said)


def in_order(said: Iterable[Said]) -> list[Said]:
    return sorted(said, key=lambda one: one.log_ns)


def without(said: Iterable[Said], *topics: str) -> list[Said]:
    return [one for one in said if one.topic not in topics]


def _without_K(lens: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in lens.items() if key != "K"}
