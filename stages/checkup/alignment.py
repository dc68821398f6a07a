"""Does LiDAR fit the images? Depth jumps of LiDAR are compared with those that the teacher sees."""

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
"""Nearer returns are of the vehicle itself, which the camera sees from another side."""
JUMP_REACH = 1 / 70
"""Of the image's width: how far apart two returns may lie."""
JUMP_U = 0.05
PAIR_LIMIT = 6000
FEWEST_PAIRS = 200
TURNS_DEG = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
ZOOMS = (0.9, 1.1)
LEAST_INPUT_PX = 300
"""Height of the teacher's input: at 308 x 490 the thresholds hold, at 196 x 350 most sound cameras are doubted."""
LEAST_SHARE = 0.12
"""Of the jumps of LiDAR, those that a teacher sees of a camera that is what it is said to be; 0.14 was the least."""
GAIN_FAR_TURN, GAIN_NEAR_TURN, GAIN_ZOOM = 1.2, 1.6, 1.3
"""How many times as well a turn by 2 degrees or more, by 1 degree, a zoom must fit to be believed; see `alignment`."""


@dataclass(frozen=True)
class Change:
    """A change of a camera's calibration: turned to the right, turned down, focal length multiplied."""

    right_deg: float = 0.0
    down_deg: float = 0.0
    zoom: float = 1.0

    def __str__(self) -> str:
        """In words, as what the camera would have to be."""
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
    """Over some images, for each of CHANGES: pairs of returns looked at, and those between which the teacher agrees."""

    agreed: Int[np.ndarray, " C"]
    pairs: Int[np.ndarray, " C"]

    def __add__(self, other: "JumpCounts") -> "JumpCounts":
        """Both together."""
        return JumpCounts(self.agreed + other.agreed, self.pairs + other.pairs)

    @property
    def share(self) -> Float[np.ndarray, " C"]:
        """Of the jumps of LiDAR, those that the teacher sees at the same place."""
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
    """How LiDAR and teacher fit together in one camera.

    Attributes:
        pairs: jumps of LiDAR looked at, with the calibration as it is given.
        share: of them, those that the teacher sees.
        better: the change of calibration that fits so much better that it is believed; None if there is none.
        better_share: with it, else the highest of all.
    """

    pairs: int
    share: float
    better: Change | None
    better_share: float

    @property
    def judged(self) -> bool:
        """Whether there was enough to look at."""
        return self.pairs >= FEWEST_PAIRS

    @property
    def lost(self) -> bool:
        """Whether LiDAR and teacher have hardly a jump in common, however the camera is turned."""
        return self.judged and self.better_share < LEAST_SHARE

    @property
    def suspicious(self) -> bool:
        """Whether another calibration is to be believed rather than this one."""
        return self.judged and not self.lost and self.better is not None


def alignment(counts: JumpCounts) -> Alignment:
    """Compare the calibration as given with all changes of it.

    Measured with Depth Anything V2 Small, 6 cameras a rig; doubted = suspicious or lost. The thresholds were chosen on
    PandaSet 002, DDAD 000187, synthetic drives (3 frames each) and nuScenes scene-0061 (its one frame): of the 24
    cameras as they are 1 was doubted (it looks along its own vehicle), turned by 2 degrees to the left, right, up or
    down 96 of 96, given the image of another camera 44 of 48, with a focal length 10 % off 36 of 48. On frames that
    were not looked at before (PandaSet 002, two triples that share a frame, and one synthetic frame): 2 of 18 as they
    are, 70 of 72, 28 of 36, 26 of 36. So a doubt is a reason to look at the picture, no more.
    """
    share = counts.share
    best = int(np.argmax(share / ALLOWED_GAIN))
    if share[best] / ALLOWED_GAIN[best] > share[AS_GIVEN]:
        return Alignment(int(counts.pairs[AS_GIVEN]), float(share[AS_GIVEN]), CHANGES[best], float(share[best]))
    return Alignment(int(counts.pairs[AS_GIVEN]), float(share[AS_GIVEN]), None, float(share.max()))


def count_jumps(
    u: Float[np.ndarray, "h w"], depth_m: Float[np.ndarray, "h w"], K_px: Float[np.ndarray, "3 3"]
) -> JumpCounts:
    """Jumps of LiDAR that are jumps of the teacher, with the calibration as given and with all CHANGES of it.

    A calibration that is off moves returns across the edges of things; that edges of LiDAR and camera then no longer
    coincide is how Levinson and Thrun (2013, Automatic online calibration of cameras and lasers) find it, by comparing
    with small changes. Two returns close in the image whose depths differ by a factor of JUMP_RATIO or more are a jump;
    the teacher agrees where its u is larger at the nearer one by at least JUMP_U.

    Args:
        u: what the teacher sees, in [0, 1], larger is nearer.
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
    """What the teacher says where each point falls, NaN outside the image."""
    seen = project(points_m, cam_from_points, K_px, size)
    values = np.full(len(points_m), np.nan)
    values[seen.index] = u[seen.v_px.astype(int), seen.u_px.astype(int)]
    return values


def _turned(change: Change) -> Float[np.ndarray, "3 3"]:
    """From the camera as given to one turned to the right, then down."""
    right, down = math.radians(change.right_deg), math.radians(change.down_deg)
    c, s, cd, sd = math.cos(right), math.sin(right), math.cos(down), math.sin(down)
    rotation: np.ndarray = np.array([[1, 0, 0], [0, cd, -sd], [0, sd, cd]]) @ np.array(
        [[c, 0, -s], [0, 1, 0], [s, 0, c]]
    )
    return rotation


def _jumps(depth_m: Float[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Flat indices of the nearer and the farther pixel of jumps; at most PAIR_LIMIT, spread evenly."""
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
    """How LiDAR fits what the teacher sees, by view, over some frames with LiDAR."""
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
