"""Point clouds as files for common viewers: PLY, and GLB (binary glTF 2.0), both in metres."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from stages.inference.point_cloud import PointCloud

GLTF_FROM_EGO = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""glTF is y up with z forward: our x forward, y left, z up become z, x, y (glTF 2.0, section 3.4)."""


def ply_bytes(cloud: PointCloud) -> bytes:
    """Binary little-endian PLY in the vehicle's frame: float32 x, y, z, uint8 red, green, blue, alpha."""
    import trimesh

    data: bytes = trimesh.PointCloud(cloud.points_m, colors=cloud.rgb).export(file_type="ply")
    return data


def glb_bytes(cloud: PointCloud) -> bytes:
    """A GLB scene: one node that rotates the vehicle's frame to glTF's, with one unlit primitive of points.

    Colours in glTF are linear (section 3.9.2); with 8 bits, values below sRGB 13 share two levels.
    """
    import trimesh

    points = trimesh.PointCloud(cloud.points_m, colors=_linear(cloud.rgb))
    scene = trimesh.Scene()
    scene.add_geometry(points, node_name="ego", geom_name="points", transform=GLTF_FROM_EGO)
    data: bytes = scene.export(file_type="glb", tree_postprocessor=_unlit)
    return data


def _unlit(tree: dict[str, Any]) -> None:
    """Mark materials as unlit: points have no normals, so viewers must not shade them (KHR_materials_unlit)."""
    tree["extensionsUsed"] = ["KHR_materials_unlit"]
    for material in tree["materials"]:
        material["extensions"] = {"KHR_materials_unlit": {}}


def _linear(rgb: UInt8[np.ndarray, "N 3"]) -> UInt8[np.ndarray, "N 3"]:
    """Linear light of sRGB values (IEC 61966-2-1)."""
    c = np.arange(256) / 255
    table = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    linear: np.ndarray = np.round(table * 255).astype(np.uint8)[rgb]
    return linear
