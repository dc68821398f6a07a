"""What was decided about a recording, as a `bag.toml` that decides the same; what was seen stands in its comments."""

import json

from data_cache.files import count_text
from data_cache.sources.recordings.indexing import Bag, Topic
from data_cache.sources.recordings.source import RecordingSource


def decisions_text(source: RecordingSource) -> str:
    """The decisions: edit and pass them as `bag.toml` to decide otherwise."""
    choices = source.choices
    settings = choices.settings
    lines = [
        "# What was decided. Change a line and pass this file by --bag-toml to decide otherwise.",
        f"ego = {_quoted(choices.ego)}    # the vehicle: x forward, y left, z up",
        f"world = {_quoted(choices.world)}    # stands still"
        if choices.world != choices.ego
        else f"world = {_quoted(choices.world)}    # the vehicle's own: no poses",
        f"lidar = {_quoted(choices.lidar or '')}"
        + (f"    # in the frame {choices.lidar_frame}" if choices.lidar else "    # none"),
        f"rate_hz = {settings.rate_hz!r}    # at most"
        if settings.rate_hz
        else "# rate_hz: one frame per sweep"
        if choices.lidar
        else "# rate_hz: one frame per image of the first camera",
        f"slack_ms = {settings.slack_ms!r}    # an image this near to a frame belongs to it",
        f"clock = {_quoted(settings.clock)}",
    ]
    if settings.ignore_transforms:
        lines.append(f"ignore_transforms = {json.dumps(list(settings.ignore_transforms))}")
    if settings.clock_offset_s:
        lines += ["", "[clock_offset_s]"]
        lines += [f"{_quoted(topic)} = {offset_s!r}" for topic, offset_s in settings.clock_offset_s.items()]
    lines += ["", "# The cameras in ring order: clockwise seen from above, front first."]
    for camera, azimuth_deg in zip(choices.cameras, choices.azimuths_deg, strict=True):
        size = f"{camera.photographed.width_px} x {camera.photographed.height_px} px"
        lens = camera.lens.model if camera.lens is not None else "rectified" if camera.is_rectified else "no distortion"
        side = f"{abs(azimuth_deg):.0f} degrees to the {'left' if azimuth_deg > 0 else 'right'}"
        looks = "ahead" if abs(azimuth_deg) < 0.5 else "back" if abs(azimuth_deg) >= 179.5 else side
        lines += [
            f"[[camera]]    # looks {looks}, {size}, {lens}",
            f"name = {_quoted(camera.name)}",
            f"topic = {_quoted(camera.topic)}",
            f"calibration = {_quoted(camera.calibration_topic)}",
            f"frame = {_quoted(camera.frame)}",
            "",
        ]
    for label, drive in source.parts.items():
        lines += [f"# {line}".rstrip() for line in _drive_lines(source, label, drive.bag)]
    return "\n".join(lines).rstrip() + "\n"


def _drive_lines(source: RecordingSource, label: str, bag: Bag) -> list[str]:
    pairs = source.parts[label].pairs
    seconds = (int(pairs.times_ns[-1]) - int(pairs.times_ns[0])) / 1e9
    lines = [f"Drive {label}: {count_text(len(pairs.times_ns), 'frame')} in {seconds:.1f} s, from {bag.path}"]
    absent = [f"{name} in {count}" for name, count in pairs.absent.items() if count]
    lines.append(f"Cameras without an image in some frames: {', '.join(absent) or 'none'}")
    lines.append(_columns("topic", "messages", "Hz", "gaps", "longest s", "clock s", "type"))
    lines += [_topic_line(topic) for _, topic in sorted(bag.topics.items())]
    lines += [
        "Gaps are intervals of more than twice the usual one; clock is the median of recording time minus stamp.",
        "",
    ]
    return lines


def _topic_line(topic: Topic) -> str:
    rate_hz, offset_s = topic.rate_hz(), topic.clock_offset_s()
    stamped = offset_s is not None
    return _columns(
        topic.name,
        f"{topic.count:,}",
        f"{rate_hz:.1f}" if rate_hz is not None else "-",
        f"{topic.gap_count()}" if stamped else "-",
        f"{topic.longest_gap_s():.2f}" if stamped else "-",
        f"{offset_s:+.3f}" if offset_s is not None else "-",
        topic.channel.type + ("" if topic.kind is not None else "  (not read)"),
    )


def _columns(name: str, count: str, rate: str, gaps: str, longest: str, clock: str, kind: str) -> str:
    return f"{name:<44} {count:>9} {rate:>7} {gaps:>5} {longest:>9} {clock:>9}  {kind}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
