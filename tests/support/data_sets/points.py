"""The same three points in every format of point files."""

import io
import struct

import numpy as np
from support.vehicle import pcd

POINTS = np.array([[1.5, -2.25, 0.5], [30.0, 4.0, -1.75], [np.nan, 0, 0]])
HEAD = "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
HEAD += "WIDTH 3\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 3\n"
ASCII = HEAD + "DATA ascii\n1.5 -2.25 0.5\n30 4 -1.75\nnan 0 0\n"


def npy(array, **keywords):
    stream = io.BytesIO()
    np.save(stream, array, **keywords)
    return stream.getvalue()


def npz(compressed=True, **arrays):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def compress(data, reach=8191):
    """LZF, written the slow way: the longest match at every place, else a literal."""
    out, literals, i = bytearray(), bytearray(), 0

    def flush():
        for start in range(0, len(literals), 32):
            run = literals[start : start + 32]
            out.append(len(run) - 1)
            out.extend(run)
        literals.clear()

    while i < len(data):
        length, back = 0, 0
        for distance in range(1, min(i, reach) + 1):
            n = 0
            while n < 264 and i + n < len(data) and data[i + n] == data[i + n - distance]:
                n += 1
            if n > length:
                length, back = n, distance
        if length < 3:
            literals.append(data[i])
            i += 1
            continue
        flush()
        code, offset = length - 2, back - 1
        out += bytes([(min(code, 7) << 5) | (offset >> 8)]) + (bytes([code - 7]) if code >= 7 else b"")
        out.append(offset & 255)
        i += length
    flush()
    return bytes(out)


def compressed_pcd(table, packed=None):
    packed = compress(table) if packed is None else packed
    return (HEAD + "DATA binary_compressed\n").encode() + struct.pack("<II", len(packed), len(table)) + packed


COLUMNS = np.ascontiguousarray(POINTS.astype("<f4").T).tobytes()
FILES = {
    "float64.npy": npy(POINTS),
    "float32_in_columns.npy": npy(np.asfortranarray(POINTS.astype(np.float32))),
    "big_endian_with_intensity.npy": npy(np.column_stack([POINTS, [7, 8, 9]]).astype(">f4")),
    "named.npz": npz(points=POINTS, other=np.zeros(2)),
    "single.npz": npz(compressed=False, data=POINTS),
    "ascii.pcd": ASCII.encode(),
    "binary.pcd": pcd(POINTS.astype(np.float32)),
    "compressed.pcd": compressed_pcd(COLUMNS),
    "kitti.bin": np.column_stack([POINTS, [7, 8, 9]]).astype("<f4").tobytes(),
}
