"""The UEFI and TCG structures inside a firmware log's events: exact lengths, or Rejected with the offset.

Sources: UEFI specification 2.10 (device paths, clause 10.3; load options, 3.1.3; signature lists, 32.4.1) and TCG PC
Client Platform Firmware Profile 1.06 (PFP), clause 10.4. Reads bytes that anybody may have written: every length is
held against what is left before it is used, in time linear to the input. It says nothing about whether a digest covers
the bytes; that is `contract.eventdata`'s to say.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from msgspec import Struct as Record

from contract.errors import Rejected

GLOBAL_VARIABLE: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMAGE_SECURITY: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SHIM_LOCK: Final = "605dab50-e046-4300-abb6-3dd810dd8b23"
SIGNATURE_KINDS: Final = {
    "a5c059a1-94e4-4aa7-87b5-ab155c2bf072": "x509",
    "c1c41626-504c-4092-aca9-41f936934328": "sha256",
    "826ca512-cf10-4ac9-b187-be01496631bd": "sha1",
    "ff3e5307-9fd0-48c9-85f1-8ad56c701e01": "sha384",
    "093e0fae-a6c4-4f50-9f1b-d41e2b89c19a": "sha512",
    "3c5766e8-269c-4e34-aa14-ed776e85b3b6": "rsa2048",
    "3bd2a492-96c0-4079-b420-fcf98ef103ed": "x509-sha256",
    "7076876e-80c2-4ee6-aad2-28b349a6865b": "x509-sha384",
    "446dbf63-2502-4cda-bcfa-2465d2b0fe9d": "x509-sha512",
    "4aafd29d-68df-49ee-8aa9-347d375665a7": "pkcs7",
}
MAX_TEXT_CHARS: Final = 4096
"""A kernel takes no longer command line; what is longer is cut, visibly."""

MAX_LIST_ENTRIES: Final = 4096
"""Nine times what the longest dbx of 2025 has."""
MAX_SBAT_LINES: Final = 256

_GUID = Struct("<IHH8s")
_VARIABLE = Struct("<16sQQ")  # UEFI_VARIABLE_DATA: GUID, name length in characters, data length in bytes
_LIST = Struct("<16sIII")  # EFI_SIGNATURE_LIST: type, list size, header size, signature size
_OWNER_BYTES: Final = 16
_SHA256_ENTRY_BYTES: Final = _OWNER_BYTES + 32
_OPTION = Struct("<IH")  # EFI_LOAD_OPTION: attributes, file path list length
_OPTION_ACTIVE: Final = 1
_IMAGE = Struct("<QQQQ")  # UEFI_IMAGE_LOAD_EVENT: location, length, link time address, device path length
_NODE = Struct("<BBH")  # EFI_DEVICE_PATH_PROTOCOL
_GPT = Struct("<8sIIIIQQQQ16sQIII")  # EFI_PARTITION_TABLE_HEADER
_GPT_SIGNATURE: Final = b"EFI PART"
_PARTITION = Struct("<16s16sQQQ72s")
_BLOB = Struct("<QQ")
_U64 = Struct("<Q")
_TABLE = Struct("<16sQ")
_TAGGED = Struct("<II")


class Variable(Record, frozen=True, gc=False):
    """UEFI_VARIABLE_DATA (PFP 10.4.2)."""

    guid: str
    name: str
    """Printable."""
    value: bytes


class Entry(Record, frozen=True, gc=False):
    """One EFI_SIGNATURE_DATA of a signature list."""

    kind: str
    """A value of SIGNATURE_KINDS, or the type's GUID."""
    owner: str
    data: bytes


class LoadOption(Record, frozen=True, gc=False):
    """EFI_LOAD_OPTION."""

    active: bool
    description: str
    path: str
    optional_data: bytes


class Image(Record, frozen=True, gc=False):
    """UEFI_IMAGE_LOAD_EVENT (PFP 10.4.3)."""

    size_bytes: int
    path: str
    """Empty where the loader gave none (shim, GRUB)."""


class Partition(Record, frozen=True, gc=False):
    """One used entry of a partition table."""

    type: str
    guid: str
    first_lba: int
    last_lba: int
    name: str


class Gpt(Record, frozen=True):
    """UEFI_GPT_DATA (PFP 10.4.4)."""

    disk: str
    partitions: tuple[Partition, ...]


class Blob(Record, frozen=True, gc=False):
    """UEFI_PLATFORM_FIRMWARE_BLOB and its successor with a description."""

    description: str
    base: int
    size_bytes: int


class Tagged(Record, frozen=True, gc=False):
    """TCG_PCClientTaggedEvent (PFP 10.4.2.1)."""

    tag: int
    data: bytes


