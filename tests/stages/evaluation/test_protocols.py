"""Each protocol against an independent reference: formulas of the published evaluations, pixel by pixel in Python."""

import math
import statistics
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from support.fakes import CPU, NAMES, NATIVE_SIZE, STUDENT_SIZE, FakeSource
from support.students import student

from data_cache.errors import FrameError
from data_cache.frames.geometry import sparse_depth
from data_cache.frames.rig import Frame, Rig
from data_cache.sources.registry import open_source
from data_cache.sources.selectors import select
from stages.evaluate import evaluate
from stages.evaluation.protocols import FSM, PROTOCOLS, VFDEPTH, ProtocolError, measured_frames, require_full_count
from stages.evaluation.spec import EvaluateSpec
from stages.inference import predict


def test_the_protocols_are_those_of_the_published_evaluations():
    table = {
        name: (
            *(p.range_of(source) for source in ("ddad", "nuscenes", "pandaset")),
            *(p.masks, p.resolution, p.pool_frames, p.median),
            *(p.full[split, "val"].frames for split in ("ddad", "nuscenes")),
        )
        for name, p in PROTOCOLS.items()
    }
    near = (0.1, 80.0)
    assert table == {
        "surrounddepth": ((0.1, 200.0), near, near, "ignored", "native", 1, "camera", 3950, 6019),
        "vfdepth": ((0.0, 200.0), (0.0, 80.0), (0.0, 80.0), "expected", "network", 4, "camera", 3850, 5417),
        "fsm": ((0.0, 200.0), (0.0, 200.0), (0.0, 200.0), "optional", "native", 1, "rig", 3950, 6019),
        "zero-shot": ((0.1, 200.0), near, near, "ignored", "native", 1, "camera", 3950, 6019),
    }


@dataclass(frozen=True)
class Drives:
    """A source of drives of so many frames, all of the split `val`, and one more drive."""

    name: str
    drives: dict[str, tuple[str, ...]]
    splits: dict[str, tuple[str, ...]]
    rig: Rig = Rig("fake", NAMES)

    def frame(self, frame_id: str) -> Frame:
        raise FrameError(frame_id)


def drives(name: str, *lengths: int) -> Drives:
    listed = {f"{d}": tuple(f"{d}/{i}" for i in range(count)) for d, count in enumerate(lengths)}
    return Drives(name, listed | {"train": tuple(f"train/{i}" for i in range(9))}, {"val": tuple(listed)})


DDAD = drives("ddad", *[79] * 50)
NUSCENES = drives("nuscenes", *[40] * 149, 59)


def check(protocol, source, *selectors):
    frame_ids = measured_frames(protocol, source, select(source, selectors))
    require_full_count(protocol, source, selectors, frame_ids)
    return len(frame_ids)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_full_split_has_the_published_number_of_frames(name):
    assert check(PROTOCOLS[name], DDAD, "val") == (3850 if name == "vfdepth" else 3950)
    if name != "vfdepth":
        assert check(PROTOCOLS[name], NUSCENES, "val") == 6019


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_full_split_with_another_number_of_frames_is_refused(name):
    short = drives("ddad", *[79] * 49, 78)
    expected, found = (3850, 3849) if name == "vfdepth" else (3950, 3949)
    with pytest.raises(ProtocolError, match=rf"ddad val, protocol {name}: all 50 drives are there, expected {expected}"
                       rf" frames, found {found}; complete the data set, or name the drives"):  # fmt: skip
        check(PROTOCOLS[name], short, "val")
    assert check(PROTOCOLS[name], drives("ddad", *[79] * 49), "val") > 0  # a drive is missing: not the full split
    assert check(PROTOCOLS[name], short, "val[:100]") > 0
    assert check(PROTOCOLS[name], short, "0", "1") > 0


