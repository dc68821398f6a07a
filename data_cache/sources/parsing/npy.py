"""Arrays of plain numbers out of .npy files of strangers: what the header declares is known before anything is read."""

import io
from dataclasses import dataclass
from tokenize import TokenError

import numpy as np
from jaxtyping import Shaped


class NpyError(Exception):
    """What a file is instead of an array of plain numbers; the caller knows its name."""


@dataclass(frozen=True)
class NpyHeader:
    """What an .npy file declares; nothing of it has been allocated."""

    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype


def read_header(stream: io.BufferedIOBase) -> NpyHeader:
    """The header of an .npy file of floats or whole numbers; the stream then stands at the data.

    Raises:
        NpyError: if it is damaged, or an array of anything else.
    """
    # numpy.load would allocate what the header declares before it finds that the file is shorter.
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            header = NpyHeader(*np.lib.format.read_array_header_1_0(stream))
        elif version == (2, 0):
            header = NpyHeader(*np.lib.format.read_array_header_2_0(stream))
        else:
            raise NpyError(f"expected an npy file of version 1.0 or 2.0, found {version}")
    # The header is a Python literal: numpy lets the errors of Python's tokenizer and parser through.
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError, OverflowError) as error:
        raise NpyError(f"expected an npy file, found {error}") from error
    if header.dtype.kind not in "fiu" or header.dtype.fields is not None or header.dtype.subdtype is not None:
        raise NpyError(f"expected an array of numbers, found {header.dtype}")
    return header


def read_data(stream: io.BufferedIOBase, header: NpyHeader, byte_limit: int) -> Shaped[np.ndarray, "..."]:
    """The array that a header has announced, whose shape the caller has looked at.

    Raises:
        NpyError: if it takes more than `byte_limit`, or is cut short.
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
