"""A reader of PLY files that shares nothing with the writer."""

import numpy as np


def read_ply(data: bytes) -> np.ndarray:
    """The vertices of a binary PLY, by its header alone (format 1.0, G. Turk 1994)."""
    head, _, body = data.partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    elements = [line.split() for line in lines if line.startswith("element")]
    assert [element[1] for element in elements] == ["vertex"]
    kinds = {"float": "<f4", "uchar": "u1"}
    columns = [line.split()[1:] for line in lines if line.startswith("property")]
    dtype = np.dtype([(name, kinds[kind]) for kind, name in columns])
    assert len(body) == dtype.itemsize * int(elements[0][2])
    return np.frombuffer(body, dtype)