def test_vfdepth_measures_nuscenes_on_its_own_list(tmp_path):
    with pytest.raises(ProtocolError, match=r"expected 5417 frames, found 6019; set data.test = \[\"list:PATH\"\] to"):
        check(VFDEPTH, NUSCENES, "val")
    ids = select(NUSCENES, ["val"])
    path = tmp_path / "val.txt"
    path.write_text("\n".join(ids[:5417]))
    assert check(VFDEPTH, NUSCENES, f"list:{path}") == 5417
    path.write_text("\n".join(ids[:5416]))
    assert check(FSM, NUSCENES, f"list:{path}") == 5416
    with pytest.raises(ProtocolError, match="expected 5417 frames, found 5416"):
        check(VFDEPTH, NUSCENES, f"list:{path}")
    assert check(VFDEPTH, NUSCENES, f"list:{path}[:7]") == 7
    path.write_text("\n".join([*ids[:10], "train/7"]))  # frames of other drives: a list of its own
    assert check(VFDEPTH, NUSCENES, f"list:{path}") == 11


def test_the_published_list_has_its_count(real_data):
    path = real_data / "splits" / "nuscenes" / "VFDepth_val.txt"
    tokens = [line.split()[0] for line in path.read_text().splitlines()]
    listed = {f"{i}": tuple(tokens[i::150]) for i in range(150)}
    assert check(VFDEPTH, Drives("nuscenes", listed, {"val": tuple(listed)}), f"list:{path}") == 5417


def test_vfdepth_leaves_out_the_frames_of_ddad_with_one_neighbour():
    source = drives("ddad", 3, 1, 4)
    assert measured_frames(VFDEPTH, source, select(source, ["val"])) == ("0/1", "2/1", "2/2")
    assert measured_frames(VFDEPTH, source, ("2/0", "2/1")) == ("2/1",)  # neighbours in the drive, chosen or not
    assert measured_frames(FSM, source, ("2/0", "2/1")) == ("2/0", "2/1")
    assert measured_frames(VFDEPTH, replace(source, name="nuscenes"), ("2/0", "2/1")) == ("2/0", "2/1")


@dataclass
class Masked(FakeSource):
    """The vehicle hides the left third from `right` and the lower quarter from `left`; `front` has no mask."""

    def frame(self, frame_id: str) -> Frame:
        frame = super().frame(frame_id)
        return replace(frame, views=tuple(self._with_mask(i, view) for i, view in enumerate(frame.views)))

    def _with_mask(self, i, view):
        if view is None or i == 0:
            return view
        mask = np.ones(NATIVE_SIZE, bool)
        mask[(slice(None), slice(27)) if i == 1 else (slice(36, None), slice(None))] = False
        return replace(view, load_unoccluded=lambda: mask)


model = cache(student)


def measure(source, frame_ids, spec):
    return evaluate(
        source, frame_ids, "d", model(), None, spec, device=CPU, precision="fp32", decode_size=STUDENT_SIZE
    ).report


