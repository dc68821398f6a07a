import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_sets.points import ASCII, COLUMNS, FILES, HEAD, POINTS, compress, compressed_pcd, npy, npz
from support.vehicle import pcd

from data_cache.errors import FrameError
from data_cache.sources.parsing import points as module
from data_cache.sources.parsing.points import load_points


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_points(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    np.testing.assert_array_equal(np.asarray(load_points(tmp_path / name), np.float64)[:, :3], POINTS)


def test_fields_of_a_pcd_file_stand_in_any_order_and_width(tmp_path):
    """One point, by hand: z as a double first, two bytes of padding, x as a whole number, y as a float."""
    head = "FIELDS z _ _ x y\nSIZE 8 1 1 2 4\nTYPE F U U I F\nWIDTH 1\nHEIGHT 1\nPOINTS 1\nDATA {}\n"
    for kind, data in (
        ("binary", struct.pack("<dBBhf", -3.5, 9, 9, -2, 0.25)),
        ("ascii", b"-3.5 9 9 -2 0.25\n"),
    ):
        (tmp_path / "a.pcd").write_bytes(head.format(kind).encode() + data)
        assert load_points(tmp_path / "a.pcd").tolist() == [[-2, 0.25, -3.5]]


def test_a_field_of_several_values_is_passed_over(tmp_path):
    head = "FIELDS x normal y z\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 3 1 1\nWIDTH 2\nHEIGHT 1\nDATA binary_compressed\n"
    table = np.array([1, 2, 9, 9, 9, 9, 9, 9, 3, 4, 5, 6], "<f4").tobytes()
    packed = compress(table)
    (tmp_path / "a.pcd").write_bytes(head.encode() + struct.pack("<II", len(packed), len(table)) + packed)
    assert load_points(tmp_path / "a.pcd").tolist() == [[1, 3, 5], [2, 4, 6]]


def test_lzf_by_hand():
    """Three literals "abc"; a copy of 4 from 3 back, which repeats itself; a long copy of 7 + 1 + 2 from 1 back."""
    data = bytes([2]) + b"abc" + bytes([(2 << 5) | 0, 2]) + bytes([(7 << 5) | 0, 1, 0])
    assert module._lzf(memoryview(data), 17) == b"abcabca" + b"a" * 10
    far = bytes([0]) + b"x" + (bytes([(7 << 5), 255, 0]) * 2) + bytes([0]) + b"y" + bytes([(1 << 5) | 1, 3])
    assert module._lzf(memoryview(far), 533)[-4:] == b"yxxx"  # 1 << 8 | 3, plus 1: 260 back


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"b", b"abcabc", b"\0" * 300, b"0123456789" * 4]), max_size=5).map(b"".join))
def test_what_was_compressed_comes_back(data):
    assert module._lzf(memoryview(compress(data, reach=16)), len(data)) == data


