"""Reading big files so that the program which uses them does not notice. Linux only, through the C library.

- The page cache stays as it was: a page that was not resident before (mincore) is given back (POSIX_FADV_DONTNEED), one
  that was is left alone, since the model server may live on it. Readahead is off (POSIX_FADV_RANDOM), so that nothing
  besides the slice is brought in.
- The thread asks for idle I/O priority and the lowest processor priority. A hint: only some I/O schedulers heed it
  (bfq, mq-deadline), so the pace of the caller is what bounds the load.

The kernel tells residency only to the file's owner or who may write it, and "all resident" to others (since 5.2): then
nothing is given back. It relies on the kernel for what a file holds: a page cache at odds with the disk is not seen.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from itertools import groupby

SLICE_BYTES = 1024 * 1024
PAGE_BYTES = mmap.PAGESIZE

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_IDLE = 1, 3
_FS_IOC_MEASURE_VERITY = 0xC0046686
"""_IOWR('f', 134, struct fsverity_digest): algorithm, size, digest (linux/fsverity.h)."""
_VERITY_ALGORITHMS = {1: "sha256", 2: "sha512"}
_VERITY_HEAD = struct.Struct("=HH")
_MAX_VERITY_DIGEST = 64
_NO_VERITY = {errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP}
"""Not on this file; not in this file system; not in this kernel or not switched on."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_MAP_FAILED = ctypes.c_void_p(-1).value


def idle_thread() -> None:
    """Give the calling thread the lowest priority for disk and processor, as far as the kernel lets it."""
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        _libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE << 13)
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    except OSError:
        pass


def no_readahead(descriptor: int) -> None:
    """Have reads through this descriptor bring in what they ask for and nothing else."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def resident(descriptor: int, offset: int, length: int) -> bytes | None:
    """Return one byte for each page, 1 if it is in memory; None if that cannot be told. `offset` begins a page.

    Maps without touching: no page is brought in, and a file that shrinks meanwhile does no harm.
    """
    pages = ctypes.create_string_buffer(-(-length // PAGE_BYTES))
    where = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    if where == _MAP_FAILED:
        return None
    try:
        done = _libc.mincore(where, length, pages)
    finally:
        _libc.munmap(where, length)
    return None if done else bytes(page & 1 for page in pages.raw)


def read_slice(descriptor: int, offset: int, into: bytearray) -> int:
    """Read from a page's begin into `into`; return how many bytes came. What was not in memory is not there after it."""
    before = resident(descriptor, offset, len(into))
    count = os.preadv(descriptor, [into], offset)
    if before is not None:
        place = 0
        for there, run in groupby(before):
            pages = len(list(run))
            if not there:
                start, length = offset + place * PAGE_BYTES, pages * PAGE_BYTES
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
            place += pages
    return count


def verity_of(descriptor: int) -> str | None:
    """Return the fs-verity digest as `sha256:<hex>`, None if the file has none. Raises OSError."""
    room = bytearray(_VERITY_HEAD.pack(0, _MAX_VERITY_DIGEST) + bytes(_MAX_VERITY_DIGEST))
    try:
        fcntl.ioctl(descriptor, _FS_IOC_MEASURE_VERITY, room)
    except OSError as error:
        if error.errno in _NO_VERITY:
            return None
        raise
    algorithm, size = _VERITY_HEAD.unpack_from(room)
    name = _VERITY_ALGORITHMS.get(algorithm, f"algorithm-{algorithm}")
    return f"{name}:{room[_VERITY_HEAD.size : _VERITY_HEAD.size + size].hex()}"
