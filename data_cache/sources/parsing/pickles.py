"""Read numbers from pickles of data sets, mostly pandas tables, without running any code that a pickle asks for.

A pickle is a program, and PandaSet's pickles are untrusted. Here each global that a pickle names stands for a small
class below that only stores its arguments. A file calls nothing in pandas or numpy, so files written by pandas 1 read
the same under pandas 3, or without pandas.
"""

import gzip
import io
import pickle
import pickletools
import zlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Shaped

from data_cache.errors import FrameError, SourceError
from data_cache.files import open_regular
from data_cache.sources.parsing.metadata import read_small
from data_cache.sources.parsing.points import BYTE_LIMIT, POINT_LIMIT

# A PandaSet sweep unpacks to 8 MB; a few kilobytes of gzip can unpack to more than the machine's memory.
UNPACKED_LIMIT = 256 * 2**20
NUMBERS_LIMIT = 2**20
OPCODE_LIMIT = 10_000  # a sweep has 400, and so do the 200 numbers of DDAD's masks

# The opcodes of pickled tables and numbers, by their effect on the top of the stack. Left out: sets, which take one
# byte each in the file and 200 in memory, and opcodes that duplicate or remove the top.
_MAKING = [
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "LIST", "EMPTY_LIST", "DICT", "EMPTY_DICT",
    "EMPTY_TUPLE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ",
]  # fmt: skip
_OTHER = ["PROTO", "FRAME", "STOP", "MARK"]
_TUPLE = ["TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"]
_FILLING = ["APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"]
_PUT = ["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"]
_GET = ["GET", "BINGET", "LONG_BINGET"]

_T = TypeVar("_T")


