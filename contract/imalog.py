"""The binary runtime measurement list of Linux (IMA): records and template fields, from bytes.

Source: Linux, security/integrity/ima/ima_fs.c (`ima_measurements_show`), ima_template.c and ima_template_lib.c. A record
is little-endian: PCR, SHA-1 template digest, length and name of the template, length and data; the old template `ima`
has no length of data, and is hashed with its name padded to 256 bytes. The form with SHA-1 digests is the only one read
(`binary_runtime_measurements`, in newer kernels also `binary_runtime_measurements_sha1`): nothing is guessed.

PCR and template name are covered by no hash. Only the templates that the kernel has itself are read, for their fields
cannot be taken for one another's; a format made to order (`ima_template_fmt=`) could be relabelled and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha1
from struct import Struct
from typing import Final

from msgspec import Struct as Record

from contract.errors import Rejected
from contract.messages import never_more

MAX_LOG_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024
"""A line that is longer fits no report."""
MAX_TEMPLATE_NAME_BYTES: Final = 255  # MAX_TEMPLATE_NAME_LEN
BOOT_AGGREGATE: Final = b"boot_aggregate"
VIOLATION: Final = bytes(20)

TEMPLATES: Final[dict[bytes, tuple[str, ...]]] = {
    b"ima": ("d", "n"),
    b"ima-ng": ("d-ng", "n-ng"),
    b"ima-ngv2": ("d-ngv2", "n-ng"),
    b"ima-sig": ("d-ng", "n-ng", "sig"),
    b"ima-sigv2": ("d-ngv2", "n-ng", "sig"),
    b"ima-buf": ("d-ng", "n-ng", "buf"),
    b"ima-modsig": ("d-ng", "n-ng", "sig", "d-modsig", "modsig"),
    b"evm-sig": (
        "d-ng",
        "n-ng",
        "evmsig",
        "xattrnames",
        "xattrlengths",
        "xattrvalues",
        "iuid",
        "igid",
        "imode",
    ),
}
_SIZES: Final = {
    b"md5": 16,
    b"sha1": 20,
    b"rmd160": 20,
    b"sha224": 28,
    b"sha256": 32,
    b"sha384": 48,
    b"sha512": 64,
    b"sm3": 32,
    b"sm3-256": 32,
    b"streebog256": 32,
    b"streebog512": 64,
    b"wp512": 64,
    b"sha3-256": 32,
    b"sha3-384": 48,
    b"sha3-512": 64,
}
_KINDS: Final = (b"ima", b"verity")
_NUMBERS: Final = {"iuid": 4, "igid": 4, "imode": 2}
_OLD_NAME_BYTES: Final = 256  # IMA_EVENT_NAME_LEN_MAX + 1
_HEAD = Struct("<I20sI")
_U32 = Struct("<I")
_USUAL: Final = b"\x28\0\0\0sha256:\0"  # `d-ng` with SHA-256; `d-ngv2` is longer
HEAD_BYTES: Final = _HEAD.size


class ImaRecord(Record, frozen=True, gc=False):
    """One record, not yet looked into."""

    offset: int
    end: int
    pcr: int
    template_sha1: bytes
    """All zeros: a violation, whose data no hash covers."""
    template: bytes
    data: bytes
    """What the template hash is made of."""


class Fields(Record, frozen=True, gc=False):
    """What a record says of one file or buffer."""

    algorithm: bytes
    digest: bytes
    name: bytes
    """Without its NUL, which stands nowhere in it."""
    kind: bytes = b"ima"
    """`verity`: the digest is of the file's fs-verity descriptor."""
    signature: bytes = b""
    buffer: bytes | None = None
    others: dict[str, bytes] | None = None
    """Fields that decide nothing here: `modsig`, `evmsig`, `xattrnames`, `iuid` and their like."""


def where(index: int, offset: int) -> str:
    """Return a place in the log for people: lines from 1, as in the kernel's text form."""
    return f"line {index + 1} (offset {offset})"


