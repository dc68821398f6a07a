"""What both kinds of files have: channels, messages as bytes, and unpacking that a bomb cannot fill memory with."""

from dataclasses import dataclass

from data_cache.errors import SettingError

MESSAGE_LIMIT = 256 * 2**20
"""Bytes of the largest message, and of the largest chunk of an MCAP file, unpacked."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Damaged(Exception):
    """A part of a file cannot be read; its reader leaves it out and keeps this text as a note."""


@dataclass(frozen=True)
class Channel:
    """A topic as a file declares it.

    Attributes:
        topic: its name.
        type: name of the message type, as `sensor_msgs/msg/Image` or `foxglove.CompressedImage`.
        encoding: `cdr` (ROS 2), `protobuf`, or one that is not read.
        schema: the definition of the type; empty if the file has none.
    """

    topic: str
    type: str
    encoding: str
    schema: bytes = b""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is in its file; what start and offset mean only the reader of the file knows."""

    start: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A message of a file: its topic, when it was recorded, its bytes and its place."""

    channel: Channel
    log_ns: int
    data: memoryview
    place: Place


def unpack(data: memoryview, compression: str, size: int | None = None) -> memoryview:
    """Unpack zstd or lz4 data.

    Args:
        data: the packed bytes.
        compression: `zstd` or `lz4`.
        size: bytes to expect; None if only the limit of a message is known.

    Raises:
        Damaged: if it cannot be unpacked, or holds more than declared.
        SettingError: if the extra `bags` is missing.
    """
    limit = MESSAGE_LIMIT if size is None else size
    try:
        import lz4.frame
        import zstandard
    except ImportError as error:
        raise missing_extra(error) from error
    try:
        if compression == "zstd":
            declared = zstandard.frame_content_size(data)
            if declared > limit:  # the library would reserve that much, whatever it is told
                raise Damaged(f"expected at most {limit:,} bytes, found {declared:,} declared")
            # max_output_size=0 would mean no limit.
            return memoryview(zstandard.ZstdDecompressor().decompress(data, max_output_size=max(limit, 1)))
        if compression == "lz4":
            unpacker = lz4.frame.LZ4FrameDecompressor()
            unpacked = unpacker.decompress(data, max_length=limit + 1)
            if len(unpacked) > limit:
                raise Damaged(f"expected at most {limit:,} bytes, found more")
            return memoryview(unpacked)
    except (zstandard.ZstdError, RuntimeError, EOFError, ValueError) as error:
        raise Damaged(f"expected {compression} data, found {error}") from error
    raise Damaged(f"expected zstd or lz4, found the compression {compression!r}")


def missing_extra(error: ImportError) -> SettingError:
    """The error of a missing library of the extra `bags`."""
    return SettingError(f"recordings need pip install 'surround-distill[bags]' ({error})")
