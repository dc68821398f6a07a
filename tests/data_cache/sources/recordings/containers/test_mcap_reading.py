import struct

import numpy as np
import pytest
from support.bags import write_bag
from support.small_recording import points, recording

from data_cache.errors import SourceError
from data_cache.sources.recordings.containers import packed
from data_cache.sources.recordings.containers.mcap_reading import MAGIC, McapFile
from data_cache.sources.recordings.source import RecordingSource


@pytest.fixture(scope="module", params=["mcap-zstd", "mcap-lz4", "mcap-plain"])
def small(request, tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("mcap") / "van", recording(["front"]), request.param, 4000)


def test_every_message_is_fetched_again_by_its_place(small):
    file = McapFile(small)
    passed = []
    found = [(one.channel.topic, bytes(one.data), one.place) for one in file.messages(passed.append)]
    assert (file.notes, len(found)) == ([], len(recording(["front"])))
    assert sum(passed) == small.stat().st_size - len(MAGIC)
    for i in np.random.default_rng(0).permutation(len(found)):
        assert file.fetch(found[i][2]) == found[i][1]


def test_a_file_that_was_cut_off_is_used_up_to_there_and_that_is_said(tmp_path, small):
    data = small.read_bytes()
    whole = len(recording(["front"]))
    for share in (0.25, 0.4, 0.6):
        cut = tmp_path / "cut.mcap"
        cut.write_bytes(data[: int(share * len(data))])
        file = McapFile(cut)
        times_ns = [one.log_ns for one in file.messages()]
        count, seconds = len(times_ns), (max(times_ns) - min(times_ns)) / 1e9
        assert 0 < count <= whole
        assert len(file.notes) == 1
        assert (
            f"of {int(share * len(data)):,} bytes; what comes before is used: {count} messages of {seconds:.1f} s"
            in file.notes[0]
        )


def test_frames_of_a_cut_off_recording_are_those_before_the_cut(tmp_path, small):
    data = small.read_bytes()
    (tmp_path / "van.mcap").write_bytes(data[: len(data) // 2])
    source = RecordingSource([tmp_path / "van.mcap"])
    assert 0 < len(source.drives["van"]) < 20
    assert any("cut off or damaged after" in note for note in source.notes)
    (tmp_path / "empty.mcap").write_bytes(data[:60])
    with pytest.raises(SourceError, match=r"empty.mcap: expected messages, found none; .*cut off or damaged after"):
        RecordingSource([tmp_path / "empty.mcap"])


def _chunks(data: bytes) -> list[tuple[int, int]]:
    """Begin and length of the body of every chunk."""
    found, position = [], 8
    while data[position] != 2:
        (length,) = struct.unpack_from("<Q", data, position + 1)
        if data[position] == 6:
            found.append((position + 9, length))
        position += 9 + length
    return found


def test_a_damaged_chunk_is_left_out_and_the_others_are_read(tmp_path):
    path = write_bag(tmp_path / "van", recording(["front"]), "mcap-zstd", 4000)
    data = bytearray(path.read_bytes())
    start, length = _chunks(data)[3]
    data[start + length - 20] ^= 0xFF
    path.write_bytes(data)
    source = RecordingSource([path])
    assert any(f"the part at byte {start - 9:,} is damaged and left out" in note for note in source.notes)
    assert 10 < len(source.drives["van"]) < 20
    last = source.drives["van"][-1]
    np.testing.assert_array_equal(source.frame(last).load_sweep().points_m, points(19))


def test_a_size_beyond_the_limit_is_refused_before_anything_is_unpacked(tmp_path):
    path = write_bag(tmp_path / "van", recording(["front"]), "mcap-zstd", 4000)
    data = bytearray(path.read_bytes())
    start, _ = _chunks(data)[0]
    struct.pack_into("<Q", data, start + 16, 2**40)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"found 1,099,511,627,776 declared at byte .* made to fill memory"):
        RecordingSource([path])


@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_a_bomb_that_declares_little_is_not_unpacked(kind):
    import lz4.frame
    import zstandard

    zeros = bytes(4 * 2**20)
    bomb = {"zstd": zstandard.ZstdCompressor().compress, "lz4": lz4.frame.compress}[kind](zeros)
    with pytest.raises(packed.Damaged, match="expected at most 1,000 bytes, found"):
        packed.unpack(memoryview(bomb), kind, 1000)
    assert packed.unpack(memoryview(bomb), kind, len(zeros)) == zeros


def test_zstd_data_that_does_not_say_its_size_is_bounded():
    import zstandard

    compressor = zstandard.ZstdCompressor().compressobj()
    bomb = compressor.compress(bytes(2**20)) + compressor.flush()
    with pytest.raises(packed.Damaged, match="expected zstd data"):
        packed.unpack(memoryview(bomb), "zstd", 1000)
