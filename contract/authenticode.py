"""The Authenticode SHA-256 of a PE image: what firmware and shim extend into PCR 4 when they load it.

Source: "Windows Authenticode Portable Executable Signature Format", version 1.0, "Calculating the PE Image Hash"; PE/COFF
specification, revision 11. Covers everything but the checksum, the entry that points at the signatures, and the
signatures. Refuses what no loader would take. Linear in the size; nothing raises but Rejected.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct
from typing import Final

from contract.errors import Rejected

MAX_IMAGE_BYTES: Final = 512 * 1024 * 1024
MAX_SECTIONS: Final = 96  # as the PE specification has it for the loader of Windows
_PE_OFFSET: Final = 0x3C
_COFF = Struct(
    "<4sHHIIIHH"
)  # signature, machine, sections, time, symbols, symbol count, optional size, characteristics
_MAGICS: Final = {
    0x10B: 128,
    0x20B: 144,
}  # PE32, PE32+: offset of the certificate table's entry in the optional header
_CHECKSUM: Final = 64
_ENTRY = Struct("<II")
_SECTION = Struct("<8sIIIIIIHHI")
_HEADERS_SIZE: Final = 60


def is_image(untrusted: bytes) -> bool:
    """Return whether the bytes begin as a PE image does; a kernel without an EFI stub, or an initrd, does not."""
    return untrusted[:2] == b"MZ" and len(untrusted) > _PE_OFFSET + 4


def authenticode_sha256(untrusted: bytes) -> bytes:
    """Return the digest. Raises Rejected `image.too-large`, `image.malformed` (with the offset)."""
    if len(untrusted) > MAX_IMAGE_BYTES:
        raise Rejected("image.too-large", f"{len(untrusted)} bytes, at most {MAX_IMAGE_BYTES}")
    if not is_image(untrusted):
        raise _malformed(0, "no MZ header")
    coff_at = int.from_bytes(untrusted[_PE_OFFSET : _PE_OFFSET + 4], "little")
    if coff_at + _COFF.size > len(untrusted):
        raise _malformed(_PE_OFFSET, "the PE header lies beyond the end")
    signature, _, sections, _, _, _, optional_size, _ = _COFF.unpack_from(untrusted, coff_at)
    optional_at = coff_at + _COFF.size
    table_at = optional_at + optional_size
    if signature != b"PE\0\0" or not 0 < sections <= MAX_SECTIONS:
        raise _malformed(coff_at, "no PE signature, or no sections")
    if table_at + sections * _SECTION.size > len(untrusted):
        raise _malformed(table_at, "the section table lies beyond the end")
    magic = int.from_bytes(untrusted[optional_at : optional_at + 2], "little")
    entry_at = optional_at + _MAGICS.get(magic, optional_size)
    if entry_at + _ENTRY.size > table_at:
        raise _malformed(optional_at, "an optional header of another kind, or without a certificate table")
    headers = int.from_bytes(
        untrusted[optional_at + _HEADERS_SIZE : optional_at + _HEADERS_SIZE + 4], "little"
    )
    if not table_at + sections * _SECTION.size <= headers <= len(untrusted):
        raise _malformed(optional_at + _HEADERS_SIZE, f"headers of {headers} bytes")
    certificates_at, certificates_size = _ENTRY.unpack_from(untrusted, entry_at)
    if certificates_size and certificates_at + certificates_size != len(untrusted):
        raise _malformed(entry_at, "the signatures are not the end of the file")
    end = len(untrusted) - certificates_size
    view = memoryview(untrusted)
    digest = sha256(view[: optional_at + _CHECKSUM])
    digest.update(view[optional_at + _CHECKSUM + 4 : entry_at])
    digest.update(view[entry_at + _ENTRY.size : headers])
    hashed = headers
    for start, size in _raw_data(untrusted, table_at, sections):
        if start != hashed or start + size > end:
            # Between sections verifiers differ in what they hash; no image seen has such a gap.
            raise _malformed(start, "sections overlap, leave a gap, or lie beyond the end")
        digest.update(view[start : start + size])
        hashed = start + size
    digest.update(view[hashed:end])
    return digest.digest()


def _raw_data(untrusted: bytes, table_at: int, sections: int) -> list[tuple[int, int]]:
    """Return offset and size of the data of each section, in the order of the file."""
    found = []
    for number in range(sections):
        _, _, _, size, start, *_ = _SECTION.unpack_from(untrusted, table_at + number * _SECTION.size)
        if size:
            found.append((start, size))
    return sorted(found)


def _malformed(offset: int, what: str) -> Rejected:
    return Rejected("image.malformed", f"offset {offset}: {what}")
