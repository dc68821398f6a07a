"""Three samples of two scenes in nuScenes' layout."""

import json

import numpy as np
from PIL import Image

SIZE = (90, 160)
NO_TURN = [1.0, 0.0, 0.0, 0.0]


def datum(channel, sample, *, file, time_us=1000, key=True, pose="at camera time", size=SIZE):
    return {
        "token": file,
        "sample_token": sample,
        "ego_pose_token": pose,
        "calibrated_sensor_token": f"calibrated {channel}",
        "timestamp": time_us,
        "is_key_frame": key,
        "height": size[0],
        "width": size[1],
        "filename": file,
    }


def tables():
    """Scene 103 (val) has the samples `late` and `early`, in this order; scene 1 (train) has `dark`, without LiDAR."""
    lens = [[100.0, 0.0, 79.5], [0.0, 100.0, 44.5], [0.0, 0.0, 1.0]]
    return {
        "sensor": [
            {"token": f"sensor {name}", "channel": name}
            for name in ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP", "RADAR_FRONT")
        ],
        "calibrated_sensor": [
            {
                "token": f"calibrated {name}",
                "sensor_token": f"sensor {name}",
                "rotation": NO_TURN,
                "translation": [0.0, 0.0, height],
                "camera_intrinsic": lens if name.startswith("CAM") else [],
            }
            for name, height in (("CAM_FRONT", 1.0), ("CAM_BACK", 1.0), ("LIDAR_TOP", 2.0), ("RADAR_FRONT", 0.5))
        ],
        "ego_pose": [
            {"token": "at camera time", "rotation": NO_TURN, "translation": [0.0, 0.0, 12.0]},
            {"token": "at LiDAR time", "rotation": NO_TURN, "translation": [0.0, 0.0, 10.0]},
            {"token": "of a sweep", "rotation": None, "translation": None},
        ],
        "scene": [{"token": "b", "name": "scene-0103"}, {"token": "a", "name": "scene-0001"}],
        "sample": [
            {"token": "late", "timestamp": 2000, "scene_token": "b"},
            {"token": "early", "timestamp": 1000, "scene_token": "b"},
            {"token": "dark", "timestamp": 500, "scene_token": "a"},
        ],
        "sample_data": [
            datum("CAM_FRONT", "early", file="samples/front.png", time_us=1003),
            datum("CAM_BACK", "early", file="samples/back.png"),
            datum("LIDAR_TOP", "early", file="samples/lidar.pcd.bin", pose="at LiDAR time", size=(0, 0)),
            datum("RADAR_FRONT", "early", file="samples/radar.pcd"),
            datum("CAM_FRONT", "early", file="sweeps/front.png", key=False, pose="of a sweep"),
            datum("CAM_BACK", "late", file="samples/back.png"),
            datum("CAM_FRONT", "dark", file="samples/front.png"),
            datum("LIDAR_TOP", "dark", file="sweeps/lidar.pcd.bin", key=False, pose="of a sweep", size=(0, 0)),
        ],
    }


def write(root, content, version="v1.0-mini"):
    (root / version).mkdir(exist_ok=True)
    for name, rows in content.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))
    return root


def write_example(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("front", "back"):
        Image.new("RGB", (SIZE[1], SIZE[0]), (9, 9, 9)).save(tmp_path / "samples" / f"{name}.png")
    points = np.array([[1, 0, 9, 0.5, 3], [0, 2, 12, 0.1, 4], [np.nan, 0, 0, 0, 0]], dtype=np.float32)
    points.tofile(tmp_path / "samples" / "lidar.pcd.bin")
    return write(tmp_path, tables())
