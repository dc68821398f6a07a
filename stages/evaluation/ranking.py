"""Which frames of a split are shown, the worst first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FrameErrors:
    """Errors of one frame, means of its images.

    Attributes:
        abs_rel: of the student against LiDAR; None where it has none.
        disagreement: of student and teacher; None where the teacher was not asked.
    """

    abs_rel: float | None
    disagreement: float | None


def ranking(errors: Mapping[str, FrameErrors]) -> tuple[str, ...]:
    """Frames from the worst to the best, by error against LiDAR; by disagreement where no frame has LiDAR.

    Frames that lack the number are not ranked. Of equal ones the earlier is first.
    """
    for name in ("abs_rel", "disagreement"):
        known = {frame_id: value for frame_id, e in errors.items() if (value := getattr(e, name)) is not None}
        if known:
            return tuple(sorted(known, key=lambda frame_id: -known[frame_id]))
    return ()


def shown_frames(errors: Mapping[str, FrameErrors], count: int, middle: str) -> tuple[str, ...]:
    """At most `count` frames: the worst, the median, the best, and the middle one of the split.

    The middle one is the same whatever was measured, so that two runs have a frame in common. Of few frames the worst
    come before the best, the median and the middle one, in this order. Where not enough are ranked, others fill up.

    Args:
        errors: by frame, in the order of the split.
        count: how many, at least 0.
        middle: id of the middle frame of the split; left out where it could not be read.

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
    """Rank of a frame, 1 = worst; 0 where it has none."""
    return ranked.index(frame_id) + 1 if frame_id in ranked else 0