def printable(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """Return text as one line that is safe to print: escapes all that moves the cursor, ends the line or turns the
    direction of writing (l16); at most `limit` characters, cut visibly."""
    kept = text[: limit + 1]
    if not kept.isprintable():
        kept = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def utf16(raw: bytes) -> str:
    """Return UTF-16LE text without closing zeros, not yet printable; what is no text is escaped."""
    return raw.decode("utf-16-le", "backslashreplace").rstrip("\0")


@lru_cache(maxsize=256)
def guid_text(raw: bytes) -> str:
    """Return the text form of 16 bytes (UEFI 2.10, appendix A)."""
    first, second, third, rest = _GUID.unpack(raw)
    return f"{first:08x}-{second:04x}-{third:04x}-{rest[:2].hex()}-{rest[2:].hex()}"


def parse_variable(untrusted: bytes) -> Variable:
    """Parse UEFI_VARIABLE_DATA; one byte too many is the stray byte of older shim. Raises Rejected `uefi.variable`."""
    if len(untrusted) < _VARIABLE.size:
        raise Rejected("uefi.variable", f"offset 0: {len(untrusted)} bytes")
    guid, name_chars, value_size = _VARIABLE.unpack_from(untrusted)
    value_at = _VARIABLE.size + 2 * name_chars
    if value_at + value_size not in (len(untrusted), len(untrusted) - 1):
        detail = f"offset 16: {name_chars} characters and {value_size} bytes in {len(untrusted)}"
        raise Rejected("uefi.variable", detail)
    name = utf16(untrusted[_VARIABLE.size : value_at])
    return Variable(guid_text(guid), printable(name, 256), untrusted[value_at : value_at + value_size])


def parse_signature_lists(untrusted: bytes) -> list[Entry]:
    """Parse EFI_SIGNATURE_LISTs, end to end (l12: every size is checked before it is subtracted from another).

    Raises Rejected `uefi.signature-list`.
    """
    entries: list[Entry] = []
    at, length = 0, len(untrusted)
    while at < length:
        if length - at < _LIST.size:
            raise Rejected("uefi.signature-list", f"offset {at}: {length - at} bytes left")
        kind_guid, list_size, header_size, entry_size = _LIST.unpack_from(untrusted, at)
        body_size = list_size - _LIST.size - header_size
        if list_size > length - at or body_size < 0 or entry_size <= _OWNER_BYTES or body_size % entry_size:
            detail = f"offset {at}: list of {list_size} bytes, header {header_size}, entries of {entry_size}"
            raise Rejected("uefi.signature-list", detail)
        if len(entries) + body_size // entry_size > MAX_LIST_ENTRIES:
            raise Rejected("uefi.signature-list", f"offset {at}: more than {MAX_LIST_ENTRIES} entries")
        name = guid_text(kind_guid)
        kind = SIGNATURE_KINDS.get(name, name)
        if kind == "sha256" and entry_size != _SHA256_ENTRY_BYTES:
            raise Rejected("uefi.signature-list", f"offset {at}: SHA-256 entries of {entry_size} bytes")
        end = at + list_size
        for entry_at in range(end - body_size, end, entry_size):
            owner = guid_text(untrusted[entry_at : entry_at + _OWNER_BYTES])
            entries.append(Entry(kind, owner, untrusted[entry_at + _OWNER_BYTES : entry_at + entry_size]))
        at = end
    return entries


def parse_authority(untrusted: bytes) -> Entry:
    """Parse what an authority event holds: EFI_SIGNATURE_DATA, with owner (firmware) or without (older shim).

    Raises Rejected `uefi.authority` for what is neither a certificate nor a SHA-256 digest.
    """
    if is_der(untrusted):
        return Entry("x509", "", untrusted)
    if len(untrusted) > _OWNER_BYTES:
        owner, data = guid_text(untrusted[:_OWNER_BYTES]), untrusted[_OWNER_BYTES:]
        if is_der(data):
            return Entry("x509", owner, data)
        if len(untrusted) == _SHA256_ENTRY_BYTES:
            return Entry("sha256", owner, data)
    raise Rejected("uefi.authority", f"offset 0: {len(untrusted)} bytes, neither certificate nor digest")


def is_der(data: bytes) -> bool:
    """Return whether the bytes are exactly one DER SEQUENCE of 256 to 65,535 bytes, as certificates are."""
    return data[:2] == b"\x30\x82" and 4 + int.from_bytes(data[2:4], "big") == len(data)


def parse_load_option(untrusted: bytes) -> LoadOption:
    """Parse EFI_LOAD_OPTION, the value of a Boot#### variable. Raises Rejected `uefi.load-option`, `uefi.device-path`."""
    if len(untrusted) < _OPTION.size:
        raise Rejected("uefi.load-option", f"offset 0: {len(untrusted)} bytes")
    attributes, path_size = _OPTION.unpack_from(untrusted)
    end = _end_of_utf16(untrusted, _OPTION.size)
    if end + path_size > len(untrusted):
        raise Rejected("uefi.load-option", f"offset {end}: a device path of {path_size} bytes")
    return LoadOption(
        bool(attributes & _OPTION_ACTIVE),
        printable(utf16(untrusted[_OPTION.size : end]), 256),
        device_path(untrusted[end : end + path_size]),
        untrusted[end + path_size :],
    )


def _end_of_utf16(untrusted: bytes, at: int) -> int:
    """Return the offset behind the closing zero."""
    found = untrusted.find(b"\0\0", at)
    while found >= 0 and (found - at) % 2:
        found = untrusted.find(b"\0\0", found + 1)
    if found < 0:
        raise Rejected("uefi.load-option", f"offset {at}: text without an end")
    return found + 2


def parse_image(untrusted: bytes) -> Image:
    """Parse UEFI_IMAGE_LOAD_EVENT. Raises Rejected `uefi.image`, `uefi.device-path`."""
    if len(untrusted) < _IMAGE.size:
        raise Rejected("uefi.image", f"offset 0: {len(untrusted)} bytes")
    _, size, _, path_size = _IMAGE.unpack_from(untrusted)
    # One byte more is the stray byte of older shim.
    if len(untrusted) - _IMAGE.size - path_size not in (0, 1):
        raise Rejected("uefi.image", f"offset 24: a device path of {path_size} bytes in {len(untrusted)}")
    return Image(size, device_path(untrusted[_IMAGE.size : _IMAGE.size + path_size]))


def device_path(untrusted: bytes) -> str:
    """Return the text of a device path, near the form of UEFI 2.10, 10.6. Raises Rejected `uefi.device-path`."""
    parts: list[str] = []
    at, length = 0, len(untrusted)
    while at < length:
        if length - at < _NODE.size:
            raise Rejected("uefi.device-path", f"offset {at}: {length - at} bytes left")
        kind, sub_kind, size = _NODE.unpack_from(untrusted, at)
        if size < _NODE.size or size > length - at:
            raise Rejected("uefi.device-path", f"offset {at}: a node of {size} bytes")
        if kind != 0x7F:
            parts.append(_node_text(kind, sub_kind, untrusted[at + _NODE.size : at + size]))
        at += size
    return printable("/".join(parts), 1024)


def _node_text(kind: int, sub_kind: int, body: bytes) -> str:
    match (kind, sub_kind, len(body)):
        case (4, 4, _):
            return f"File({utf16(body)})"
        case (4, 1, 38) if body[36] == 2:
            return f"HD({int.from_bytes(body[:4], 'little')},GPT,{guid_text(body[20:36])})"
        case (4, 6, 16):
            return f"FvFile({guid_text(body)})"
        case (4, 7, 16):
            return f"Fv({guid_text(body)})"
        case (4, 3, size) if size >= 16:
            return f"VenMedia({guid_text(body[:16])})"
        case (4, 8, 20):
            first, last = (int.from_bytes(body[i : i + 8], "little") for i in (4, 12))
            return f"Offset({first:#x},{last:#x})"
        case (1, 1, 2):
            return f"Pci({body[1]:#x},{body[0]:#x})"
        case (2, 1, 8) if body[:4] == b"\xd0\x41\x03\x0a":
            return f"PciRoot({int.from_bytes(body[4:], 'little'):#x})"
        case (3, 5, 2):
            return f"USB({body[0]:#x},{body[1]:#x})"
        case (3, 10, size) if size >= 16:
            return f"VenMsg({guid_text(body[:16])})"
        case (3, 11, 33):
            return f"MAC({body[:6].hex()})"
        case (3, 18, 6):
            return f"Sata({int.from_bytes(body[:2], 'little'):#x})"
        case (3, 23, 12):
            return f"NVMe({int.from_bytes(body[:4], 'little'):#x},{body[4:].hex('-')})"
        case (3, 24, _):
            return f"Uri({body.decode('ascii', 'backslashreplace')})"
    return f"Path({kind},{sub_kind},{body[:16].hex()})"


def file_name(path: str) -> str:
    """Return the file of a device path's text, or all of it where it names none."""
    _, found, rest = path.rpartition("File(")
    return rest.removesuffix(")") if found else path


def parse_gpt(untrusted: bytes) -> Gpt:
    """Parse UEFI_GPT_DATA: header, count and used entries. Raises Rejected `uefi.gpt`."""
    entries_at = _GPT.size + _U64.size
    if len(untrusted) < entries_at or untrusted[:8] != _GPT_SIGNATURE:
        raise Rejected("uefi.gpt", f"offset 0: {len(untrusted)} bytes")
    *_, disk, _, _, entry_size, _ = _GPT.unpack_from(untrusted)
    (count,) = _U64.unpack_from(untrusted, _GPT.size)
    if entry_size < _PARTITION.size or entries_at + count * entry_size != len(untrusted):
        detail = f"offset {_GPT.size}: {count} entries of {entry_size} bytes in {len(untrusted)}"
        raise Rejected("uefi.gpt", detail)
    partitions = []
    for at in range(entries_at, len(untrusted), entry_size):
        kind, guid, first, last, _, name = _PARTITION.unpack_from(untrusted, at)
        shown = printable(utf16(name), 64)
        partitions.append(Partition(guid_text(kind), guid_text(guid), first, last, shown))
    return Gpt(guid_text(disk), tuple(partitions))


def parse_blob(untrusted: bytes) -> Blob:
    """Parse UEFI_PLATFORM_FIRMWARE_BLOB (16 bytes). Raises Rejected `uefi.blob`."""
    if len(untrusted) != _BLOB.size:
        raise Rejected("uefi.blob", f"offset 0: {len(untrusted)} bytes, wanted {_BLOB.size}")
    return Blob("", *_BLOB.unpack(untrusted))


def parse_blob2(untrusted: bytes) -> Blob:
    """Parse UEFI_PLATFORM_FIRMWARE_BLOB2: description before base and length. Raises Rejected `uefi.blob`."""
    text, rest = _described(untrusted, "uefi.blob")
    if len(rest) != _BLOB.size:
        raise Rejected("uefi.blob", f"offset {len(untrusted) - len(rest)}: {len(rest)} bytes left, wanted 16")
    return Blob(text, *_BLOB.unpack(rest))


def _described(untrusted: bytes, code: str) -> tuple[str, bytes]:
    """Split a description with its length in one byte from what follows."""
    if not untrusted or 1 + untrusted[0] > len(untrusted):
        raise Rejected(code, f"offset 0: a description longer than {len(untrusted)} bytes")
    end = 1 + untrusted[0]
    return printable(untrusted[1:end].rstrip(b"\0").decode("utf-8", "backslashreplace"), 255), untrusted[end:]


def parse_handoff(untrusted: bytes) -> tuple[str, ...]:
    """Parse UEFI_HANDOFF_TABLE_POINTERS; returns the tables' GUIDs. Raises Rejected `uefi.handoff`."""
    if len(untrusted) < _U64.size:
        raise Rejected("uefi.handoff", f"offset 0: {len(untrusted)} bytes")
    (count,) = _U64.unpack_from(untrusted)
    if _U64.size + count * _TABLE.size != len(untrusted):
        raise Rejected("uefi.handoff", f"offset 0: {count} tables in {len(untrusted)} bytes")
    return tuple(guid_text(guid) for guid, _ in _TABLE.iter_unpack(untrusted[_U64.size :]))


def parse_handoff2(untrusted: bytes) -> tuple[str, tuple[str, ...]]:
    """Parse UEFI_HANDOFF_TABLE_POINTERS2: description, and the tables' GUIDs. Raises Rejected `uefi.handoff`."""
    text, rest = _described(untrusted, "uefi.handoff")
    return text, parse_handoff(rest)


def parse_tagged(untrusted: bytes) -> Tagged:
    """Parse a tagged event. Raises Rejected `uefi.tagged`."""
    if len(untrusted) < _TAGGED.size:
        raise Rejected("uefi.tagged", f"offset 0: {len(untrusted)} bytes")
    tag, size = _TAGGED.unpack_from(untrusted)
    if _TAGGED.size + size != len(untrusted):
        raise Rejected("uefi.tagged", f"offset 4: {size} bytes of data in {len(untrusted)}")
    return Tagged(tag, untrusted[_TAGGED.size :])


def parse_sbat_level(untrusted: bytes) -> tuple[str, dict[str, int]]:
    """Parse shim's revocation level, CSV: the date of its first line, and the least generation of each component.

    Raises Rejected `uefi.sbat` (source: SBAT.md of shim).
    """
    lines = untrusted.rstrip(b"\0").decode("ascii", "backslashreplace").rstrip("\n").split("\n")
    if len(lines) > MAX_SBAT_LINES:
        raise Rejected("uefi.sbat", f"line {MAX_SBAT_LINES}: {len(lines)} lines")
    date, level = "", {}
    for number, line in enumerate(lines, 1):
        component, _, rest = line.partition(",")
        generation, _, rest = rest.partition(",")
        if not component or not generation.isascii() or not generation.isdecimal() or len(generation) > 9:
            raise Rejected("uefi.sbat", f"line {number}: no component and generation")
        if number == 1:
            if component != "sbat":
                raise Rejected("uefi.sbat", "line 1: wanted `sbat`")
            date = printable(rest, 32)
        elif component in level:
            raise Rejected("uefi.sbat", f"line {number}: a component twice")
        level[printable(component, 128)] = int(generation)
    return date, level
