"""IMA logs as the kernel writes them (binary_runtime_measurements, little endian), read and written apart from our own parser."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping

PCR = 10


def records(log: bytes) -> Iterator[bytes]:
    """Return the records of a log, in order (all templates but the original `ima`)."""
    at = 0
    while at < len(log):
        (name,) = struct.unpack_from("<I", log, at + 24)
        (data,) = struct.unpack_from("<I", log, at + 28 + name)
        end = at + 32 + name + data
        yield log[at:end]
        at = end


def measurements(log: bytes) -> list[tuple[int, bytes]]:
    """Return (pcr, what the SHA-256 bank is extended with) for each record, as Linux does since 5.8."""
    out = []
    for record in records(log):
        pcr, sha1, name = struct.unpack_from("<I20sI", record)
        violated = sha1 == bytes(20)
        out.append((pcr, b"\xff" * 32 if violated else hashlib.sha256(record[32 + name :]).digest()))
    return out


def pcr10(log: bytes, value: bytes = bytes(32)) -> bytes:
    """Return PCR 10 after these records, from `value` on."""
    for _, digest in measurements(log):
        value = hashlib.sha256(value + digest).digest()
    return value


def record(path: str, sha256: bytes, signature: bytes = b"") -> bytes:
    """Return one `ima-sig` record of a file."""
    parts = (b"sha256:\0" + sha256, path.encode() + b"\0", signature)
    data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    name = b"ima-sig"
    head = struct.pack("<I20sI", PCR, hashlib.sha1(data).digest(), len(name)) + name
    return head + struct.pack("<I", len(data)) + data


def boot_aggregate(pcrs: Mapping[int, bytes]) -> bytes:
    """Return the first record of a boot with these PCRs (SHA-256 over PCR 0 to 9)."""
    return record("boot_aggregate", hashlib.sha256(b"".join(pcrs[pcr] for pcr in range(10))).digest())


def of_boot(pcrs: Mapping[int, bytes], files: Mapping[str, bytes]) -> bytes:
    """Return the log of a boot that has measured these files (path to SHA-256)."""
    return boot_aggregate(pcrs) + b"".join(record(path, digest) for path, digest in files.items())


def rebased(log: bytes, pcrs: Mapping[int, bytes]) -> bytes:
    """Return a recorded log as it would be after a boot with these PCRs: another boot aggregate, the same files."""
    first, *rest = records(log)
    assert b"boot_aggregate\0" in first
    return boot_aggregate(pcrs) + b"".join(rest)
