"""LiDAR points from .npy, .npz, .pcd and KITTI .bin files. Headers are checked before data is read."""

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from data_cache.errors import FrameError
from data_cache.files import NPZ_ERRORS, open_regular
from data_cache.sources.parsing.npy import NpyError, read_data, read_header

# A merged sweep of several sensors has a million points; 512 MiB hold ten million in float64 with six columns.
BYTE_LIMIT = 512 * 2**20
POINT_LIMIT = 10_000_000
_HEADER_LIMIT = 16 * 2**10  # bytes
_COLUMN_LIMIT = 256


_Stream = io.BufferedReader | io.BytesIO


class _Malformed(Exception):
    """A file does not have the expected content; `load_points` turns it into a FrameError with the file's name."""


def load_points(path: Path, array: str = "points", bin_columns: int = 4) -> Shaped[np.ndarray, "N C"]:
    """Columns x, y, z, ... of a LiDAR file, in the unit and frame of the file; points may be non-finite.

    `.npy`: an array (N, 3 or more) of numbers. `.npz`: the array named `array`, or the only one. `.pcd`: fields x, y,
    z; data ascii, binary or binary_compressed; VIEWPOINT is not applied. `.bin`: rows of `bin_columns` float32 that
    begin with x, y, z and intensity.

    Raises:
        FrameError: if the file is missing, damaged, of another format, or declares more than 10 million points or
            512 MiB.
    """
    readers: dict[str, Callable[[_Stream, int], np.ndarray]] = {
        ".npy": _read_npy,
        ".npz": partial(_read_npz, array),
        ".pcd": _read_pcd,
        ".bin": partial(_read_bin, bin_columns),
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise FrameError(
            f"{path}: expected a LiDAR file .npy, .npz, .pcd or .bin, found {path.suffix or 'no suffix'!r}"
        )
    try:
        with open_regular(path, BYTE_LIMIT, "LiDAR file") as stream:
            byte_count = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            points = read(stream, byte_count)
    except OSError as error:
        raise FrameError(f"LiDAR file cannot be read: {path}: {error}") from error
    except (_Malformed, NpyError) as error:
        raise FrameError(f"{path}: {error}") from error
    return points


def _read_bin(columns: int, stream: _Stream, byte_count: int) -> Shaped[np.ndarray, "N C"]:
    if byte_count % (4 * columns):
        raise _Malformed(
            f"expected rows of {columns} float32, found {byte_count} bytes: truncated, or another number of columns"
        )
    _require_count(byte_count // (4 * columns))
    return np.frombuffer(stream.read(byte_count), "<f4").reshape(-1, columns)


def _read_npy(stream: _Stream, byte_count: int) -> Shaped[np.ndarray, "N C"]:
    header = read_header(stream)
    shape = header.shape
    if len(shape) != 2 or not 3 <= shape[1] <= _COLUMN_LIMIT:
        raise _Malformed(f"expected an array (N, 3 or more), found shape {shape}")
    _require_count(shape[0])
    return read_data(stream, header, BYTE_LIMIT)


def _read_npz(array: str, stream: _Stream, byte_count: int) -> Shaped[np.ndarray, "N C"]:
    _require_small_directory(stream, byte_count)
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {info.filename: info for info in archive.infolist()}
            info = members.get(f"{array}.npy", next(iter(members.values())) if len(members) == 1 else None)
            if info is None:
                found = ", ".join(sorted(members)[:8])
                raise _Malformed(f"expected the array {array!r}, or a single one, found {ascii(found) or 'none'}")
            if info.file_size > BYTE_LIMIT or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _Malformed(
                    f"expected an array of at most {BYTE_LIMIT} bytes, stored or deflated, found {info.file_size} bytes"
                    f" with compression {info.compress_type}"
                )
            data = archive.read(info)
    except NPZ_ERRORS as error:
        raise _Malformed(f"expected an npz file, found {error}") from error
    return _read_npy(io.BytesIO(data), len(data))


def _require_small_directory(stream: _Stream, byte_count: int) -> None:
    """Refuse an archive with a long list of members: zipfile would create an object for each, possibly millions."""
    stream.seek(max(0, byte_count - 42))
    tail = stream.read(42).rjust(42, b"\0")
    end, byte_size = tail[20:], int.from_bytes(tail[32:36], "little")
    # Numpy writes no comment at the end, and needs a zip64 directory (PK 6 7) only beyond 65,535 members.
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0" or tail[:4] == b"PK\6\7" or byte_size > _HEADER_LIMIT:
        raise _Malformed("expected an npz file as numpy writes it, found no directory of a few arrays at its end")


@dataclass(frozen=True)
class _PcdHeader:
    """What a PCD file declares; a field with COUNT n appears n times in `columns`, under the same name."""

    columns: tuple[tuple[str, str], ...]
    """Name and numpy type of every column."""
    point_count: int
    data: str

    @property
    def dtype(self) -> np.dtype:
        """The type of one packed point; only x, y and z have names."""
        offsets = np.cumsum([0, *(np.dtype(code).itemsize for _, code in self.columns)])
        places = [self.place(axis) for axis in "xyz"]
        return np.dtype(
            {
                "names": list("xyz"),
                "formats": [self.columns[place][1] for place in places],
                "offsets": [int(offsets[place]) for place in places],
                "itemsize": int(offsets[-1]),
            }
        )

    def place(self, axis: str) -> int:
        """Index of the column x, y or z."""
        return [name for name, _ in self.columns].index(axis)


_PCD_KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")
_PCD_CODES = {"F": (4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}


def _read_pcd(stream: _Stream, byte_count: int) -> Shaped[np.ndarray, "N C"]:
    """Read a PCD file; format: Point Cloud Library, "The PCD (Point Cloud Data) file format", versions .5 to .7."""
    header = _pcd_header(stream)
    if header.data == "ascii":
        return _pcd_ascii(header, stream)
    data = stream.read()
    needed = header.point_count * header.dtype.itemsize
    if needed > BYTE_LIMIT:
        raise _Malformed(f"expected at most {BYTE_LIMIT} bytes, found {needed} declared")
    if header.data == "binary":
        if len(data) < needed:
            raise _Malformed(f"expected {needed} bytes of data, found {len(data)}: truncated")
        table = np.frombuffer(data, header.dtype, count=header.point_count)
        return np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
    return _pcd_compressed(header, data, needed)


def _pcd_header(stream: _Stream) -> _PcdHeader:
    values: dict[str, list[str]] = {}
    while "DATA" not in values:
        line = stream.readline(_HEADER_LIMIT)
        if not line.endswith(b"\n") or stream.tell() > _HEADER_LIMIT:
            raise _Malformed(f"expected the header of a PCD file up to a line DATA, found {line[:40]!r}")
        words = line.decode("ascii", errors="replace").split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in _PCD_KEYS or words[0] in values:
            raise _Malformed(f"expected the header of a PCD file, each key once, found {line[:40]!r}")
        values[words[0]] = words[1:]
    names = values.get("FIELDS", [])
    sizes, counts = _wholes(values, "SIZE"), _wholes(values, "COUNT", ["1"] * len(names))
    types = values.get("TYPE", [])
    if not len(names) == len(sizes) == len(types) == len(counts):
        raise _Malformed(
            f"expected as many of SIZE, TYPE and COUNT as FIELDS, found {len(sizes)}, {len(types)}, {len(counts)} and"
            f" {len(names)}"
        )
    if sum(counts) > _COLUMN_LIMIT:
        raise _Malformed(f"expected at most {_COLUMN_LIMIT} columns, found {sum(counts)}")
    columns: list[tuple[str, str]] = []
    for name, kind, size, count in zip(names, types, sizes, counts, strict=True):
        if size not in _PCD_CODES.get(kind, ()):
            raise _Malformed(f"field {name!a}: expected TYPE F, I or U of its SIZE, found {kind!a} of {size}")
        columns += [(name, f"<{kind.lower()}{size}")] * count
    of_names = [name for name, _ in columns]
    if any(of_names.count(axis) != 1 for axis in "xyz"):
        raise _Malformed(f"expected the fields x, y and z once each, found {ascii(' '.join(names))[:80]}")
    width, height = _single(values, "WIDTH"), _single(values, "HEIGHT", ["1"])
    point_count = _single(values, "POINTS", [str(width * height)])
    _require_count(point_count)
    if point_count != width * height:
        raise _Malformed(f"expected WIDTH x HEIGHT points, found {width} x {height} and POINTS {point_count}")
    data = " ".join(values["DATA"])
    if data not in ("ascii", "binary", "binary_compressed"):
        raise _Malformed(f"expected DATA ascii, binary or binary_compressed, found {ascii(data)[:40]}")
    return _PcdHeader(tuple(columns), point_count, data)


def _wholes(values: dict[str, list[str]], key: str, default: list[str] | None = None) -> list[int]:
    words = values.get(key, default if default is not None else [])
    if not all(re.fullmatch(r"[0-9]{1,12}", word) for word in words):
        raise _Malformed(f"{key}: expected whole numbers, found {ascii(' '.join(words))[:40]}")
    return [int(word) for word in words]


def _single(values: dict[str, list[str]], key: str, default: list[str] | None = None) -> int:
    found = _wholes(values, key, default)
    if len(found) != 1:
        raise _Malformed(f"{key}: expected one whole number, found {len(found)}")
    return found[0]


def _pcd_ascii(header: _PcdHeader, stream: _Stream) -> Shaped[np.ndarray, "N C"]:
    if header.point_count == 0:
        return np.empty((0, 3))
    places = [header.place(axis) for axis in "xyz"]
    try:
        table = np.loadtxt(stream, usecols=places, max_rows=header.point_count, ndmin=2, comments=None)
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        raise _Malformed(f"expected rows of {len(header.columns)} numbers, found {error}") from error
    if len(table) != header.point_count:
        raise _Malformed(f"expected {header.point_count} rows, found {len(table)}: truncated")
    return table


def _pcd_compressed(header: _PcdHeader, data: bytes, needed: int) -> Shaped[np.ndarray, "N C"]:
    if len(data) < 8:
        raise _Malformed(f"expected the two sizes of compressed data, found {len(data)} bytes: truncated")
    packed, unpacked = struct.unpack_from("<II", data)
    if unpacked != needed or packed > len(data) - 8:
        raise _Malformed(
            f"expected {needed} bytes in at most {len(data) - 8} compressed ones, found {unpacked} in {packed} declared"
        )
    table = _lzf(memoryview(data)[8 : 8 + packed], needed)
    # Compressed data is stored column by column, with the columns of one field side by side.
    xyz = np.empty((header.point_count, 3))
    start = 0
    for place, (_, code) in enumerate(header.columns):
        width = np.dtype(code).itemsize
        for axis, wanted in enumerate("xyz"):
            if place == header.place(wanted):
                xyz[:, axis] = np.frombuffer(table, code, header.point_count, start)
        start += width * header.point_count
    return xyz


def _lzf(data: memoryview, size: int) -> bytearray:
    """Decompress LZF (the format of liblzf): runs of at most 32 literal bytes, and copies of earlier output.

    A control byte c < 32 announces c + 1 literals. Otherwise it announces a copy: its length is the upper three bits of
    c, plus the next byte if they are all set, plus 2; its distance is the lower five bits and the next byte, plus 1.
    """
    out = bytearray()
    i, end = 0, len(data)
    try:
        while i < end:
            control = data[i]
            i += 1
            if control < 32:
                if i + control >= end:
                    raise IndexError
                out += data[i : i + control + 1]
                i += control + 1
            else:
                length = control >> 5
                if length == 7:
                    length += data[i]
                    i += 1
                length += 2
                start = len(out) - ((control & 31) << 8) - data[i] - 1
                i += 1
                if start < 0:
                    raise IndexError
                piece = out[start : start + length]
                # A copy may overlap its own output: a short piece then repeats.
                out += piece if len(piece) == length else (piece * math.ceil(length / len(piece)))[:length]
            if len(out) > size:
                raise IndexError
    except IndexError:
        raise _Malformed(f"expected LZF data of {size} bytes, found damage at byte {i}") from None
    if len(out) != size:
        raise _Malformed(f"expected LZF data of {size} bytes, found {len(out)}: truncated")
    return out


def _require_count(point_count: int) -> None:
    if not 0 <= point_count <= POINT_LIMIT:
        raise _Malformed(f"expected at most {POINT_LIMIT} points, found {point_count} declared")