def read_record(untrusted: bytes, at: int, index: int, base: int = 0) -> ImaRecord:
    """Read the record at `at`. `index` and `base` (the offset of `untrusted` in the log) are for error messages.

    Raises Rejected `ima.truncated`, `ima.template-name`, `ima.line-too-large`.
    """
    size = len(untrusted)
    name_at = at + HEAD_BYTES
    if name_at > size:
        raise Rejected("ima.truncated", f"{where(index, base + at)}: {size - at} bytes left, no whole line")
    pcr, digest, name_size = _HEAD.unpack_from(untrusted, at)
    if not 0 < name_size <= MAX_TEMPLATE_NAME_BYTES:
        raise Rejected("ima.template-name", f"{where(index, base + at)}: name of {name_size} bytes")
    data_at = name_at + name_size
    name = untrusted[name_at:data_at]
    if name == b"ima":
        data, end = _old_data(untrusted, data_at, index, base + at)
        return ImaRecord(at, end, pcr, digest, name, data)
    if data_at + 4 > size:
        raise Rejected("ima.truncated", f"{where(index, base + at)}: cut within its head")
    (data_size,) = _U32.unpack_from(untrusted, data_at)
    data_at += 4
    end = data_at + data_size
    if data_size > MAX_LINE_BYTES:
        raise Rejected("ima.line-too-large", f"{where(index, base + at)}: {data_size} bytes of data")
    if end > size:
        detail = f"{where(index, base + at)}: {data_size} bytes of data wanted, {size - data_at} left"
        raise Rejected("ima.truncated", detail)
    return ImaRecord(at, end, pcr, digest, name, untrusted[data_at:end])


def _old_data(untrusted: bytes, at: int, index: int, offset: int) -> tuple[bytes, int]:
    """Read what the template `ima` has: 20 bytes, then a name with its length. Returned as it is hashed."""
    short = Rejected("ima.truncated", f"{where(index, offset)}: cut within the fields of `ima`")
    name_at = at + 24
    if name_at > len(untrusted):
        raise short
    (name_size,) = _U32.unpack_from(untrusted, at + 20)
    if name_size >= _OLD_NAME_BYTES:
        raise Rejected("ima.fields", f"{where(index, offset)}: name of {name_size} bytes in template `ima`")
    end = name_at + name_size
    if end > len(untrusted):
        raise short
    return untrusted[at : at + 20] + untrusted[name_at:end].ljust(_OLD_NAME_BYTES, b"\0"), end


def fields_of(template: bytes, data: bytes) -> Fields:
    """Read a record's data. Raises Rejected `ima.unknown-template`, `ima.fields`, `ima.digest`, `ima.name`."""
    layout = TEMPLATES.get(template)
    if layout is None:
        raise Rejected("ima.unknown-template", f"template '{shown(template)}'")
    if template == b"ima":
        name = data[20:].rstrip(b"\0")
        if not name or b"\0" in name:
            raise Rejected("ima.name", f"'{shown(name)}': empty, or with a NUL in it")
        return Fields(b"sha1", data[:20], name)
    if data.startswith(_USUAL) and len(data) >= 48:
        usual = _usual(layout, data)
        if usual is not None:
            return usual
    values = _values(layout, data)
    kind, algorithm, digest = _digest(layout[0], values[0])
    name = values[1]
    if name.find(b"\0") != len(name) - 1 or len(name) < 2:
        raise Rejected("ima.name", f"'{shown(name)}': empty, or not ended by its only NUL")
    name = name[:-1]
    if len(layout) == 2:
        return Fields(algorithm, digest, name, kind)
    if layout[2] == "buf":
        return Fields(algorithm, digest, name, kind, b"", values[2])
    if len(layout) == 3:
        return Fields(algorithm, digest, name, kind, values[2])
    others = dict(zip(layout[2:], values[2:], strict=True))
    for field, wanted in _NUMBERS.items():
        if field in others and len(others[field]) != wanted:
            raise Rejected("ima.fields", f"`{field}` of {len(others[field])} bytes, wanted {wanted}")
    if len(others.get("xattrlengths", b"")) % 4:
        raise Rejected("ima.fields", f"`xattrlengths` of {len(others['xattrlengths'])} bytes")
    if others.get("d-modsig"):
        _digest("d-ng", others["d-modsig"])
    return Fields(algorithm, digest, name, kind, others.pop("sig", b""), None, others)


