import contextlib
import gzip
import io
import os
import pickle
import struct
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_cache.errors import FrameError
from data_cache.sources.parsing import pickles
from data_cache.sources.parsing.pickles import load_columns

pandas = pytest.importorskip("pandas")

NAMES = ("x", "y", "z", "i", "t", "d")


def table(values, order="C"):
    """A table as PandaSet has them: one block of float columns, in C or F order, and one of the whole-number `d`."""
    values = np.asarray(values, dtype=np.float64).reshape(-1, len(NAMES))
    floats = np.array(values[:, :5].T, order=order)
    parts = [pandas.DataFrame(floats.T, copy=False), pandas.DataFrame(values[:, 5].astype(np.int64))]
    return pandas.concat(parts, axis=1).set_axis(pandas.Index(NAMES, dtype=object), axis=1)


def write(path, data):
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(data)
    return path


def piece(value):
    """The opcodes that leave `value` on the stack, without the frame of a whole pickle."""
    return pickle.dumps(value, protocol=3)[2:-1]


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def old_table(x, d):
    """A table as pandas before 1.3 wrote it: no `_unpickle_block`, the layout is the state of the block manager."""
    index = name("pandas.core.indexes.base", "_new_Index") + name("pandas.core.indexes.base", "Index")
    index += piece({"data": np.array(["x", "d"], dtype=object), "name": None}) + b"\x86R"
    blocks = b""
    for values, start in ((x, 0), (d, 1)):
        blocks += (
            b"}(" + piece("values") + piece(values[None]) + piece("mgr_locs") + piece(slice(start, start + 1)) + b"u"
        )
    layout = b"}" + piece("0.14.1") + b"}(" + piece("axes") + b"]" + index + b"a" + piece("blocks")
    layout += b"](" + blocks + b"eu" + b"s"
    manager = name("pandas.core.internals.managers", "BlockManager") + b")\x81(NNN" + layout + b"tb"
    return b"\x80\x03" + name("pandas.core.frame", "DataFrame") + b")\x81}" + piece("_data") + manager + b"sb."


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 9), st.just(5))),
    st.sampled_from([3, 4, 5]),
    st.sampled_from("CF"),
    st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_what_pandas_writes_reads_back(tmp_path, values, protocol, order, data):
    values = np.column_stack([values, np.arange(len(values))])
    names = tuple(data.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)))
    path = write(tmp_path / "a.pkl.gz", pickle.dumps(table(values, order), protocol=protocol))
    read = load_columns(path, names)
    np.testing.assert_array_equal(read, values[:, [NAMES.index(name) for name in names]])
    assert read.dtype == np.float64


