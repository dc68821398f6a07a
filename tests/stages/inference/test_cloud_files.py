import io
import json
import struct

import numpy as np
import pytest
import trimesh
from support.ply import read_ply

from stages.inference.cloud_files import glb_bytes, ply_bytes
from stages.inference.point_cloud import PointCloud

CLOUD = PointCloud(
    np.array([[3.0, 6.0, 0.5], [-1.25, 0.0, 2.0]], np.float32), np.array([[10, 200, 30], [255, 0, 128]], np.uint8)
)


def test_a_ply_holds_metres_of_the_vehicle_and_colours():
    vertices = read_ply(ply_bytes(CLOUD))
    assert [tuple(float(v) for v in row) for row in vertices[["x", "y", "z"]]] == [(3.0, 6.0, 0.5), (-1.25, 0.0, 2.0)]
    assert [tuple(map(int, row)) for row in vertices[["red", "green", "blue"]]] == [(10, 200, 30), (255, 0, 128)]


def test_a_glb_is_upright_in_metres_with_linear_unlit_colours():
    """By hand: x ahead, y left, z up become glTF's z (the front looks along it), x, y (up).

    sRGB 200 is linear ((200 / 255 + 0.055) / 1.055) ** 2.4 = 0.5776, 147 of 255; 128 is 55; 30 is 3; 10 is 1 (0.77).
    """
    data = glb_bytes(CLOUD)
    magic, version, length, json_length, kind = struct.unpack("<4sIIII", data[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), 0x4E4F534A)
    tree = json.loads(data[20 : 20 + json_length])
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["mode"] == 0  # points
    assert "KHR_materials_unlit" in tree["materials"][primitive["material"]]["extensions"]
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    scene = trimesh.load_scene(io.BytesIO(data), file_type="glb")
    (node,) = scene.graph.nodes_geometry
    matrix, geometry = scene.graph.get(node)
    points = scene.geometry[geometry]
    np.testing.assert_allclose(points.vertices, CLOUD.points_m)
    shown = points.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(shown, [[6.0, 0.5, 3.0], [0.0, 2.0, -1.25]])
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    assert points.colors[:, :3].tolist() == [[1, 147, 3], [255, 0, 55]]
