"""Our MCAP files in the reader of Foxglove and Lichtblick, which shares nothing with the library that wrote them."""

import numpy as np
import pytest
from support.data_sets.moving_van import MOUNTS, TOUR, time_ns
from support.mcap_in_node import read_in_node
from support.students import LINEAGE, run_predict, writing
from support.van_runs import van_run

from pipeline.api import load_student
from stages.inference.point_cloud import frame_cloud


@pytest.mark.torture
def test_mcap_core_finds_the_messages_and_the_depth_that_were_written(tmp_path, monkeypatch):
    source = van_run(tmp_path, monkeypatch)
    assert run_predict(tmp_path, *writing("mcap"))[0] == 0
    file = tmp_path / f"out/mcap/{TOUR}.mcap"
    found = read_in_node(file)
    topics = found["topics"]
    counts = {topic: len(told["messages"]) for topic, told in topics.items()}
    assert found["profile"] == "ros2"
    assert found["counted"]["messages"] == sum(counts.values()) == 4 * 4 * 3 + 3 + 1 + 3
    assert {told["encoding"] for told in topics.values()} == {"ros2msg"}
    assert {topic: told["type"] for topic, told in topics.items() if topic.count("/") < 3} == {
        "/tf": "tf2_msgs/msg/TFMessage",
        "/tf_static": "tf2_msgs/msg/TFMessage",
        "/surround/points": "sensor_msgs/msg/PointCloud2",
    }
    student = load_student(tmp_path / "run/student/last.safetensors", precision="fp32")
    for index in range(3):
        frame = source.frame(f"{TOUR}/{index}")
        said = student.look(frame)
        for i, mount in enumerate(MOUNTS):
            message = topics[f"/surround/{mount.name.replace('.', '_')}/depth"]["messages"][index]
            assert (message["height"], message["width"], message["frame"]) == (32, 64, mount.name)
            assert int(message["logged_ns"]) == time_ns(index, mount)
            assert np.float32(message["middle"]) == said.depth_m[i].ravel()[32 * 64 // 2]
        points = topics["/surround/points"]["messages"][index]
        assert points["frame"] == "base_link"
        # The reference camera is 15 ms later than the LiDAR, in which the van moves by some 12 cm and half a degree.
        last_m = frame_cloud(frame, said, LINEAGE.depth_range_m, 4).points_m[-1]
        assert np.linalg.norm(np.array(points["last"]) - last_m) < 0.2 + 0.01 * np.linalg.norm(last_m)
    np.testing.assert_allclose(
        topics["/surround/right/camera_info"]["messages"][0]["k"], [40, 0, 33.5, 0, 36, 16.3, 0, 0, 1], atol=1e-12
    )
    assert topics["/tf_static"]["messages"][0]["transforms"] == ["front", "right", "left"]
    formats = {
        name: topics[f"/surround/{name}/image/compressed"]["messages"][0]["format"] for name in ("front", "right")
    }
    assert formats == {"front": "jpeg", "right": "png"}
    print(f"\n{file.stat().st_size} bytes, {found['counted']['chunks']} chunks, {sum(counts.values())} messages")