def load_columns(path: Path, names: tuple[str, ...]) -> Shaped[np.ndarray, "N C"]:
    """Columns of a gzipped, pickled pandas.DataFrame of numbers.

    Args:
        path: a `.pkl.gz` file.
        names: the columns wanted, in this order.

    Returns:
        (N, C) float64, one column per name.

    Raises:
        FrameError: if the file is missing or damaged, lacks a column, or names a global that such a table does not
            need; the message names it.
    """
    try:
        with open_regular(path, BYTE_LIMIT, "LiDAR file") as packed, gzip.open(packed) as stream:
            data = stream.read(UNPACKED_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FrameError(f"{path}: expected a gzip file, found {error}") from error
    if len(data) > UNPACKED_LIMIT:
        raise FrameError(f"{path}: expected a table of at most {UNPACKED_LIMIT} bytes, found more")
    try:
        _require_harmless(data)
        columns = _columns(_TableUnpickler(io.BytesIO(data)).load(), names)
    except pickle.UnpicklingError as error:
        raise FrameError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way, from EOFError to MemoryError
        raise FrameError(f"{path}: expected a pickled table, found a damaged one: {error!r}") from error
    return columns


def load_whole_numbers(path: Path) -> dict[int, int]:
    """Load a pickled dictionary from whole numbers to whole numbers.

    Raises:
        SourceError: if the file is missing, damaged, holds anything else, or names a global; the message names it.
    """
    data = read_small(path, NUMBERS_LIMIT)
    try:
        _require_harmless(data)
        numbers = _NumbersUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise SourceError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way, from EOFError to MemoryError
        raise SourceError(f"{path}: expected a pickled dictionary, found a damaged one: {error!r}") from error
    if type(numbers) is not dict or not all(type(n) is int for pair in numbers.items() for n in pair):
        raise SourceError(f"{path}: expected a dictionary of whole numbers, found something else")
    return numbers


class _Standin:
    """Base class of the stand-ins. A pickle that sets the state of a class or of a stateless value is refused."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{type(self).__name__} has no state to set")


class _Dtype(_Standin):
    """numpy.dtype of plain numbers, or of objects if an array is really a list."""

    def __init__(self, code: Any, align: object = False, copy: object = True) -> None:
        if code != "O8" and not (len(_as(code, str)) == 2 and code[0] in "fiu" and code[1] in "1248"):
            raise pickle.UnpicklingError(f"expected a dtype of plain numbers, found {code[:80]!r}")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        if _as(state[1], str) not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"expected a byte order, found {state[1][:80]!r}")
        self.order = state[1]

    def array(self, data: Any, shape: tuple[int, ...], order: str) -> Any:
        """An array over raw bytes; a list if the dtype is object."""
        if self.code == "O8":
            return _as(data, list)
        return np.frombuffer(data, dtype=self.order + self.code).reshape(shape, order="F" if order == "F" else "C")


class _Ndarray(_Standin):
    """numpy.ndarray; a pickle only names it and never calls it."""


class _Reconstruct(_Standin):
    """numpy's `_reconstruct`: an empty array that is filled by setting its state."""

    def __init__(self, kind: object, shape: object, code: object) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _as(dtype, _Dtype).array(data, shape, "F" if is_fortran else "C")


class _Frombuffer(_Standin):
    """numpy's `_frombuffer`: an array over bytes, as pickle protocol 5 writes it."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any, axis_order: object = None) -> None:
        if _as(order, str) not in ("C", "F"):
            raise pickle.UnpicklingError(f"expected an array in C or F order, found {order[:80]!r}")
        self.value = _as(dtype, _Dtype).array(data, shape, order)


class _Index(_Standin):
    """A pandas index, made by `_new_Index(kind, fields)`; only the index of the columns is read."""

    def __init__(self, kind: object = None, fields: Any = None) -> None:
        self.fields = fields


class _Slice(_Standin):
    """A slice. Python's own slice could be a dictionary key, which compares its contents."""

    def __init__(self, start: Any, stop: Any, step: Any = None) -> None:
        self.value = slice(start, stop, step)


class _Block(_Standin):
    """Some columns of one dtype, with the arguments of `_unpickle_block(values, placement, ndim)`."""

    def __init__(self, values: Any, placement: Any, ndim: object = 2) -> None:
        self.values = values
        self.placement = placement


class _BlockManager(_Standin):
    """Blocks and axes: arguments since pandas 1.3, state in earlier versions."""

    def __init__(self, blocks: Any = (), axes: Any = ()) -> None:
        self.blocks = blocks
        self.axes = axes

    def __setstate__(self, state: Any) -> None:
        layout = state[3]["0.14.1"]
        self.axes = layout["axes"]
        self.blocks = [_Block(block["values"], block["mgr_locs"]) for block in layout["blocks"]]


class _DataFrame(_Standin):
    """A table; its state holds the block manager as `_mgr`, or as `_data` before pandas 1.1."""

    manager: Any = None

    def __setstate__(self, state: Any) -> None:
        self.manager = state["_mgr"] if "_mgr" in state else state["_data"]


_STANDINS: dict[tuple[str, str], type] = {
    ("builtins", "slice"): _Slice,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.numeric", "_frombuffer"): _Frombuffer,
    ("numpy.core.numeric", "_frombuffer"): _Frombuffer,
    ("pandas", "DataFrame"): _DataFrame,
    ("pandas.core.frame", "DataFrame"): _DataFrame,
    ("pandas", "Index"): _Index,
    ("pandas", "RangeIndex"): _Index,
    ("pandas.core.indexes.base", "_new_Index"): _Index,
    ("pandas.core.indexes.base", "Index"): _Index,
    ("pandas.core.indexes.range", "RangeIndex"): _Index,
    ("pandas.core.indexes.numeric", "Int64Index"): _Index,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.internals.managers", "BlockManager"): _BlockManager,
}


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global.

        Raises:
            pickle.UnpicklingError: for a global without a stand-in; the message names it.
        """
        if (module, name) not in _STANDINS:
            raise pickle.UnpicklingError(
                f"expected a table of numbers, found a pickle that asks for {module}.{name}; refused: it could run code"
            )
        return _STANDINS[module, name]


class _NumbersUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Refuse every global: numbers need none.

        Raises:
            pickle.UnpicklingError: always; the message names the global.
        """
        raise pickle.UnpicklingError(
            f"expected whole numbers, found a pickle that asks for {module}.{name}; refused: it could run code"
        )


def _require_harmless(data: bytes) -> None:
    """Check the opcodes of a pickle without running it, so that loading it takes little memory and time.

    No tuple may be used twice: as keys, 40 nested tuples that each hold the one before twice take 2^40 hash operations.
    """
    is_tuple: dict[int, bool] = {}
    top = False  # whether the value on top of the stack may be a tuple
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), 1):
        name = opcode.name
        if count > OPCODE_LIMIT:
            raise pickle.UnpicklingError(f"expected at most {OPCODE_LIMIT} opcodes, found more; refused")
        if name in _PUT:
            # The unpickler reserves memory up to the largest memo index: ten bytes of pickle could exhaust it.
            index = len(is_tuple) if argument is None else int(argument)
            if index > len(data):
                raise pickle.UnpicklingError(f"expected memo indices below {len(data)}, found {index}; refused")
            is_tuple[index] = top
        elif name in _GET:
            top = is_tuple.get(int(argument or 0), False)
            if top:
                raise pickle.UnpicklingError("expected each tuple to be used once, found one used again; refused")
        elif name in _MAKING:
            top = False
        elif name in _TUPLE or name in _FILLING:
            top = True  # the filled object is on top again, and it may be a tuple to which nothing was added
        elif name not in _OTHER:
            raise pickle.UnpicklingError(f"expected plain tables and numbers, found the opcode {name}; refused")


def _columns(table: Any, wanted: tuple[str, ...]) -> Shaped[np.ndarray, "N C"]:
    """The wanted columns of a table; only these are converted, even if many more share the same bytes."""
    manager = _as(_as(table, _DataFrame).manager, _BlockManager)
    names = [_as(name, str) for name in _as(_as(manager.axes[0], _Index).fields["data"].value, list)]
    columns: dict[str, np.ndarray] = {}
    for block in manager.blocks:
        if isinstance(block.placement, _Slice):
            begin, end, step = block.placement.value.indices(len(names))
            indices: list[int] = list(range(begin, end, step))
        else:
            indices = _numbers(block.placement.value, len(names)).tolist()
        for index, column in zip(indices, block.values.value, strict=True):
            columns[names[index]] = _numbers(column, POINT_LIMIT)
    if not set(wanted) <= columns.keys():
        raise pickle.UnpicklingError(f"expected the columns {list(wanted)}, found {list(columns)}")
    return np.stack([np.asarray(columns[name], dtype=np.float64) for name in wanted], axis=1)


def _numbers(value: Any, at_most: int) -> np.ndarray:
    array = _as(value, np.ndarray)
    if array.ndim != 1 or len(array) > at_most:
        raise pickle.UnpicklingError(f"expected a row of at most {at_most} numbers, found shape {array.shape}")
    return array


def _as(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise pickle.UnpicklingError(f"expected a {kind.__name__.strip('_')}, found {type(value).__name__}")
    return value
