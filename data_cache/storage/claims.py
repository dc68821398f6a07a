"""Claims on shards: one lock per shard, which ends with the process that holds it."""

import errno
import fcntl
import os
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FLOCK = "hhqqi0q"  # struct flock of Linux: type, whence, start, length, pid
_INIT = 1 << 62  # no shard has this number
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Claims:
    """Byte `i` of an empty file is locked by the process that writes shard `i`.

    These are Linux's open file description locks: the kernel drops them when the process ends, however it ends, and NFS
    passes them on to other machines. One file serves any number of shards.
    """

    def __init__(self, path: Path):
        """Open the lock file at `path`, creating it if needed. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        weakref.finalize(self, os.close, self._descriptor)  # closing releases all locks
        self.supported = True

    def take(self, shard: int) -> bool:
        """Lock a shard; False if another process holds it. On a file system without locks, always True."""
        try:
            self._set(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, shard)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in _UNSUPPORTED:
                raise
            self.supported = False
        return True

    def release(self, shard: int) -> None:
        """Release the lock on a shard."""
        if self.supported:
            self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, shard)

    @contextmanager
    def creating(self) -> Iterator[None]:
        """Lock out other processes that create or repair the metadata; waits for its turn."""
        try:
            self._set(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, _INIT)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self.supported = False
        try:
            yield
        finally:
            self.release(_INIT)

    def taken_elsewhere(self, shard_count: int) -> list[int]:
        """Shards that other processes hold at this moment."""
        taken: list[int] = []
        # The kernel names any conflicting lock, not the first one, so the ranges before and after it are queried again.
        spans = [(0, shard_count)]
        while self.supported and spans:
            start, stop = spans.pop()
            if start >= stop:
                continue
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, stop - start, 0)
            try:
                kind, _, first, length, _ = struct.unpack(
                    _FLOCK, fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked)
                )
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                break
            if kind != fcntl.F_UNLCK:
                held = range(max(first, start), min(first + length, stop) if length else stop)
                taken += held
                spans += [(start, held.start), (held.stop, stop)]
        return sorted(taken)

    def _set(self, command: int, kind: int, shard: int) -> None:
        fcntl.fcntl(self._descriptor, command, struct.pack(_FLOCK, kind, os.SEEK_SET, shard, 1, 0))