def header(shape, descr="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zip_of(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


REFUSED = {
    "rows.npy": (header((10**12, 3)), "at most 10000000 points, found 1000000000000 declared"),
    "bytes.npy": (header((10**7, 100)), "expected at most 536870912 bytes, found 8000000000 declared"),
    "columns.npy": (header((3, 10**9)), r"expected an array \(N, 3 or more\), found shape"),
    "negative.npy": (header((-1, 3)), "at most 10000000 points, found -1 declared"),
    "objects.npy": (npy(np.array([[1, 2, None]], dtype=object)), "expected an array of numbers, found object"),
    "flat.npy": (npy(np.zeros(9)), "found shape"),
    "text.npy": (npy(np.array([["a", "b", "c"]])), "expected an array of numbers"),
    "cut.npy": (npy(POINTS)[:-1], "expected 72 bytes of data, found 71: truncated"),
    "version.npy": (b"\x93NUMPY\x09\x00" + npy(POINTS)[8:], r"version 1\.0 or 2\.0"),
    "noise.npy": (b"noise", "expected an npy file"),
    "two.npz": (npz(a=POINTS, b=POINTS), "expected the array 'points', or a single one, found 'a.npy, b.npy'"),
    "pickle.npz": (npz(points=np.array([{}], dtype=object)), "expected an array of numbers"),
    "noise.npz": (b"noise" * 20, "expected an npz file"),
    "many.npz": (zip_of(**{f"{i}.npy": b"" for i in range(2000)}), "directory of a few arrays"),
    "damaged.npz": (npz(points=POINTS).replace(b"PK\x03\x04", b"PK\x03\x05"), "expected an npz file"),
    "rows.bin": (b"\0" * 17, "expected rows of 4 float32, found 17 bytes"),
    "points.pcd": (HEAD.replace("3\nHEIGHT", "9999999999\nHEIGHT").replace("POINTS 3", "POINTS 9999999999").encode()
                   + b"DATA binary\n", "found 9999999999 declared"),
    "wide.pcd": (b"FIELDS x y z w\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 999999\nWIDTH 1\nHEIGHT 1\nDATA binary\n",
                 "at most 256 columns"),
    "product.pcd": (HEAD.replace("HEIGHT 1", "HEIGHT 2").encode() + b"DATA binary\n", "WIDTH x HEIGHT"),
    "no_z.pcd": (b"FIELDS x y\nSIZE 4 4\nTYPE F F\nWIDTH 1\nHEIGHT 1\nDATA binary\n", "x, y and z once each"),
    "type.pcd": (HEAD.replace("F F F", "F F Q").encode() + b"DATA binary\n", "TYPE F, I or U"),
    "endless.pcd": (b"# " + b"x" * 100_000, "expected the header of a PCD file up to a line DATA"),
    "data.pcd": (HEAD.encode() + b"DATA binary_lzma\n", "DATA ascii, binary or binary_compressed"),
    "cut.pcd": (pcd(POINTS)[:-1], "truncated"),
    "short.pcd": (ASCII[:-8].encode(), "expected 3 rows, found 2: truncated"),
    "words.pcd": (ASCII.replace("30 4", "30 four").encode(), "expected rows of 3 numbers"),
    "bomb.pcd": ((HEAD + "DATA binary_compressed\n").encode() + struct.pack("<II", 4, 2**32 - 1) + b"\0\0\0\0",
                 "expected 36 bytes in at most 4 compressed ones, found 4294967295 in 4 declared"),
    "back.pcd": (compressed_pcd(COLUMNS, bytes([32, 0])), "expected LZF data of 36 bytes, found damage"),
    "long.pcd": (compressed_pcd(COLUMNS, bytes([0, 65]) + bytes([224, 255, 0])), "found damage"),
    "little.pcd": (compressed_pcd(COLUMNS, bytes([0, 65])), "found 1: truncated"),
    "points.ply": (b"ply\n", r"expected a LiDAR file \.npy, \.npz, \.pcd or \.bin, found '\.ply'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_what_it_should_be_is_an_error_that_names_it(tmp_path, name):
    data, message = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FrameError, match=rf"{name}: {message}|{name}.*{message}"):
        load_points(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.npy", "bytes.npy", "points.pcd", "bomb.pcd", "many.npz", "endless.pcd"])
def test_no_memory_is_taken_for_what_a_header_only_declares(tmp_path, name):
    (tmp_path / name).write_bytes(REFUSED[name][0])
    tracemalloc.start()
    with pytest.raises(FrameError):
        load_points(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_an_array_that_unpacks_to_more_than_the_limit_is_refused_by_its_declared_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BYTE_LIMIT", 10_000)
    (tmp_path / "a.npz").write_bytes(npz(points=np.zeros((1000, 3))))
    with pytest.raises(FrameError, match="at most 10000 bytes, stored or deflated, found 24128 bytes"):
        load_points(tmp_path / "a.npz")
    (tmp_path / "a.bin").write_bytes(b"\0" * 16_000)
    with pytest.raises(FrameError, match="expected at most 10000 bytes, found 16000"):
        load_points(tmp_path / "a.bin")


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(FrameError, match="LiDAR file missing"):
        load_points(tmp_path / "none.npy")
    with pytest.raises(FrameError, match="cannot be read"):
        load_points(tmp_path / "folder.npy")
