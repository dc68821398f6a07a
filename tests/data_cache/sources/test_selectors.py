from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_cache.errors import FrameError, SourceError
from data_cache.frames.rig import Frame, Rig
from data_cache.sources.base import Source
from data_cache.sources.registry import RENDERED, SOURCES, open_source
from data_cache.sources.selectors import first, select, shown


@dataclass
class Fake:
    """Two drives, of 4 and 2 frames, and a split of both."""

    name: str = "fake"
    rig: Rig = field(default_factory=lambda: Rig("fake", ("front",)))
    drives: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"a": ("a0", "a1", "a2", "a3"), "b": ("b0", "b1"), "empty": ()}
    )
    splits: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"train": ("b", "a"), "odd": ("a", "gone")})

    def frame(self, frame_id: str) -> Frame:
        raise FrameError(frame_id)


@pytest.mark.parametrize(
    ("selectors", "ids"),
    [
        (["a"], "a0 a1 a2 a3"),
        (["a[:2]"], "a0 a1"),
        (["a[1:]"], "a1 a2 a3"),
        (["a[-1:]"], "a3"),
        (["a[:-1]"], "a0 a1 a2"),
        (["a[::2]"], "a0 a2"),
        (["a[1:4:2]"], "a1 a3"),
        (["train"], "b0 b1 a0 a1 a2 a3"),
        (["train[1:3]"], "b1 a0"),
        (["b", "a[:1]"], "b0 b1 a0"),
        (["a[2:]", "a"], "a2 a3 a0 a1"),
    ],
)
def test_selectors_name_frames_in_order_and_once(selectors, ids):
    assert select(Fake(), selectors) == tuple(ids.split())


bound = st.none() | st.integers(-9, 9)


@given(bound, bound, st.none() | st.integers(1, 9))
def test_a_slice_means_what_python_means(start, stop, step):
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    expected = Fake().drives["a"][start:stop:step]
    if expected:
        assert select(Fake(), [f"a[{text}]"]) == expected
    else:
        with pytest.raises(SourceError, match="selects no frame"):
            select(Fake(), [f"a[{text}]"])


@pytest.mark.parametrize("selector", ["", "[:2]", "a[2]", "a[:2", "a[x:]", "a[::0]", "a[::-1]", "a[:2] "])
def test_a_malformed_selector_is_an_error(selector):
    with pytest.raises(SourceError, match=r"expected NAME or NAME\[start:stop:step\]"):
        select(Fake(), [selector])


@pytest.mark.parametrize("selector", ["c", "odd"])
def test_an_unknown_drive_is_an_error_that_lists_the_known(selector):
    with pytest.raises(SourceError, match=r"no drive or split '(c|gone)'; splits: train, odd; drives: a, b, empty"):
        select(Fake(), [selector])


def test_a_drive_without_frames_selects_no_frame():
    with pytest.raises(SourceError, match="selects no frame"):
        select(Fake(), ["empty"])


def test_a_list_names_frames_in_its_own_order(tmp_path):
    (tmp_path / "val.txt").write_text("\ufeffb1 front\n\na3  \nb1\n", encoding="utf-8")
    assert select(Fake(), [f"list:{tmp_path}/val.txt", "b"]) == ("b1", "a3", "b0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a1\nx1\nx2\n", "2 of 3 frames are not in this fake: x1, ...; its ids look like a0$"),
        (b"x1 5\nx2 6\n", "2 of 2 .*: x1 5, .*is the list of another data set, or of another release of it"),
        (b"\n", "found an empty file"),
        (b"\xff", "expected a text file of frame ids"),
    ],
)
def test_a_list_that_is_none_is_an_error(tmp_path, content, message):
    (tmp_path / "val.txt").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        select(Fake(), [f"list:{tmp_path}/val.txt"])
    with pytest.raises(SourceError, match="expected a text file of frame ids"):
        select(Fake(), ["list:/nowhere.txt"])
    with pytest.raises(SourceError, match="selector 'list:': expected list:PATH, .* found no path"):
        select(Fake(), ["list:"])


def test_a_list_may_be_sliced_unless_the_file_is_called_so(tmp_path):
    (tmp_path / "val.txt").write_text("b1\na3\na0\n")
    assert select(Fake(), [f"list:{tmp_path}/val.txt[1:]"]) == ("a3", "a0")
    with pytest.raises(SourceError, match=r"val\.txt\[5:\]' selects no frame"):
        select(Fake(), [f"list:{tmp_path}/val.txt[5:]"])
    (tmp_path / "val.txt[1:]").write_text("a1\n")
    assert select(Fake(), [f"list:{tmp_path}/val.txt[1:]"]) == ("a1",)


def test_an_id_with_spaces_is_named_whole_and_other_columns_may_follow(tmp_path):
    source = Fake(drives={"a": ("run 1/0", "run 1/1", "run"), "b": ()})
    (tmp_path / "val.txt").write_text("run 1/1\nrun 1/0 front 7\nrun 2\n")
    assert select(source, [f"list:{tmp_path}/val.txt"]) == ("run 1/1", "run 1/0", "run")


def test_a_list_is_shown_by_its_name_alone():
    assert [shown(one) for one in ("list:/a/b/val.txt[:3]", "list:val.txt", "train[::2]")] == [
        "list:val.txt[:3]", "list:val.txt", "train[::2]"]  # fmt: skip


@pytest.mark.parametrize(
    ("drives", "frames", "ids"),
    [(0, 0, "b0 b1 a0 a1 a2 a3"), (1, 0, "b0 b1"), (2, 0, "b0 b1 a0 a1 a2 a3"), (0, 3, "b0 b1 a0"), (1, 3, "b0 b1")],
)
def test_the_first_drives_and_frames_of_a_split(drives, frames, ids):
    assert first(Fake(), select(Fake(), ["train"]), drives=drives, frames=frames) == tuple(ids.split())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ddad", {"lidar": "both"}, r"ddad: data\.lidar is for pandaset alone"),
        ("pandaset", {"nearby_sweep_s": 0.1}, r"pandaset: data\.nearby_sweep_s is for nuscenes alone"),
    ],
)
def test_an_option_of_another_source_is_an_error(kind, options, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        open_source(kind, tmp_path, **options)


def test_an_unknown_source_is_an_error_that_lists_the_known(tmp_path):
    for root in (None, tmp_path):
        with pytest.raises(
            SourceError,
            match="unknown source 'kitti'; it is one of synthetic, synthetic_town, ddad, nuscenes, pandaset",
        ):
            open_source("kitti", root)


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in RENDERED])
def test_a_source_on_disk_needs_a_folder_of_its_own_layout(kind, tmp_path):
    with pytest.raises(SourceError, match="pass --data DIR"):
        open_source(kind, None)
    with pytest.raises(SourceError, match="pass --data DIR"):
        open_source(kind, tmp_path / "none")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(SourceError, match=rf"{kind}: expected .*found in .*: holiday\.jpg; pass "):
        open_source(kind, tmp_path)


def test_the_fake_is_a_source():
    assert isinstance(Fake(), Source)


def test_real_sources_open_by_name(real_data):
    assert select(open_source("pandaset", real_data / "pandaset"), ["002[:2]"]) == ("002/00", "002/01")
    assert len(select(open_source("nuscenes", real_data / "nuscenes", "v1.0-mini-camonly"), ["val"])) == 5
    assert len(select(open_source("ddad", real_data / "ddad" / "ddad_train_val"), ["val"])) == 3