@pytest.mark.parametrize("protocol", [3, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_block_reads_in_the_order_it_was_written(tmp_path, protocol, order):
    frame = table(np.arange(18).reshape(3, 6), order)
    path = write(tmp_path / "a.pkl.gz", pickle.dumps(frame, protocol=protocol))
    np.testing.assert_array_equal(load_columns(path, ("y", "t", "d")), [[1, 4, 5], [7, 10, 11], [13, 16, 17]])


def test_columns_come_by_name(tmp_path):
    frame = table([[1, 2, 3, 4, 5, 1], [6, 7, 8, 9, 10, 0]])
    path = write(tmp_path / "a.pkl.gz", pickle.dumps(frame[["d", "z", "x", "i", "t", "y"]]))
    np.testing.assert_array_equal(load_columns(path, ("x", "y", "d")), [[1, 2, 1], [6, 7, 0]])


def test_a_table_of_an_old_pandas_reads_the_same(tmp_path):
    x, d = np.array([1.5, 2.5, 3.5]), np.array([0, 1, 0])
    path = write(tmp_path / "a.pkl.gz", old_table(x, d))
    np.testing.assert_array_equal(load_columns(path, ("x", "d")), np.stack([x, d], axis=1))


def test_the_same_names_under_numpy_1(tmp_path):
    data = pickle.dumps(table([[1, 2, 3, 4, 5, 0]]), protocol=3).replace(b"cnumpy._core.", b"cnumpy.core.")
    assert b"cnumpy.core." in data
    np.testing.assert_array_equal(load_columns(write(tmp_path / "a.pkl.gz", data), ("x", "t")), [[1, 5]])


class Reduced:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    ("attack", "refused"),
    [
        (Reduced(os.system, "touch {}"), rf"{os.system.__module__}\.system"),
        (Reduced(eval, "open({!r}, 'w')"), r"builtins\.eval"),
        (Reduced(exec, "open({!r}, 'w')"), r"builtins\.exec"),
        (Reduced(getattr, slice, "mro"), r"builtins\.getattr"),
        (Reduced(pandas.read_pickle, "{}"), r"pandas\.\S*read_pickle"),
        (Reduced(np.load, "{}"), r"numpy\S*\.load"),
        (Reduced(io.open, "{}", "w"), r"_?io\.open"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_by_name(tmp_path, attack, refused, protocol):
    victim = tmp_path / "victim"
    function, arguments = attack.call
    armed = Reduced(function, *(a.format(str(victim)) if isinstance(a, str) else a for a in arguments))
    frame = table([[1, 2, 3, 4, 5, 0]])
    frame.attrs["hidden"] = [{"deep": armed}]
    for payload in (armed, [1, (armed,)], Reduced(slice, armed), frame):
        path = write(tmp_path / "a.pkl.gz", pickle.dumps(payload, protocol=protocol))
        with pytest.raises(FrameError, match=rf"a\.pkl\.gz: .*asks for {refused}; refused"):
            load_columns(path, ("x",))
    assert not victim.exists()


@pytest.mark.parametrize(
    "program",
    [
        pickle.dumps(Reduced(os.getcwd), protocol=4).replace(b"getcwd", b"system"),
        b"\x80\x04\x8c\x08builtins\x8c\x0dslice.__class__\x93.",
        b"\x80\x04\x8c\x06pandas\x8c\x10DataFrame.to_csv\x93.",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x02Pname\n.",  # a persistent id
        b"\x80\x02" + name("numpy", "dtype") + b"}" + piece("code") + piece("O8") + b"sb.",  # the state of a class
        b"\x80\x02" + name("pandas._libs.internals", "_unpickle_block") + b"N}" + piece("__init__") + b"Ns\x86b.",
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo index that would take gigabytes
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # a terabyte of nothing
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"",
        b"not a pickle",
        piece({"x": [1.0]}) + b".",
        piece(None) + b".",
    ],
)
def test_other_programs_end_as_frame_errors(tmp_path, program):
    before = dict(vars(pickles._Dtype)), dict(vars(pickles._Block))
    with pytest.raises(FrameError, match=r"a\.pkl\.gz"):
        load_columns(write(tmp_path / "a.pkl.gz", program), ("x",))
    assert before == (dict(vars(pickles._Dtype)), dict(vars(pickles._Block)))


@pytest.mark.parametrize("code", ["O4", "V8", "S8", "M8", "f", "f16", "(1000000000000,)f8", "f8,f8"])
def test_only_plain_numbers_are_arrays(tmp_path, code):
    program = b"\x80\x03" + name("numpy", "dtype") + piece(code) + b"\x85R."
    with pytest.raises(FrameError, match="dtype of plain numbers"):
        load_columns(write(tmp_path / "a.pkl.gz", program), ("x",))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_a_damaged_file_reads_or_ends_as_a_frame_error(tmp_path, data):
    whole = bytearray(pickle.dumps(table(np.arange(24.0).reshape(4, 6) % 3), protocol=5))
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[position] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))]
    with contextlib.suppress(FrameError):
        assert load_columns(write(tmp_path / "a.pkl.gz", bytes(whole)), ("x", "d")).shape[1] == 2


def test_a_damaged_gzip_file_is_an_error(tmp_path):
    path = write(tmp_path / "a.pkl.gz", pickle.dumps(table(np.zeros((50, 6)))))
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:5], b"", b"plain", whole[:30] + b"\0" * 30 + whole[60:]):
        path.write_bytes(data)
        with pytest.raises(FrameError, match=r"a\.pkl\.gz"):
            load_columns(path, ("x",))
    with pytest.raises(FrameError, match="missing"):
        load_columns(tmp_path / "b.pkl.gz", ("x",))


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "UNPACKED_LIMIT", 1000)
    with pytest.raises(FrameError, match="at most 1000 bytes"):
        load_columns(write(tmp_path / "a.pkl.gz", bytes(1001)), ("x",))


