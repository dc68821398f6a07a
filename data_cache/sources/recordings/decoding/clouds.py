"""Points of a recorded cloud, whose layout is checked before it is used."""

import numpy as np
from jaxtyping import Float

from data_cache.errors import FrameError
from data_cache.sources.parsing.points import BYTE_LIMIT, POINT_LIMIT
from data_cache.sources.recordings.decoding.messages import CloudMessage

TIME_FIELDS = ("t", "time", "timestamp", "time_stamp", "offset_time", "time_offset", "ts")
"""Names that drivers give to the time of each point."""


def require_layout(cloud: CloudMessage, where: str) -> None:
    """Check what a cloud declares: its sizes and its fields x, y and z; its data are not looked at.

    Raises:
        FrameError: if a field is missing, of another type, or lies outside of its point, or if rows are too short.
    """
    count = cloud.width * cloud.height
    if not 0 <= count <= POINT_LIMIT or cloud.row_bytes * cloud.height > BYTE_LIMIT:
        raise FrameError(
            f"{where}: expected at most {POINT_LIMIT} points in {BYTE_LIMIT} bytes, found {cloud.width} x"
            f" {cloud.height} points in rows of {cloud.row_bytes} bytes declared"
        )
    fields = _fields(cloud)
    if len(fields) < 3:
        found = ", ".join(name for name, _, _ in cloud.fields)
        raise FrameError(f"{where}: expected the fields x, y and z, found {ascii(found)[:80]}")
    for name, (offset, code) in fields.items():
        if code not in ("f4", "f8"):
            raise FrameError(f"{where}: field {name}: expected float32 or float64, found {code}")
        size = int(code[1])
        if not 0 <= offset <= cloud.point_bytes - size:
            raise FrameError(
                f"{where}: field {name}: expected {size} bytes within a point of {cloud.point_bytes}, found the offset"
                f" {offset}"
            )
    if cloud.row_bytes < cloud.width * cloud.point_bytes:
        raise FrameError(
            f"{where}: expected rows of at least {cloud.width} x {cloud.point_bytes} bytes, found {cloud.row_bytes}"
        )


def points(cloud: CloudMessage, where: str) -> Float[np.ndarray, "N 3"]:
    """Columns x, y, z in metres, in the frame of the cloud; float32 or float64 as recorded.

    Points at exactly (0, 0, 0) are left out: drivers write them where no light came back. Points may be non-finite.

    Raises:
        FrameError: as `require_layout` does, or if the data do not hold as many points as are declared; the message
            names `where`.
    """
    require_layout(cloud, where)
    fields, count = _fields(cloud), cloud.width * cloud.height
    # The last row needs no padding.
    needed = (cloud.height - 1) * cloud.row_bytes + cloud.width * cloud.point_bytes if count else 0
    if len(cloud.data) < needed:
        raise FrameError(f"{where}: expected {needed} bytes of points, found {len(cloud.data)}: truncated")
    order = ">" if cloud.big_endian else "<"
    columns = [
        np.ndarray(
            (cloud.height, cloud.width), order + code, cloud.data, offset, (cloud.row_bytes, cloud.point_bytes)
        ).ravel()
        if count
        else np.empty(0, np.float32)
        for offset, code in (fields[axis] for axis in "xyz")
    ]
    xyz = np.stack([column.astype(column.dtype.newbyteorder("=")) for column in columns], axis=1)
    returned: np.ndarray = xyz[(xyz != 0).any(axis=1)]
    if cloud.frame_from_points is not None and not np.array_equal(cloud.frame_from_points, np.eye(4)):
        returned = returned @ cloud.frame_from_points[:3, :3].T + cloud.frame_from_points[:3, 3]
    return returned


def _fields(cloud: CloudMessage) -> dict[str, tuple[int, str]]:
    """Offset and type of those of x, y and z that a cloud declares."""
    return {name: (offset, code) for name, offset, code in cloud.fields if name in ("x", "y", "z")}
