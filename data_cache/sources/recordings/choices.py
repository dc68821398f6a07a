"""What a recording is taken for: its cameras in ring order, its LiDAR, its coordinate frames.

Everything is decided from the recording unless the settings say otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from data_cache.errors import FrameError, SourceError
from data_cache.frames.rig import require_rigid
from data_cache.sources.recordings.cameras import RecordedCamera, find_cameras
from data_cache.sources.recordings.decoding.clouds import TIME_FIELDS, require_layout
from data_cache.sources.recordings.decoding.messages import CLOUD, CloudMessage
from data_cache.sources.recordings.indexing import Bag, Topic, is_static
from data_cache.sources.recordings.settings import BagSettings
from data_cache.sources.recordings.transforms import Edge, EdgeLog, Tree

_EGO_NAMES = ("base_link", "base_footprint")
_WORLD_NAMES = ("odom", "map", "world")
_OTHER_CLOUDS = ("depth", "optical", "camera", "radar")
_CLOCK_LIMIT_S = 5.0
_NEARLY_UP = 0.9  # the cosine of 26 degrees
_SAME_AZIMUTH_DEG = 5.0


@dataclass(frozen=True, eq=False)
class Choices:
    """What a recording is taken for.

    Attributes:
        cameras: in ring order: clockwise seen from above, front first.
        azimuths_deg: where each looks, from straight ahead to the left.
        lidar: topic of the LiDAR; None if there is none.
        lidar_frame: its coordinate frame.
        ego: coordinate frame of the vehicle (x forward, y left, z up).
        world: coordinate frame that stands still; equal to `ego` for a standing vehicle.
        mounts: (4, 4) ego_from_sensor of each camera by name, and of the LiDAR as `lidar`, at the first moment.
        settings: what the user decided.
        notes: what was decided otherwise than one may expect, and why.
    """

    cameras: tuple[RecordedCamera, ...]
    azimuths_deg: tuple[float, ...]
    lidar: str | None
    lidar_frame: str
    ego: str
    world: str
    mounts: Mapping[str, Float[np.ndarray, "4 4"]]
    settings: BagSettings
    notes: tuple[str, ...]


def decide(bags: Sequence[Bag], settings: BagSettings) -> tuple[Choices, tuple[Tree, ...]]:
    """Decide what the bags of one vehicle are taken for, and give the tree of coordinate frames of each.

    A transform that one bag holds at all times (`/tf_static`) serves the others where they lack it.

    Raises:
        SourceError: if that is impossible; the message says what was expected, what was found, and what to do.
    """
    topics = _joined(bags)
    for name in (*settings.clock_offset_s, *filter(None, [settings.lidar])):
        if name not in topics:
            raise SourceError(f"bag.toml names the topic {name}; found no such topic")
    cameras, notes = find_cameras(topics, settings.cameras)
    lidar, lidar_frame, lidar_notes = _lidar(topics, settings.lidar)
    _require_one_clock(topics, [camera.topic for camera in cameras] + ([lidar] if lidar else []), settings)
    sensors = [camera.frame for camera in cameras] + ([lidar_frame] if lidar else [])
    trees, tree_notes = _trees(bags, settings, sensors)
    _require_one_tree(trees[0], sensors, topics)
    ego = _ego(trees[0], [camera.frame for camera in cameras], sensors, settings.ego)
    world, world_notes = _world(trees, ego, sensors, settings.world)
    mounts = _mounts(trees[0], ego, cameras, lidar_frame if lidar else None)
    ringed, azimuths_deg, ring_notes = _ring(cameras, mounts, bool(settings.cameras))
    all_notes = (*notes, *lidar_notes, *tree_notes, *world_notes, *ring_notes)
    choices = Choices(ringed, azimuths_deg, lidar, lidar_frame, ego, world, mounts, settings, all_notes)
    chains = [(world, frame) for frame in (*sensors, ego)]
    return choices, tuple(tree.only(chains) for tree in trees)


def _joined(bags: Sequence[Bag]) -> dict[str, Topic]:
    """The topics of all bags, each as in the first bag where it can be read.

    Raises:
        SourceError: if a topic holds different things, or calibrations differ.
    """
    joined: dict[str, Topic] = {}
    for bag in bags:
        for name, topic in bag.topics.items():
            first = joined.setdefault(name, topic)
            if topic.kind != first.kind:
                raise SourceError(
                    f"{bag.path}: {name}: expected {first.channel.type} ({first.channel.encoding}), as in an earlier"
                    f" bag, found {topic.channel.type} ({topic.channel.encoding}); import these bags into folders of"
                    " their own"
                )
            if not first.count:
                first = joined[name] = topic
            if topic.calibration is not None and first.calibration not in (None, topic.calibration):
                raise SourceError(
                    f"{bag.path}: {name}: expected the calibration of {bags[0].path}, found another one; import bags of"
                    " different calibration into folders of their own"
                )
    return joined


def _lidar(topics: Mapping[str, Topic], wanted: str | None) -> tuple[str | None, str, tuple[str, ...]]:
    """Topic and coordinate frame of the LiDAR, and notes: the cloud with most points that looks like one."""
    clouds = {name: topic.first for name, topic in topics.items() if isinstance(topic.first, CloudMessage)}
    unread = [topic for name, topic in topics.items() if topic.kind == CLOUD and name not in clouds]
    for topic in unread:
        if wanted == topic.name or (wanted is None and not clouds):
            raise topic.unread('point clouds (lidar = "" in a bag.toml imports without them)')
    if wanted == "" or (wanted is None and not clouds):
        return None, "", ("no LiDAR: frames are those of the first camera, and no metres are learnt from them",)
    if wanted is not None and wanted not in clouds:
        raise SourceError(
            f"{wanted}: expected point clouds (lidar in bag.toml), found {topics[wanted].channel.type}; there are"
            f" {', '.join(sorted(clouds)) or 'none'}"
        )

    def rank(name: str) -> tuple[bool, int, int, str]:
        cloud = clouds[name]
        other = any(word in f"{name} {cloud.frame_id}".lower() for word in _OTHER_CLOUDS)
        return other, -cloud.width * cloud.height, -topics[name].count, name

    chosen = wanted or min(clouds, key=rank)
    cloud = clouds[chosen]
    notes = [f"{name} is not used: the LiDAR is {chosen}" for name in sorted(clouds) if name != chosen]
    try:
        require_layout(cloud, chosen)
    except FrameError as error:
        notes.append(f"the first point cloud cannot be read: {error}; frames of clouds like it are left out")
    if any(name in TIME_FIELDS for name, _, _ in cloud.fields):
        notes.append(f"{chosen} has a time for each point, which is not used: a sweep counts as of its header's time")
    return chosen, cloud.frame_id.lstrip("/"), tuple(notes)


def _require_one_clock(topics: Mapping[str, Topic], names: Iterable[str], settings: BagSettings) -> None:
    """Refuse sensors whose header stamps are seconds apart although they were recorded together. Raises SourceError."""
    if settings.clock == "log":
        return
    moving = [name for name, topic in topics.items() if topic.kind in ("transforms", "odometry")]
    offsets = {
        name: offset - settings.clock_offset_s.get(name, 0.0)
        for name in [*names, *moving]
        if (offset := topics[name].clock_offset_s()) is not None
    }
    middle = float(np.median(list(offsets.values())))
    for name, offset_s in offsets.items():
        if abs(offset_s - middle) > _CLOCK_LIMIT_S:
            other = min(offsets, key=lambda one: abs(offsets[one] - middle))
            behind_s = offset_s - middle
            raise SourceError(
                f"{name}: expected the clock of {other}, found stamps {abs(behind_s):.3f} s"
                f" {'behind' if behind_s > 0 else 'ahead of'} it in messages that were recorded at the same time; in a"
                f' bag.toml, set "{name}" = {behind_s:.6f} under [clock_offset_s], or clock = "log" to go by the times'
                " of recording"
            )


def _trees(
    bags: Sequence[Bag], settings: BagSettings, sensors: Sequence[str]
) -> tuple[tuple[Tree, ...], tuple[str, ...]]:
    """The tree of each bag; odometry gives an edge where no transform moves the vehicle."""
    notes: dict[str, None] = {}
    per_bag = [_edges(bag, bag.edges.values(), settings) for bag in bags]
    shared = {edge.child: edge for edges in per_bag for edge in edges if edge.always}
    trees = []
    for bag, edges in zip(bags, per_bag, strict=True):
        own = {edge.child for edge in edges}
        tree = Tree([*edges, *(edge for child, edge in shared.items() if child not in own)])
        root = tree.ancestors(sensors[0])[-1]
        stands = not any(tree.moves(root, one) for one in sensors if one in tree.half(root))
        odometry = _edges(bag, bag.odometry.values(), settings)
        used = next((edge for edge in odometry if stands and edge.child == root), None)
        if used is not None:
            tree = Tree([*tree.edges.values(), used])
            notes[f"{used.topic} says where {used.child} is in {used.parent}: no transform does"] = None
        said_by = f"{used.topic} says" if used is not None else "transforms say"
        for edge in odometry:
            if edge is not used:
                notes[f"{edge.topic} is not used: {said_by} where {(used or edge).child} is"] = None
        trees.append(tree)
    return tuple(trees), tuple(notes)


def _edges(bag: Bag, logs: Iterable[EdgeLog], settings: BagSettings) -> list[Edge]:
    """The edges of a bag that are not ignored, at the times of the clock that the user chose."""
    ignored = {tuple(part.strip() for part in text.split(">")) for text in settings.ignore_transforms}
    edges = []
    for edge in (log.edge() for log in logs):
        if (edge.parent, edge.child) not in ignored:
            # By recording time, each topic is moved by its usual delay: that of a single message is noise.
            by_log = settings.clock == "log"
            shift_s = bag.topics[edge.topic].clock_offset_s() if by_log else settings.clock_offset_s.get(edge.topic)
            edges.append(replace(edge, stamps_ns=edge.stamps_ns + round((shift_s or 0.0) * 1e9)))
    return edges


def _require_one_tree(tree: Tree, sensors: Sequence[str], topics: Iterable[str]) -> None:
    """Refuse sensors that do not hang together. Raises SourceError."""
    try:
        for sensor in sensors[1:]:
            tree.legs(sensors[0], sensor)
    except SourceError as error:
        if any(is_static(name) for name in topics):
            raise
        raise SourceError(f"{error}; no static transforms were recorded (/tf_static)") from error


def _ego(tree: Tree, cameras: Sequence[str], sensors: Sequence[str], wanted: str | None) -> str:
    """Coordinate frame of the vehicle: by its name, else the frame from which all sensors hang."""
    lines = [tree.ancestors(sensor) for sensor in sensors]
    common = [frame for frame in lines[0] if all(frame in line for line in lines)]
    if wanted is not None:
        if wanted not in tree.half(sensors[0]):
            raise SourceError(
                f"ego: expected a frame of the tree of {sensors[0]}, found {wanted!r}; there are"
                f" {', '.join(tree.half(sensors[0]))}"
            )
        return wanted
    for name in _EGO_NAMES:
        if name in tree.half(sensors[0]):
            return name
    fixed = [frame for frame in common if not any(tree.moves(frame, sensor) for sensor in sensors)]
    ego = fixed[-1] if fixed else common[0]
    if ego in cameras:
        raise SourceError(
            f"transforms: expected a coordinate frame of the vehicle (x forward, y left, z up) above the cameras, found"
            f" only that of the camera {ego!r}; record /tf_static from the vehicle, or from the LiDAR, to the cameras"
        )
    return ego


def _world(trees: Sequence[Tree], ego: str, sensors: Sequence[str], wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """Coordinate frame that stands still, and notes; the vehicle's own if nothing says that it moves."""
    tree = trees[0]
    if wanted is not None and wanted not in tree.half(ego):
        raise SourceError(
            f"world: expected a frame of the tree of {ego}, found {wanted!r}; there are {', '.join(tree.half(ego))}"
        )
    above = tree.ancestors(ego)[1:]
    moving = [frame for frame in above if any(one.moves(frame, ego) for one in trees if frame in one.half(ego))]
    world = wanted or next((name for name in _WORLD_NAMES if name in moving), moving[-1] if moving else ego)
    if any(one.moves(world, ego) for one in trees if world in one.half(ego)):
        return world, ()
    if world == ego and any(tree.moves(ego, sensor) for sensor in sensors):
        return ego, (f"each sensor has poses of its own in {ego}, which counts as the vehicle's frame, too",)
    why = f"nothing says where {ego} is" if world == ego and not moving else f"{ego} never moves in {world}"
    return world, (
        f"NO POSES: {why}, so the vehicle counts as standing still; what moved between the time"
        " stamps is not corrected, and nothing can be learnt from motion",
    )


