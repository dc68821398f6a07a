"""Does LiDAR fit the images? Depth jumps in LiDAR are compared with jumps in the teacher's map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from data_cache.frames.geometry import project, unproject
from data_cache.shards.records import unpack_depth_m
from stages.caching.products import look
from stages.caching.teacher_input import PreparedFrame
from stages.targets.binning import AffineBinning
from stages.teacher.base import Teacher

JUMP_RATIO = 1.25
JUMP_NEAREST_M = 3.0
"""Returns nearer than this may be from the vehicle itself, which the camera sees from another side."""
JUMP_REACH = 1 / 70
"""Largest distance between two returns of a jump, as a share of the image's width."""
JUMP_U = 0.05
PAIR_LIMIT = 6000
FEWEST_PAIRS = 200
TURNS_DEG = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
ZOOMS = (0.9, 1.1)
LEAST_INPUT_PX = 300
"""Least height of the teacher's input: at 308 x 490 the thresholds hold, at 196 x 350 they doubt most sound cameras."""
LEAST_SHARE = 0.12
"""Least share of LiDAR jumps that the teacher sees in a correctly labelled camera; the lowest measured was 0.14."""
GAIN_FAR_TURN, GAIN_NEAR_TURN, GAIN_ZOOM = 1.2, 1.6, 1.3
"""Factors by which a turn of 2 degrees or more, a turn of 1 degree, or a zoom must fit better; see `alignment`."""


@dataclass(frozen=True)
class Change:
    """A change of a camera's calibration: a turn to the right, a turn down, and a factor on the focal length."""

    right_deg: float = 0.0
    down_deg: float = 0.0
    zoom: float = 1.0

    def __str__(self) -> str:
        """The change in words, as how the camera really is."""
        if self.zoom != 1:
            return f"at {self.zoom:g} times its focal length"
        turns = [
            f"{abs(degrees):g} degrees further {words[degrees > 0]}"
            for degrees, words in ((self.right_deg, ("left", "right")), (self.down_deg, ("up", "down")))
            if degrees
        ]
        return f"turned {' and '.join(turns)}"


CHANGES = (
    *(Change(right, down) for right, down in product(TURNS_DEG, TURNS_DEG)),
    *(Change(zoom=zoom) for zoom in ZOOMS),
)
AS_GIVEN = CHANGES.index(Change())


@dataclass(frozen=True, eq=False)
class JumpCounts:
    """Counts for each of CHANGES, over some images: LiDAR jumps tested, and those that the teacher sees, too."""

    agreed: Int[np.ndarray, " C"]
    pairs: Int[np.ndarray, " C"]

    def __add__(self, other: "JumpCounts") -> "JumpCounts":
        """The sum of both."""
        return JumpCounts(self.agreed + other.agreed, self.pairs + other.pairs)

    @property
    def share(self) -> Float[np.ndarray, " C"]:
        """Share of LiDAR jumps that the teacher sees at the same place."""
        shares: np.ndarray = self.agreed / np.maximum(self.pairs, 1)
        return shares


ALLOWED_GAIN = np.array(
    [
        1.0
        if change == Change()
        else GAIN_ZOOM
        if change.zoom != 1
        else GAIN_NEAR_TURN
        if max(abs(change.right_deg), abs(change.down_deg)) <= 1
        else GAIN_FAR_TURN
        for change in CHANGES
    ]
)


@dataclass(frozen=True)
class Alignment:
    """How well LiDAR and teacher agree in one camera.

    Attributes:
        pairs: LiDAR jumps tested with the given calibration.
        share: share of these that the teacher sees.
        better: the change of calibration that fits clearly better; None if there is none.
        better_share: share with that change; without one, the highest share of all changes.
    """

    pairs: int
    share: float
    better: Change | None
    better_share: float

    @property
    def judged(self) -> bool:
        """Whether there are enough jumps to judge."""
        return self.pairs >= FEWEST_PAIRS

    @property
    def lost(self) -> bool:
        """Whether LiDAR and teacher have hardly any jump in common, whatever the change."""
        return self.judged and self.better_share < LEAST_SHARE

    @property
    def suspicious(self) -> bool:
        """Whether another calibration fits clearly better than the given one."""
        return self.judged and not self.lost and self.better is not None


def alignment(counts: JumpCounts) -> Alignment:
    """Compare the given calibration with all changes of it.

    Measured with Depth Anything V2 Small, 6 cameras per rig; doubted = suspicious or lost. The thresholds were chosen
    on PandaSet 002, DDAD 000187, synthetic drives (3 frames each) and nuScenes scene-0061 (its one frame). There 1 of
    the 24 unchanged cameras was doubted (it looks along its own vehicle), 96 of 96 turned by 2 degrees left, right, up
    or down, 44 of 48 given another camera's image, and 36 of 48 with a focal length 10 % off. On frames not used for
    the choice (PandaSet 002, two triples that share a frame, and one synthetic frame) it was 2 of 18 unchanged, 70 of
    72, 28 of 36 and 26 of 36. So a doubt is a reason to look at the picture, no more.
    """
    share = counts.share
    best = int(np.argmax(share / ALLOWED_GAIN))
    if share[best] / ALLOWED_GAIN[best] > share[AS_GIVEN]:
        return Alignment(int(counts.pairs[AS_GIVEN]), float(share[AS_GIVEN]), CHANGES[best], float(share[best]))
    return Alignment(int(counts.pairs[AS_GIVEN]), float(share[AS_GIVEN]), None, float(share.max()))