def outputs(count: int) -> list[np.ndarray]:
    """What a network might say of `count` frames, 0.5 to 400 m, biased per camera and per frame."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.5, (count, len(NAMES), *STUDENT_SIZE))
    bias = np.log([6.0, 11.0, 8.0])[None, :, None, None] + 0.3 * np.arange(count)[:, None, None, None]
    return list(np.exp(noise + bias).clip(0.5, 400).astype(np.float32))


def bilinear(values, size, v, u):
    """A map at the centre of pixel (v, u) of an image of another size; beyond its outer centres it stays constant."""
    parts = []
    for position, count, target in ((v, values.shape[0], size[0]), (u, values.shape[1], size[1])):
        x = min(max((position + 0.5) * count / target - 0.5, 0.0), count - 1.0)
        low = min(int(x), count - 2)
        parts.append((low, x - low))
    (top, down), (left, right) = parts
    rows = values[top : top + 2, left : left + 2].astype(float)
    above, below = (row[0] * (1 - right) + row[1] * right for row in rows)
    return above * (1 - down) + below * down


def compute_errors(truth, predicted):
    """abs_rel, sq_rel, rmse, rmse_log, d1, d2, d3."""
    n = len(truth)
    pairs = list(zip(truth, predicted, strict=True))
    ratios = [max(t / p, p / t) for t, p in pairs]
    return [
        sum(abs(t - p) / t for t, p in pairs) / n,
        sum((t - p) ** 2 / t for t, p in pairs) / n,
        math.sqrt(sum((t - p) ** 2 for t, p in pairs) / n),
        math.sqrt(sum((math.log(t) - math.log(p)) ** 2 for t, p in pairs) / n),
        *(sum(ratio < 1.25**power for ratio in ratios) / n for power in (1, 2, 3)),
    ]


def image_lists(source, frame_id, maps, name, near, far):
    """Per camera the truths and predictions of the pixels that a protocol compares."""
    frame, images = source.frame(frame_id), {}
    sweep = frame.load_sweep() if frame.load_sweep else None
    size = STUDENT_SIZE if name == "vfdepth" else NATIVE_SIZE
    for i, view in enumerate(frame.views):
        if view is None or sweep is None:
            continue
        truth_m = sparse_depth(view, sweep, size)
        keep = np.ones(size, bool)
        if name in ("vfdepth", "fsm") and view.load_unoccluded:
            grey = Image.fromarray((view.load_unoccluded() * 255).astype(np.uint8))
            keep = np.asarray(grey.resize((size[1], size[0]), Image.Resampling.LANCZOS)) > 0
        pixels = [(v, u) for v in range(size[0]) for u in range(size[1]) if near < truth_m[v, u] < far and keep[v, u]]
        truths = [float(truth_m[v, u]) for v, u in pixels]
        images[NAMES[i]] = (truths, [bilinear(maps[i], size, v, u) for v, u in pixels])
    return images


def fitted(truth, predicted, near, far):
    """Least squares of 1/truth on 1/prediction by the normal equations, back in metres."""
    x, y = [1 / min(max(p, near), far) for p in predicted], [1 / t for t in truth]
    (scale, shift), *_ = np.linalg.lstsq(np.stack([x, np.ones(len(x))], axis=1), np.array(y), rcond=None)
    return [min(max(1 / (scale * d + shift), near), far) if scale * d + shift > 0 else far for d in x]


def reference(source, frame_ids, maps, name):
    """Mean over cameras of the mean over images (or pools of four frames), per alignment, and counts."""
    far = 80.0 if name in ("surrounddepth", "zero-shot", "vfdepth") and source.name != "ddad" else 200.0
    near = 0.1 if name in ("surrounddepth", "zero-shot") else 0.0
    count = 4 if name == "vfdepth" else 1

    def clip(values):
        return [min(max(value, near), far) for value in values]

    frames = [image_lists(source, f, m, name, near, far) for f, m in zip(frame_ids, maps, strict=True)]
    errors = {"metric": {}, "median_scaled": {}, "affine_invariant": {}}
    for start in range(0, len(frames), count):
        pool = frames[start : start + count]
        rig = [pair for frame in pool for pair in frame.values()]
        rig_truth, rig_predicted = ([x for pair in rig for x in pair[k]] for k in (0, 1))
        for camera in NAMES:
            images = [frame[camera] for frame in pool if camera in frame]
            if not images:
                continue
            truth, predicted = ([x for image in images for x in image[k]] for k in (0, 1))
            if name == "fsm":
                scale = statistics.median(rig_truth) / statistics.median(rig_predicted)
            else:
                scale = statistics.median(truth) / statistics.median(predicted)
            scaled = [p * scale for p in (clip(predicted) if name == "vfdepth" else predicted)]
            affine = [x for image in images for x in fitted(*image, near, far)]
            for alignment, values in (("metric", predicted), ("median_scaled", scaled), ("affine_invariant", affine)):
                errors[alignment].setdefault(camera, []).append(compute_errors(truth, clip(values)))
    means = {
        alignment: {camera: np.mean(entries, axis=0) for camera, entries in cameras.items()}
        for alignment, cameras in errors.items()
    }
    all_truths = [pair[0] for frame in frames for pair in frame.values()]
    return means, len(all_truths), sum(map(len, all_truths))


@pytest.mark.parametrize("dataset", ["ddad", "other"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_gives_the_numbers_of_an_independent_reference(name, dataset, monkeypatch):
    """Six frames (a pool of four and one of two), one without LiDAR, one without a camera."""
    source = Masked(6, name=dataset, missing={"d/2": (1,)}, no_lidar=("d/4",))
    maps = outputs(6)
    said = iter(maps)
    monkeypatch.setattr(predict, "forward_rig", lambda *_: torch.from_numpy(next(said))[None])
    spec = EvaluateSpec(protocol=name, latency=False, teacher=False, pictures=1)
    frame_ids = source.drives["d"]
    report = measure(source, frame_ids, spec)
    means, images, pixels = reference(source, frame_ids, maps, name)
    assert (report.images, report.valid_pixels) == (images, pixels)
    for alignment, cameras in means.items():
        scores = getattr(report.student, alignment)
        assert scores.per_camera.keys() == cameras.keys()
        for camera, expected in cameras.items():
            assert values(scores.per_camera[camera]) == pytest.approx(list(expected), rel=1e-4), (alignment, camera)
        assert values(scores.mean) == pytest.approx(list(np.mean(list(cameras.values()), axis=0)), rel=1e-4)
        assert sum(band.pixels for band in scores.by_distance_m.values()) == pixels
    assert report.masked_images == (9 if name in ("vfdepth", "fsm") else 0)
    assert report.consistency.pairs.keys() <= {"front-right", "right-left", "left-front"}


def values(errors):
    return [getattr(errors, name) for name in ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_flip_averaging_changes_what_every_protocol_measures_and_is_recorded(name, monkeypatch):
    """A network that says 5 m on the left of an image and 10 m on the right: both averaged, 7.5 m everywhere."""

    def forward(_, rig, *__):
        right = np.arange(STUDENT_SIZE[1]) >= STUDENT_SIZE[1] // 2
        return torch.from_numpy(np.where(right, 10, 5) * np.ones((1, len(rig.image), *STUDENT_SIZE), np.float32))

    source = Masked(2)
    monkeypatch.setattr(predict, "forward_rig", forward)
    spec = EvaluateSpec(protocol=name, latency=False, teacher=False, pictures=0)
    plain, flipped = (measure(source, source.drives["d"], replace(spec, flip=flip)) for flip in (False, True))
    assert (plain.flip, flipped.flip) == (False, True)
    monkeypatch.setattr(predict, "forward_rig", lambda *_: torch.full((1, 3, *STUDENT_SIZE), 7.5))
    level = measure(source, source.drives["d"], spec)
    assert flipped.student.metric.mean == level.student.metric.mean != plain.student.metric.mean
    assert flipped.consistency == level.consistency


def test_real_frames_under_every_protocol(real_data, monkeypatch):
    """A student that says 10 m everywhere, on the middle frame of three of DDAD, whose masks are known."""
    source = open_source("ddad", real_data / "ddad" / "ddad_train_val")
    monkeypatch.setattr(predict, "forward_rig", lambda *_: torch.full((1, 6, *STUDENT_SIZE), 10.0))
    reports = {}
    for name in ("surrounddepth", "fsm", "vfdepth"):
        frame_ids = measured_frames(PROTOCOLS[name], source, source.drives["000187"][:2])[-1:]
        reports[name] = measure(
            source, frame_ids, EvaluateSpec(protocol=name, latency=False, teacher=False, pictures=0)
        )
    assert {name: report.masked_images for name, report in reports.items()} == {
        "surrounddepth": 0, "fsm": 6, "vfdepth": 6,
    }  # fmt: skip
    plain, masked = reports["surrounddepth"], reports["fsm"]
    hidden = plain.valid_pixels - masked.valid_pixels
    assert 0 < hidden < 0.05 * plain.valid_pixels  # the LiDAR hits little of its own vehicle
    assert 0 < reports["vfdepth"].valid_pixels < 6 * STUDENT_SIZE[0] * STUDENT_SIZE[1]