def test_a_missing_column_is_an_error_that_lists_the_found(tmp_path):
    path = write(tmp_path / "a.pkl.gz", pickle.dumps(table([[1, 2, 3, 4, 5, 0]])))
    with pytest.raises(
        FrameError, match=r"expected the columns \['x', 'ring'\], found \['x', 'y', 'z', 'i', 't', 'd'\]"
    ):
        load_columns(path, ("x", "ring"))


def test_a_real_sweep_has_both_sensors(real_data):
    """The numbers were read once with pandas itself."""
    columns = load_columns(real_data / "pandaset" / "002" / "lidar" / "07.pkl.gz", ("x", "y", "z", "d"))
    assert columns.shape == (167_652, 4)
    np.testing.assert_array_equal(columns[0], [-44.533, -46.938, 1.345, 0])
    assert np.count_nonzero(columns[:, 3] == 0) == 105_868
    assert np.count_nonzero(columns[:, 3] == 1) == 167_652 - 105_868


def array(code, data, shape):
    """An array of numpy over bytes, as a pickle writes it; 60,000,000 numbers of one byte are 480 MB as float64."""
    return (
        name("numpy._core.numeric", "_frombuffer") + b"(" + data + name("numpy", "dtype") + piece(code) + b"\x85R"
        + piece(shape) + piece("C") + b"tR"
    )  # fmt: skip


ZEROS = b"B" + struct.pack("<I", 60_000_000) + bytes(60_000_000)
TWICE_THE_ONE_BEFORE = b"2\x86" * 60


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x04(" + b"\x8f" * 2**23 + b"l.", "found the opcode EMPTY_SET"),
        (b"\x80\x04(" + b"]" * 2**23 + b"l.", "at most 10000 opcodes"),
        (b"\x80\x04}K\x01" + TWICE_THE_ONE_BEFORE + b"Ns.", "found the opcode DUP"),
        (b"\x80\x04}K\x01\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"Ns.", "used once"),
        (b"\x80\x04}K\x01\x85NN\x86b\x94h\x00.", "used once"),
        (b"\x80\x04}K\x01\x85(u\x94h\x00.", "used once"),
        (b"\x80\x04}K\x01\x85\x80\x04\x94h\x00.", "used once"),
        (b"\x80\x04\x8b" + struct.pack("<I", 2**23) + b"\x7f" * 2**23 + b".", "found the opcode LONG4"),
        (b"\x80\x03" + array("O8", ZEROS, (60_000_000,)) + b".", "expected a list, found bytes"),
        (b"\x80\x03" + name("numpy", "dtype") + b"](e" + b"\x85R.", "expected a str, found list"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_small_file_that_would_grow_takes_neither_time_nor_memory(tmp_path, program, message):
    path = write(tmp_path / "a.pkl.gz", program)
    began = time.process_time()
    with pytest.raises(FrameError, match=message):
        load_columns(path, ("x",))
    assert time.process_time() - began < 2


def test_a_column_of_more_numbers_than_any_sweep_has_is_not_converted(tmp_path):
    data = old_table(np.zeros(3), np.zeros(3, np.int64))
    values = piece(np.zeros((1, 3), np.int64))
    assert data.count(values) == 1
    data = data.replace(values, array("i1", ZEROS, (1, 60_000_000)))
    with pytest.raises(FrameError, match=r"row of at most 10000000 numbers, found shape \(60000000,\)"):
        load_columns(write(tmp_path / "a.pkl.gz", data), ("d",))
