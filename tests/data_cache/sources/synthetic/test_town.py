"""The second world: unlike the first one, and frozen."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from data_cache.errors import SourceError
from data_cache.frames.geometry import sparse_depth
from data_cache.frames.rig import Frame
from data_cache.sources.registry import open_source
from data_cache.sources.selectors import select
from data_cache.sources.synthetic import source as synthetic
from data_cache.sources.synthetic.town import WEATHERS
from data_cache.sources.synthetic.world import STREET, TOWN

NIGHT = 3
POSES = -120.883773


@dataclass(frozen=True)
class Frozen:
    """What is measured of the first frame of a drive: the scene, the LiDAR, and the front camera."""

    triangles: int
    mean_corner_m: tuple[float, ...]
    mean_colour: tuple[float, ...]
    points: int
    mean_point_m: tuple[float, ...]
    mean_depth_m: float
    mean_rgb: tuple[float, ...]


FROZEN = (
    Frozen(
        415578, (226.000037, 20.566515, 9.500084), (0.1241942, 0.1637362, 0.0922019),
        47180, (0.8623, 1.1268, -0.3064), 20.82656, (110.294, 109.551, 111.83),
    ),
    Frozen(
        434526, (215.262474, -97.26959, 9.924255), (0.1238271, 0.1645285, 0.0921782),
        32947, (0.7741, 0.5803, -0.5652), 19.05933, (144.178, 145.586, 145.182),
    ),
    Frozen(
        395434, (188.804611, 129.566336, 10.980812), (0.1293641, 0.1715749, 0.0964691),
        43561, (-0.3278, 0.8477, -0.3982), 16.92598, (99.748, 101.439, 105.643),
    ),
    Frozen(
        431496, (233.116527, -16.036686, 10.280099), (0.1276421, 0.1704353, 0.0906307),
        44605, (1.8079, -1.7721, -0.3681), 18.52299, (152.73, 143.823, 128.136),
    ),
)  # fmt: skip
"""Of the first drive in each weather; 2026-11-29."""


@pytest.fixture(scope="module")
def frame() -> Frame:
    """At night."""
    return open_source("synthetic_town", None).frame(f"drive-{NIGHT:02d}/0")


def test_twelve_drives_three_in_each_weather_to_test_on_and_none_to_learn_from() -> None:
    source = open_source("synthetic_town", None)
    assert {name: len(split) for name, split in source.splits.items()} == {"test": 12}
    assert {len(ids) for ids in source.drives.values()} == {6}
    assert [TOWN.first_seed % 4, len(WEATHERS), tuple(WEATHERS)[NIGHT]] == [0, 4, "night"]
    with pytest.raises(SourceError, match="no drive or split 'train'"):
        select(source, ["train"])


def test_cameras_and_lidar_are_others() -> None:
    for ours, first in zip(TOWN.mounts, STREET.mounts, strict=True):
        assert ours.name == first.name
        assert ours.height_m > first.height_m + 0.4
        assert ours.pitch_deg > first.pitch_deg + 3
        assert abs(ours.focal_px / TOWN.size_px[1] / (first.focal_px / STREET.size_px[1]) - 1) > 0.1
    assert not set(TOWN.lidar.elevation_deg) & set(STREET.lidar.elevation_deg)
    assert TOWN.lidar.range_m > STREET.lidar.range_m


def test_neighbours_overlap_all_around() -> None:
    edges = [(mount.yaw_deg, np.rad2deg(np.arctan(TOWN.size_px[1] / 2 / mount.focal_px))) for mount in TOWN.mounts]
    for (yaw, half), (next_yaw, next_half) in zip(edges, [*edges[1:], edges[0]], strict=True):
        assert (yaw - next_yaw) % 360 < half + next_half - 8


def test_depth_of_the_road_ahead(frame: Frame) -> None:
    """By hand: f = 600 px, 2.3 m above the road, 4 degrees down. The last row, 199.5 px below the axis, looks down by
    another 18.4 degrees: it meets the road 2.3 / sin 22.4 = 6.04 m away, at a depth of 6.04 cos 18.4 = 5.73 m.
    """
    assert frame.load_truth_m is not None
    assert frame.load_truth_m[0]()[399, 352] == pytest.approx(5.73, rel=0.05)  # the road is not flat


@pytest.mark.parametrize("view", [0, 4])
def test_lidar_agrees_with_the_dense_truth(frame: Frame, view: int) -> None:
    """Half of all range errors of a standard deviation of 3 cm are below 2 cm; the rest is the size of a pixel."""
    assert frame.load_truth_m is not None
    assert frame.load_sweep is not None
    seen = frame.views[view]
    assert seen is not None
    truth_m = frame.load_truth_m[view]()
    lidar_m = sparse_depth(seen, frame.load_sweep(), truth_m.shape)
    both = (lidar_m > 0) & (truth_m > 0)
    assert both.sum() > 2000
    assert np.median(np.abs(lidar_m - truth_m)[both]) < 0.04


def test_haze_swallows_returns_by_their_range(frame: Frame) -> None:
    """exp(-50 / haze) of those about 50 m away are left."""
    assert frame.load_sweep is not None
    tracer = synthetic._tracer(TOWN, NIGHT)
    clear = replace(TOWN, lidar=replace(TOWN.lidar, lossy=False), build=lambda seed: tracer._world)
    every, left = (
        np.linalg.norm(sweep.points_m, axis=1) for sweep in (synthetic._sweep(clear, NIGHT, 0), frame.load_sweep())
    )
    assert np.isin(left, every).all()
    far, near = (np.sum((r > 35) & (r < 65)) for r in (every, left))
    expected = np.exp(-50 / tracer.haze_m)
    assert far > 1000
    assert near / far == pytest.approx(expected, abs=4 * np.sqrt(expected / far) + 0.02)


def test_the_roads_are_frozen() -> None:
    """A sum over all poses of the vehicle; it moves by a centimetre if a pose does."""
    poses = np.array([[synthetic._world_from_ego(TOWN, drive, i) for i in range(6)] for drive in range(12)])
    weights = np.cos(np.arange(poses.size)).reshape(poses.shape)  # a swap of two would show
    assert float((poses * weights).sum()) == pytest.approx(POSES, abs=1e-4)


@pytest.mark.parametrize("drive", [*(pytest.param(i, marks=pytest.mark.torture) for i in range(NIGHT)), NIGHT])
def test_each_weather_is_frozen(drive: int) -> None:
    """Rendering differs in the last bits from one CPU to another: means of what it gives do not."""
    found, frame = FROZEN[drive], open_source("synthetic_town", None).frame(f"drive-{drive:02d}/0")
    assert frame.load_sweep is not None
    assert frame.load_truth_m is not None
    scene = synthetic._tracer(TOWN, drive)._world
    assert len(scene.corners_m) == found.triangles
    np.testing.assert_allclose(scene.corners_m.mean(axis=(0, 1)), found.mean_corner_m, atol=1e-4)
    np.testing.assert_allclose(scene.colour.mean(axis=0), found.mean_colour, atol=1e-5)
    points_m = frame.load_sweep().points_m
    assert len(points_m) == pytest.approx(found.points, abs=5)  # one that is on the edge may be seen, or not
    np.testing.assert_allclose(points_m.mean(axis=0), found.mean_point_m, atol=0.01)
    depth_m, front = frame.load_truth_m[0](), frame.views[0]
    assert front is not None
    assert float(depth_m.mean()) == pytest.approx(found.mean_depth_m, rel=1e-3)
    np.testing.assert_allclose(front.load_image().mean(axis=(0, 1)), found.mean_rgb, atol=0.3)
