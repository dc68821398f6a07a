"""Files of data sets with anything in them: each is read, or refused with one of our own errors."""

import copy
import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_cache.errors import FrameError, SourceError
from data_cache.frames.images import FORMATS, load_rgb
from data_cache.sources.base import Source
from data_cache.sources.ddad.source import DdadSource
from data_cache.sources.nuscenes import NuscenesSource
from data_cache.sources.pandaset import PandasetSource
from data_cache.sources.parsing.pickles import load_whole_numbers
from data_cache.sources.parsing.points import load_points
from data_cache.sources.recordings.containers.opening import bag_files
from data_cache.sources.recordings.decisions import decisions_text
from data_cache.sources.recordings.source import RecordingSource
from data_cache.sources.rig_folder.source import RigFolderSource
from data_cache.sources.selectors import select
from pipeline.errors import RecipeError
from pipeline.report.compare import compare
from pipeline.report.one_run import write_report
from stages.evaluation.predictions import SUFFIXES, PredictionError, read_prediction, save_prediction
from stages.evaluation.results import Evaluation
from support.bags import write_bag
from support.data_sets.ddad import SCENE, calibration, scene
from support.data_sets.ddad import write_example as ddad
from support.data_sets.nuscenes import tables
from support.data_sets.nuscenes import write_example as nuscenes
from support.data_sets.pandaset import HERE, LENS, POINTS, write_sweep
from support.data_sets.pandaset import write_example as pandaset
from support.data_sets.points import FILES
from support.data_sets.rig_folder import RIG, line, write
from support.fakes import FakeSource
from support.reports import REPORT
from support.small_recording import camera, in_order, lidar, poses, statics

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([10**400, 2**63, -1, 0, "..", "/", "\ud800", "a/../b", "fisheye", "rational"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@st.composite
def changed_json(draw: Any, start: Any) -> bytes:
    """JSON text of a value in which up to three places hold something else, or are gone, or are new."""
    value = copy.deepcopy(start)
    for _ in range(draw(st.integers(0, 3))):
        inner = value
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and inner[key] and draw(st.integers(0, 3)):
                inner = inner[key]
                continue
            action = draw(st.integers(0, 4))
            if action == 0:
                del inner[key]
            elif action == 1 and isinstance(inner, dict):
                inner[draw(st.text(max_size=8))] = draw(VALUES)
            else:
                inner[key] = draw(VALUES)
            break
    text = json.dumps(value).encode()
    return draw(changed_bytes(text)) if draw(st.integers(0, 3)) == 0 else text


@st.composite
def changed_bytes(draw: Any, start: bytes) -> bytes:
    """Bytes of which up to four places are overwritten, cut out, or have something put in."""
    data = bytearray(start)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        piece = draw(st.binary(max_size=4) | st.sampled_from([b"\n", b"9" * 12, b"\xff" * 4, b"{", b"-1", b"nan"]))
        data[place : place + draw(st.sampled_from([0, len(piece), 1, 20]))] = piece
    return bytes(data)


def read_points(name: str) -> Callable[[Path, bytes], None]:
    def read(root: Path, data: bytes) -> None:
        (root / name).write_bytes(data)
        try:
            points = load_points(root / name)
        except FrameError:
            return
        assert points.ndim == 2
        assert points.shape[1] >= 3
        assert points.dtype.kind in "fiu"

    return read


def read_folder(name: str) -> Callable[[Path, bytes], None]:
    def read(root: Path, data: bytes) -> None:
        write(root, splits={"train": ["morning"]})
        (root / name).write_bytes(data)
        try:
            source = RigFolderSource(root)
        except SourceError:
            return
        for frame_id in [one for ids in source.drives.values() for one in ids]:
            frame = source.frame(frame_id)
            assert len(frame.views) == len(source.rig.camera_names)
            for load in [view.load_image for view in frame.views if view] + [frame.load_sweep] * bool(frame.load_sweep):
                try:
                    load()
                except FrameError:
                    continue
        for drives in source.splits.values():
            assert set(drives) <= source.drives.keys()

    return read


def read_data_set(
    make: Callable[[Path], Path], opened: Callable[[Path], Source], name: str
) -> Callable[[Path, bytes], None]:
    """Open an example in which one file holds other bytes, and read calibrations and sweeps of all its frames."""

    def read(root: Path, data: bytes) -> None:
        if not (root / "made").exists():
            make(root)
            (root / "made").touch()
        (root / name).write_bytes(data)
        try:
            source = opened(root)
        except SourceError:
            return
        for frame_id in [one for ids in source.drives.values() for one in ids]:
            try:
                frame = source.frame(frame_id)
                if frame.load_sweep is not None:
                    frame.load_sweep()
            except FrameError:
                continue

    return read


def read_recording(root: Path, data: bytes) -> None:
    (root / "recording").write_bytes(data)
    try:
        source = RecordingSource([root / "recording"])
    except SourceError:
        return
    decisions_text(source)
    for frame_id in [one for ids in source.drives.values() for one in ids]:
        try:
            frame = source.frame(frame_id)
            for load in [view.load_image for view in frame.views if view] + [frame.load_sweep] * bool(frame.load_sweep):
                load()
        except FrameError:
            continue


def recording_bytes(kind: str) -> bytes:
    """A recording of two frames of one camera."""
    said = [*statics(), *poses(until_s=0.2), *lidar(2), *camera("front", count=2)]
    with TemporaryDirectory() as folder:
        (path,) = bag_files(write_bag(Path(folder) / "van", in_order(said), kind))
        return path.read_bytes()


def read_image(root: Path, data: bytes) -> None:
    (root / "image").write_bytes(data)
    try:
        assert load_rgb(root / "image", (24, 32)).shape == (24, 32, 3)
    except FrameError:
        return


def read_mask_sets(root: Path, data: bytes) -> None:
    (root / "sets.pkl").write_bytes(data)
    try:
        assert all(type(n) is int for pair in load_whole_numbers(root / "sets.pkl").items() for n in pair)
    except SourceError:
        return


def read_depth(name: str) -> Callable[[Path, bytes], None]:
    def read(root: Path, data: bytes) -> None:
        (root / name).write_bytes(data)
        try:
            depth_m = read_prediction(root / name, (3, 5))
        except PredictionError:
            return
        assert depth_m.shape == (3, 5)
        assert np.isfinite(depth_m).all()

    return read


def read_list(root: Path, data: bytes) -> None:
    (root / "ids.txt").write_bytes(data)
    try:
        assert set(select(FakeSource(), [f"list:{root / 'ids.txt'}"])) <= set(FakeSource().drives["d"])
    except SourceError:
        return


def read_report(root: Path, data: bytes) -> None:
    (root / "report.json").write_bytes(data)
    try:
        assert "AbsRel" in compare([root / "report.json"])
    except (SourceError, RecipeError):
        return


def depth_bytes(suffix: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"depth{suffix}"
        save_prediction(path, np.arange(1, 16, dtype=np.float32).reshape(3, 5))
        return path.read_bytes()


def report_json() -> Any:
    with TemporaryDirectory() as folder:
        write_report(Path(folder), Evaluation(REPORT), {})
        return json.loads((Path(folder) / "report.json").read_text())


def image_bytes(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save(stream, kind)
    return stream.getvalue()


def table_bytes() -> bytes:
    """The pickle inside of a sweep of PandaSet."""
    stream = io.BytesIO()
    write_sweep(stream, POINTS)
    return gzip.decompress(stream.getvalue())


Parser = tuple[st.SearchStrategy[bytes], Callable[[Path, bytes], None]]
SEQUENCE = "005/camera/front_camera"
RIG_FOLDER: dict[str, Parser] = {
    name: (st.one_of(changed_bytes(start), changed_bytes(start), st.binary(max_size=200)), read_points(name))
    for name, start in FILES.items()
} | {
    "rig.json": (changed_json(RIG), read_folder("rig.json")),
    "frames.jsonl": (changed_json(line(1)).map(lambda text: text + b"\n" + json.dumps(line(2)).encode()),
                     read_folder("frames.jsonl")),
    "splits.json": (changed_json({"train": ["morning"], "test": ["noon"]}), read_folder("splits.json")),
}  # fmt: skip
DATA_SETS: dict[str, Parser] = {
    f"nuscenes {name}.json": (changed_json(rows), read_data_set(nuscenes, NuscenesSource, f"v1.0-mini/{name}.json"))
    for name, rows in tables().items()
} | {
    f"{source} {name}": (inputs, read_data_set(make, opened, name))
    for source, make, opened, name, inputs in (
        ("nuscenes", nuscenes, NuscenesSource, "samples/lidar.pcd.bin", st.binary(max_size=200)),
        ("ddad", ddad, DdadSource, "ddad.json",
         changed_json({"scene_splits": {"1": {"filenames": [f"000007/{SCENE}"]}}})),
        ("ddad", ddad, DdadSource, f"000007/{SCENE}", changed_json(scene())),
        ("ddad", ddad, DdadSource, "000007/calibration/c0ffee.json", changed_json(calibration())),
        ("ddad", ddad, DdadSource, "000007/point_cloud/LIDAR/a.npz", changed_bytes(FILES["single.npz"])),
        ("pandaset", pandaset, PandasetSource, f"{SEQUENCE}/poses.json", changed_json([HERE, HERE])),
        ("pandaset", pandaset, PandasetSource, f"{SEQUENCE}/intrinsics.json", changed_json(LENS)),
        ("pandaset", pandaset, PandasetSource, f"{SEQUENCE}/timestamps.json", changed_json([1557539958.5, 1557539959])),
        ("pandaset", pandaset, PandasetSource, "005/lidar/00.pkl.gz", changed_bytes(table_bytes()).map(gzip.compress)),
    )
} | {
    f"recording {kind}": (changed_bytes(recording_bytes(kind)), read_recording)
    for kind in ("mcap-plain", "mcap-zstd", "mcap-lz4", "sqlite3", "foxglove")
} | {
    "masks of ddad": (changed_bytes(pickle.dumps({187: 1, 3: 0}, protocol=3)), read_mask_sets),
} | {f"image {kind}": (changed_bytes(image_bytes(kind)), read_image) for kind in FORMATS}  # fmt: skip
REPORTS: dict[str, Parser] = {
    f"prediction{suffix}": (changed_bytes(depth_bytes(suffix)) | st.binary(max_size=200), read_depth(f"depth{suffix}"))
    for suffix in SUFFIXES.values()
} | {
    "list of frames": (changed_bytes(b"d/0\nd/1 front\nd/2\t7\n"), read_list),
    "report.json": (changed_json(report_json()), read_report),
}
PARSERS = RIG_FOLDER | DATA_SETS | REPORTS


def fuzz(name: str, root: Path, count: int, *, always_the_same: bool) -> None:
    """Read `count` files that claim to be `name`; an error of another type than the documented one comes out."""
    inputs, read = PARSERS[name]

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=always_the_same,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs)
    def run(data: bytes) -> None:
        with np.errstate(all="ignore"):
            read(root, data)

    run()
