"""Arrays of plain numbers from untrusted .npy files: the header is checked before the data is read."""

import io
from dataclasses import dataclass
from tokenize import TokenError

import numpy as np
from jaxtyping import Shaped


class NpyError(Exception):
    """A file is not an array of plain numbers; the caller adds the file's name."""


@dataclass(frozen=True)
class NpyHeader:
    """The shape, order and type that an .npy file declares; nothing is allocated yet."""

    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype


def read_header(stream: io.BufferedIOBase) -> NpyHeader:
    """Read the header of an .npy file of floats or whole numbers; the stream is left at the start of the data.

    Raises:
        NpyError: if it is damaged, or the array holds anything else.
    """
    # numpy.load would allocate what the header declares before it notices that the file is shorter.
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            header = NpyHeader(*np.lib.format.read_array_header_1_0(stream))
        elif version == (2, 0):
            header = NpyHeader(*np.lib.format.read_array_header_2_0(stream))
        else:
            raise NpyError(f"expected an npy file of version 1.0 or 2.0, found {version}")
    # The header is a Python literal: numpy passes on errors of Python's tokenizer and parser.
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError, OverflowError) as error:
        raise NpyError(f"expected an npy file, found {error}") from error
    if header.dtype.kind not in "fiu" or header.dtype.fields is not None or header.dtype.subdtype is not None:
        raise NpyError(f"expected an array of numbers, found {header.dtype}")
    return header


def read_data(stream: io.BufferedIOBase, header: NpyHeader, byte_limit: int) -> Shaped[np.ndarray, "..."]:
    """Read the array that a header declares; the caller has checked its shape.

    Raises:
        NpyError: if it takes more than `byte_limit` bytes, or is truncated.
    """
    needed = header.dtype.itemsize
    for side in header.shape:
        needed *= side
    if not 0 <= needed <= byte_limit:
        raise NpyError(f"expected at most {byte_limit} bytes, found {needed} declared")
    data = stream.read(needed)
    if len(data) != needed:
        raise NpyError(f"expected {needed} bytes of data, found {len(data)}: truncated")
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.in_columns else "C")