def count_jumps(
    u: Float[np.ndarray, "h w"], depth_m: Float[np.ndarray, "h w"], K_px: Float[np.ndarray, "3 3"]
) -> JumpCounts:
    """Count the LiDAR jumps that the teacher sees, too, with the given calibration and with each of CHANGES.

    A wrong calibration moves returns across object edges, so that LiDAR edges and image edges no longer coincide;
    Levinson and Thrun (2013, Automatic online calibration of cameras and lasers) detect this by comparing with small
    changes. Two returns close in the image whose depths differ by a factor of more than JUMP_RATIO are a jump; the
    teacher sees it if its u is larger by more than JUMP_U at the nearer return.

    Args:
        u: the teacher's map in [0, 1], larger is nearer.
        depth_m: z-buffered LiDAR, 0 = no return.
        K_px: intrinsics at (h, w).
    """
    size = (depth_m.shape[0], depth_m.shape[1])
    nearer, farther = _jumps(depth_m)
    points_m = unproject(depth_m.astype(np.float64), K_px).reshape(-1, 3)
    agreed, pairs = [], []
    for change in CHANGES:
        zoomed = K_px * np.array([change.zoom, change.zoom, 1.0])[:, None]
        zoomed[:2, 2] = K_px[:2, 2]
        cam_from_points = np.eye(4)
        cam_from_points[:3, :3] = _turned(change)
        seen_u = [_seen(u, points_m[ends], cam_from_points, zoomed, size) for ends in (nearer, farther)]
        difference = seen_u[0] - seen_u[1]
        there = np.isfinite(difference)
        pairs.append(int(there.sum()))
        agreed.append(int((difference[there] > JUMP_U).sum()))
    return JumpCounts(np.array(agreed), np.array(pairs))


def _seen(
    u: Float[np.ndarray, "h w"],
    points_m: Float[np.ndarray, "N 3"],
    cam_from_points: Float[np.ndarray, "4 4"],
    K_px: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
) -> Float[np.ndarray, " N"]:
    """The teacher's u where each point falls; NaN outside the image."""
    seen = project(points_m, cam_from_points, K_px, size)
    values = np.full(len(points_m), np.nan)
    values[seen.index] = u[seen.v_px.astype(int), seen.u_px.astype(int)]
    return values


def _turned(change: Change) -> Float[np.ndarray, "3 3"]:
    """Rotation from the given camera to one turned to the right, then down."""
    right, down = math.radians(change.right_deg), math.radians(change.down_deg)
    c, s, cd, sd = math.cos(right), math.sin(right), math.cos(down), math.sin(down)
    rotation: np.ndarray = np.array([[1, 0, 0], [0, cd, -sd], [0, sd, cd]]) @ np.array(
        [[c, 0, -s], [0, 1, 0], [s, 0, c]]
    )
    return rotation


def _jumps(depth_m: Float[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Flat indices of the nearer and the farther pixel of each jump; at most PAIR_LIMIT, spread evenly."""
    h, w = depth_m.shape
    reach = max(1, round(w * JUMP_REACH))
    index = np.arange(h * w).reshape(h, w)
    log_m = np.full((h, w), np.nan)
    far_enough = depth_m > JUMP_NEAREST_M
    log_m[far_enough] = np.log(depth_m[far_enough])
    nearer, farther = [], []
    for dy, dx in product(range(reach + 1), range(-reach, reach + 1)):
        if (dy, dx) <= (0, 0) or dy * dy + dx * dx > reach * reach:
            continue
        one = (slice(0, h - dy), slice(max(0, -dx), w - max(0, dx)))
        other = (slice(dy, h), slice(max(0, dx), w - max(0, -dx)))
        step = log_m[other] - log_m[one]
        for sign, near, far in ((1, one, other), (-1, other, one)):
            jump = sign * step > math.log(JUMP_RATIO)
            nearer.append(index[near][jump])
            farther.append(index[far][jump])
    all_nearer, all_farther = np.concatenate(nearer), np.concatenate(farther)
    chosen = np.linspace(0, len(all_nearer) - 1, min(PAIR_LIMIT, len(all_nearer))).astype(int)
    return all_nearer[chosen], all_farther[chosen]


def check_alignment(teacher: Teacher, frames: Sequence[PreparedFrame]) -> dict[int, Alignment]:
    """How well LiDAR fits the teacher's map, by view, over some frames with LiDAR."""
    counts: dict[int, JumpCounts] = {}
    for frame in frames:
        size = (frame.lidar_depth.shape[1], frame.lidar_depth.shape[2])
        depth_m = unpack_depth_m(frame.lidar_depth)
        looked = look(teacher, frame.teacher_images, size, AffineBinning())
        for view, seen in zip(np.flatnonzero(frame.view_valid).tolist(), looked, strict=True):
            if seen.finite and not seen.constant:
                found = count_jumps(seen.u.numpy(), depth_m[view], frame.intrinsics[view].astype(np.float64))
                counts[view] = counts[view] + found if view in counts else found
    return {view: alignment(found) for view, found in sorted(counts.items())}