def _usual(layout: tuple[str, ...], data: bytes) -> Fields | None:
    """Read `ima-ng`, `ima-sig` and `ima-buf` with SHA-256, or return None: the same as below, in a third of the time."""
    if len(layout) > 3 or layout[0] != "d-ng":
        return None
    name_end = 48 + _U32.unpack_from(data, 44)[0]
    name = data[48:name_end]
    if name.find(b"\0") != len(name) - 1 or len(name) < 2:
        return None
    third = data[name_end + 4 :]
    if len(layout) == 2:
        return Fields(b"sha256", data[12:44], name[:-1]) if name_end == len(data) else None
    if name_end + 4 > len(data) or _U32.unpack_from(data, name_end)[0] != len(third):
        return None
    if layout[2] == "buf":
        return Fields(b"sha256", data[12:44], name[:-1], b"ima", b"", third)
    return Fields(b"sha256", data[12:44], name[:-1], b"ima", third)


def file_fields(name: bytes, digest: bytes) -> bytes:
    """Return the fields `d-ng` and `n-ng` of a file with this SHA-256, as they stand in a line."""
    return b"%b%b%b%b\0" % (_USUAL, digest, _U32.pack(len(name) + 1), name)


def _values(layout: tuple[str, ...], data: bytes) -> list[bytes]:
    """Return as many length-prefixed values as the layout has; they fill the data exactly."""
    values = []
    at, size = 0, len(data)
    for field in layout:
        if at + 4 > size:
            raise Rejected("ima.fields", f"data ends before field `{field}`")
        (length,) = _U32.unpack_from(data, at)
        end = at + 4 + length
        if end > size:
            raise Rejected("ima.fields", f"field `{field}`: {length} bytes wanted, {size - at - 4} left")
        values.append(data[at + 4 : end])
        at = end
    if at != size:
        raise Rejected("ima.fields", f"{size - at} bytes after the last field")
    return values


def _digest(field: str, value: bytes) -> tuple[bytes, bytes, bytes]:
    """Return kind, algorithm and digest of `d-ng` (`sha256:` NUL digest) or `d-ngv2` (`verity:sha256:` NUL digest)."""
    head, nul, digest = value.partition(b":\0")
    kind = b"ima"
    if field == "d-ngv2":
        kind, _, head = head.partition(b":")
    if not nul or kind not in _KINDS or _SIZES.get(head) != len(digest):
        raise Rejected("ima.digest", f"'{shown(value[:24])}', {len(value)} bytes")
    return kind, head, digest


def read_lines(untrusted: bytes) -> Iterator[tuple[ImaRecord, Fields | Rejected]]:
    """Yield every line of a whole log, with its fields or what is wrong with them; for showing and for learning.

    Proves nothing. Raises Rejected as `read_record` does, and `ima.too-large`.
    """
    if len(untrusted) > MAX_LOG_BYTES:
        raise Rejected("ima.too-large", f"{len(untrusted)} bytes, at most {MAX_LOG_BYTES}")
    at = index = 0
    while at < len(untrusted):
        record = read_record(untrusted, at, index)
        try:
            yield record, fields_of(record.template, record.data)
        except Rejected as fault:
            yield record, fault
        at, index = record.end, index + 1


def hash_fits(record: ImaRecord) -> bool:
    """Say whether the SHA-1 template digest is that of the data. A violation's never is."""
    return sha1(record.data, usedforsecurity=False).digest() == record.template_sha1


def shown(untrusted_name: bytes) -> str:
    """Return a name on one printable line, at most 160 characters: what is not UTF-8 or not printable is escaped."""
    text = untrusted_name[:512].decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return never_more(text, 160)
