"""The tree of coordinate frames of a recording, and poses in it at any time.

An edge is the pose of one frame (`child`) in another (`parent`). Between two samples it turns at a constant rate
(slerp) and moves on a straight line.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Int

from data_cache.errors import FrameError, SourceError
from data_cache.frames.rig import pose_from_quaternion
from data_cache.sources.recordings.decoding.messages import TransformMessage

LONGEST_GAP_NS = 1_000_000_000
"""No pose is interpolated over more than this: at 15 m/s the vehicle moves 15 m meanwhile."""


@dataclass(frozen=True, eq=False)
class Edge:
    """Where a frame was in its parent.

    Attributes:
        parent, child: names of the frames.
        topic: the topic that said so.
        stamps_ns: (N,) sorted; the pose holds at all times if it never changed.
        poses: (N, 7) parent_from_child: quaternion w, x, y, z and translation in metres.
        always: whether it holds at all times.
    """

    parent: str
    child: str
    topic: str
    stamps_ns: Int[np.ndarray, " N"]
    poses: Float[np.ndarray, "N 7"]
    always: bool

    def covers(self, stamps_ns: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
        """Whether the pose is known at each time: between two samples that are not too far apart."""
        if self.always:
            return np.ones(len(stamps_ns), bool)
        after = np.searchsorted(self.stamps_ns, stamps_ns)
        last = len(self.stamps_ns) - 1
        exact = self.stamps_ns[np.minimum(after, last)] == stamps_ns
        inside = (after > 0) & (after <= last)
        gap = self.stamps_ns[np.minimum(after, last)] - self.stamps_ns[np.maximum(after - 1, 0)]
        covered: np.ndarray = exact | (inside & (gap <= LONGEST_GAP_NS))
        return covered

    def at(self, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        """parent_from_child at a time. Raises FrameError where it is not known."""
        if self.always:
            return _matrix(self.poses[0])
        if not self.covers(np.array([stamp_ns]))[0]:
            raise FrameError(
                f"expected the pose of {self.child} in {self.parent} at {stamp_ns} ns, found that {self.topic} gives it"
                f" from {self.stamps_ns[0]} to {self.stamps_ns[-1]} ns, or with a gap of more than 1 s there"
            )
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if self.stamps_ns[after] == stamp_ns:
            return _matrix(self.poses[after])
        before_ns, after_ns = int(self.stamps_ns[after - 1]), int(self.stamps_ns[after])
        return _matrix(
            _between(self.poses[after - 1], self.poses[after], (stamp_ns - before_ns) / (after_ns - before_ns))
        )


class EdgeLog:
    """Samples of one edge while a recording is read; a value that is repeated takes no memory."""

    def __init__(self, parent: str, child: str, topic: str, is_static: bool) -> None:
        self._names, self._static = (parent, child, topic), is_static
        self._stamps, self._poses = array("q"), array("d")

    def add(self, one: TransformMessage) -> None:
        """Keep a sample; of a static transform the last one counts."""
        pose = (*one.wxyz, *one.xyz_m)
        if self._static:
            self._stamps, self._poses = array("q"), array("d")
        elif len(self._stamps) > 1 and tuple(self._poses[-7:]) == pose == tuple(self._poses[-14:-7]):
            self._stamps[-1] = max(self._stamps[-1], one.stamp_ns)
            return
        self._stamps.append(one.stamp_ns)
        self._poses.extend(pose)

    def edge(self) -> Edge:
        """What was kept, in time order; of two samples of one time the last counts."""
        stamps_ns = np.array(self._stamps, np.int64)
        poses = np.array(self._poses, np.float64).reshape(-1, 7)
        order = np.argsort(stamps_ns, kind="stable")
        order = order[np.append(np.diff(stamps_ns[order]) > 0, True)]
        stamps_ns, poses = stamps_ns[order], poses[order]
        return Edge(*self._names, stamps_ns, poses, bool(self._static or (poses == poses[0]).all()))


class Tree:
    """Coordinate frames that hang together, each with one parent.

    Raises:
        SourceError: if a frame has two parents, or frames hang in a loop; the message names them.
    """

    def __init__(self, edges: Iterable[Edge]) -> None:
        self.edges: dict[str, Edge] = {}
        for edge in edges:
            other = self.edges.get(edge.child)
            if other is not None and other.parent != edge.parent:
                raise SourceError(
                    f"transforms: expected one parent of {edge.child}, found {other.parent} ({other.topic}) and"
                    f' {edge.parent} ({edge.topic}); drop one: ignore_transforms = ["{edge.parent} > {edge.child}"]'
                )
            self.edges[edge.child] = edge
        for frame in self.edges:
            self._require_root(frame)

    @cached_property
    def frames(self) -> frozenset[str]:
        """Every frame that an edge names."""
        return frozenset(self.edges) | {edge.parent for edge in self.edges.values()}

    def ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on up to the root."""
        line = [frame]
        while line[-1] in self.edges:
            line.append(self.edges[line[-1]].parent)
        return line

    def half(self, frame: str) -> list[str]:
        """All frames that hang together with one, sorted."""
        root = self.ancestors(frame)[-1]
        return sorted(one for one in self.frames | {frame} if self.ancestors(one)[-1] == root)

    def legs(self, destination: str, source: str) -> tuple[list[Edge], list[Edge]]:
        """Edges from both frames up to their nearest common ancestor, first of the destination, then of the source.

        Raises:
            SourceError: if they do not hang together; the message names the two halves.
        """
        up, down = self.ancestors(destination), self.ancestors(source)
        if up[-1] != down[-1]:
            raise SourceError(
                f"transforms: expected {source} and {destination} in one tree, found two"
                f" halves: {_listed(self.half(source))}; and {_listed(self.half(destination))}; record the transform"
                " between them"
            )
        common = next(frame for frame in up if frame in down)
        return (
            [self.edges[frame] for frame in up[: up.index(common)]],
            [self.edges[frame] for frame in down[: down.index(common)]],
        )

    def pose(self, destination: str, source: str, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        """destination_from_source at a time. Raises FrameError where it is not known, SourceError as `legs` does."""
        up, down = self.legs(destination, source)
        pose: np.ndarray = np.linalg.inv(_product(up, stamp_ns)) @ _product(down, stamp_ns)
        return pose

    def covers(self, destination: str, source: str, stamps_ns: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
        """Whether `pose` is known at each time."""
        covered = np.ones(len(stamps_ns), bool)
        for edge in chain(*self.legs(destination, source)):
            covered &= edge.covers(stamps_ns)
        return covered

    def moves(self, destination: str, source: str) -> bool:
        """Whether the pose between two frames ever changes."""
        return not all(edge.always for edge in chain(*self.legs(destination, source)))

    def only(self, chains: Iterable[tuple[str, str]]) -> "Tree":
        """The tree with nothing but the edges of these chains, each a destination and a source."""
        needed = {edge.child: edge for ends in chains for edge in chain(*self.legs(*ends))}
        return Tree(needed.values())

    def _require_root(self, frame: str) -> None:
        line = [frame]
        while line[-1] in self.edges:
            parent = self.edges[line[-1]].parent
            if parent in line:
                loop = " > ".join([*line[line.index(parent) :], parent][::-1])
                topics = sorted({self.edges[one].topic for one in line[line.index(parent) :]})
                raise SourceError(
                    f"transforms: expected a tree, found the loop {loop} ({', '.join(topics)}); drop one of these edges"
                    " by ignore_transforms"
                )
            line.append(parent)


def _product(edges: list[Edge], stamp_ns: int) -> Float[np.ndarray, "4 4"]:
    """ancestor_from_frame along edges that lead from a frame up to its ancestor."""
    pose: np.ndarray = np.eye(4)
    for edge in edges:
        pose = edge.at(stamp_ns) @ pose
    return pose


def _matrix(pose: Float[np.ndarray, " 7"]) -> Float[np.ndarray, "4 4"]:
    w, x, y, z, *place = pose.tolist()
    return pose_from_quaternion((w, x, y, z), (place[0], place[1], place[2]))


def _between(before: Float[np.ndarray, " 7"], after: Float[np.ndarray, " 7"], share: float) -> Float[np.ndarray, " 7"]:
    """Pose at a share of the way from one to another: slerp (Shoemake 1985) and a straight line."""
    one, other = (pose[:4] / np.linalg.norm(pose[:4]) for pose in (before, after))
    if one @ other < 0:  # the shorter way round
        other = -other
    angle = np.arctan2(np.linalg.norm(other - one), np.linalg.norm(other + one)) * 2
    if angle < 1e-9:
        turn = one + share * (other - one)
    else:
        turn = (np.sin((1 - share) * angle) * one + np.sin(share * angle) * other) / np.sin(angle)
    return np.concatenate([turn, before[4:] + share * (after[4:] - before[4:])])


def _listed(frames: list[str]) -> str:
    return ", ".join(frames[:6]) + (f" and {len(frames) - 6} more" if len(frames) > 6 else "")
