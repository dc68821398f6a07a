"""Ranking of frames by error, and the choice of frames that the report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FrameErrors:
    """Errors of one frame, as means over its images.

    Attributes:
        abs_rel: AbsRel of the student against LiDAR; None if the frame has no LiDAR.
        disagreement: AbsRel between student and teacher; None if there is no teacher.
    """

    abs_rel: float | None
    disagreement: float | None


def ranking(errors: Mapping[str, FrameErrors]) -> tuple[str, ...]:
    """Frames from worst to best, by error against LiDAR, or by disagreement if no frame has LiDAR.

    Frames without this error are not ranked. Of equal frames the earlier comes first.
    """
    for name in ("abs_rel", "disagreement"):
        known = {frame_id: value for frame_id, e in errors.items() if (value := getattr(e, name)) is not None}
        if known:
            return tuple(sorted(known, key=lambda frame_id: -known[frame_id]))
    return ()


def shown_frames(errors: Mapping[str, FrameErrors], count: int, middle: str) -> tuple[str, ...]:
    """At most `count` frames: the worst ones, the median, the best, and the middle frame of the split.

    The middle frame does not depend on errors, so that two runs have a frame in common. If `count` is small, the worst
    frame comes first, then the best, the median and the middle one. If too few are ranked, other frames fill up.

    Args:
        errors: errors by frame, in the order of the split.
        count: number of frames, at least 0.
        middle: id of the middle frame of the split; ignored if it could not be read.

    Returns:
        Ranked frames, worst first, then the others in the order of the split.
    """
    ranked = ranking(errors)
    others = [middle] if middle in errors else []
    some: list[str] = []
    if ranked:
        some = [ranked[-1], ranked[(len(ranked) - 1) // 2]]
    worst = max(1, count - len(some) - len(others))
    wanted = [*ranked[:worst], *some, *others, *ranked[worst:], *errors]
    chosen = set(list(dict.fromkeys(wanted))[:count])
    return (
        *(frame_id for frame_id in ranked if frame_id in chosen),
        *(frame_id for frame_id in errors if frame_id in chosen and frame_id not in ranked),
    )


def place(ranked: Sequence[str], frame_id: str) -> int:
    """Rank of a frame, 1 = worst; 0 if it is not ranked."""
    return ranked.index(frame_id) + 1 if frame_id in ranked else 0