def _mounts(
    tree: Tree, ego: str, cameras: Sequence[RecordedCamera], lidar_frame: str | None
) -> dict[str, Float[np.ndarray, "4 4"]]:
    """ego_from_sensor by name, each at the first time at which it is known."""
    frames = {camera.name: camera.frame for camera in cameras} | ({"lidar": lidar_frame} if lidar_frame else {})
    mounts = {}
    for name, frame in frames.items():
        up, down = tree.legs(ego, frame)
        begin_ns = max((int(edge.stamps_ns[0]) for edge in (*up, *down) if not edge.always), default=0)
        try:
            mounts[name] = tree.pose(ego, frame, begin_ns)
            require_rigid(mounts[name], "")
        except FrameError as error:
            raise SourceError(f"transforms: where {frame} is on {ego}: {str(error).removeprefix(': ')}") from error
    return mounts


def _ring(
    cameras: Sequence[RecordedCamera], mounts: Mapping[str, Float[np.ndarray, "4 4"]], is_set: bool
) -> tuple[tuple[RecordedCamera, ...], tuple[float, ...], tuple[str, ...]]:
    """Cameras by the azimuth of their optical axes, clockwise seen from above, beginning with the most forward one."""
    axes = {camera.name: mounts[camera.name][:3, 2] for camera in cameras}
    for camera in cameras:
        if abs(axes[camera.name][2]) > _NEARLY_UP and not camera.frame_is_set:
            raise SourceError(
                f"{camera.topic}: expected the optical frame of a camera that looks around, found that z of"
                f" {camera.frame!r} points {'up' if axes[camera.name][2] > 0 else 'down'}: it is probably the frame of"
                ' its housing; name the optical one (x right, y down, z forward) by frame = "..." under [[camera]]'
            )
    azimuth_deg = {name: float(np.degrees(np.arctan2(axis[1], axis[0]))) for name, axis in axes.items()}
    ringed = list(cameras)
    if not is_set:
        first = min(azimuth_deg, key=lambda name: (round(abs(azimuth_deg[name]), 3), name))
        ringed.sort(key=lambda camera: (round((azimuth_deg[first] - azimuth_deg[camera.name]) % 360, 3), camera.name))
    notes = [
        f"{one.name} and {other.name} look the same way, within {_SAME_AZIMUTH_DEG:g} degrees; list the cameras of the"
        " ring by [[camera]] in a bag.toml if only one of them belongs to it"
        for one, other in zip(ringed, [*ringed[1:], *ringed[:1]], strict=True)
        if one is not other
        and abs((azimuth_deg[one.name] - azimuth_deg[other.name] + 180) % 360 - 180) < _SAME_AZIMUTH_DEG
    ]
    return tuple(ringed), tuple(azimuth_deg[camera.name] for camera in ringed), tuple(notes)
