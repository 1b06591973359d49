"""Firmware logs made to order, in both layouts, for what no recorded machine does."""

from __future__ import annotations

import hashlib
import struct

from contract import eventtypes as ev

SHA1_SHA256 = ((0x04, 20), (0x0B, 32))
HASHES = {0x04: "sha1", 0x0B: "sha256", 0x0C: "sha384", 0x0D: "sha512"}
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
SECURITY = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
SHIM = bytes.fromhex("50ab5d6046e00043abb63dd810dd8b23")
OWNER = bytes.fromhex("bd9afa775903324dbd6028f4e78f784b")
X509_LIST = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
SHA256_LIST = bytes.fromhex("2616c4c14c509240aca941f936934328")


def header(
    algorithms: tuple[tuple[int, int], ...] = SHA1_SHA256,
    *,
    count: int | None = None,
    vendor: bytes = b"\0",
) -> bytes:
    """Return the first record."""
    table = b"".join(struct.pack("<HH", *algorithm) for algorithm in algorithms)
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    spec += struct.pack("<I", len(algorithms) if count is None else count) + table + vendor
    return struct.pack("<II20sI", 0, 3, b"", len(spec)) + spec


def record(pcr: int, kind: int, data: bytes, *, hashed: bytes | None = None) -> bytes:
    """Return one record of both banks; `hashed` is what the digests are made of, where not the data."""
    what = data if hashed is None else hashed
    digests = struct.pack("<H", 4) + hashlib.sha1(what).digest()
    digests += struct.pack("<H", 11) + hashlib.sha256(what).digest()
    return struct.pack("<III", pcr, kind, 2) + digests + struct.pack("<I", len(data)) + data


def no_action(pcr: int, data: bytes) -> bytes:
    """Return a record that extends nothing; its digests are zeros (PFP 10.4.5)."""
    digests = struct.pack("<H", 4) + bytes(20) + struct.pack("<H", 11) + bytes(32)
    return struct.pack("<III", pcr, ev.EV_NO_ACTION, 2) + digests + struct.pack("<I", len(data)) + data


def old_record(pcr: int, kind: int, data: bytes, *, hashed: bytes | None = None) -> bytes:
    """Return one record of the old layout."""
    digest = hashlib.sha1(data if hashed is None else hashed).digest()
    return struct.pack("<II20sI", pcr, kind, digest, len(data)) + data


def separators(*leave_out: int) -> bytes:
    """Return the separators of PCR 0 to 7."""
    return b"".join(record(pcr, ev.EV_SEPARATOR, bytes(4)) for pcr in range(8) if pcr not in leave_out)


def variable_data(guid: bytes, name: str, value: bytes, name_chars: int | None = None) -> bytes:
    """Return UEFI_VARIABLE_DATA."""
    chars = len(name) if name_chars is None else name_chars
    return struct.pack("<16sQQ", guid, chars, len(value)) + name.encode("utf-16-le") + value


def secure_boot(
    value: bytes = b"\1", name: str = "SecureBoot", name_chars: int | None = None, guid: bytes = GLOBAL
) -> bytes:
    """Return the event of the SecureBoot variable."""
    return record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable_data(guid, name, value, name_chars))


def signature_list(kind: bytes, *entries: bytes, owner: bytes = OWNER) -> bytes:
    """Return an EFI_SIGNATURE_LIST; all entries are of one size."""
    size = 16 + len(entries[0])
    body = b"".join(owner + entry for entry in entries)
    return struct.pack("<16sIII", kind, 28 + len(body), 0, size) + body


def keys(
    *, dbx: bytes = b"", db: bytes = b"", pk: bytes = b"", kek: bytes = b"", state: bytes = b"\1"
) -> bytes:
    """Return the events of PCR 7 before its separator."""
    made = secure_boot(state)
    for guid, name, value in (
        (GLOBAL, "PK", pk),
        (GLOBAL, "KEK", kek),
        (SECURITY, "db", db),
        (SECURITY, "dbx", dbx),
    ):
        made += record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable_data(guid, name, value))
    return made


def authority(guid: bytes, name: str, value: bytes) -> bytes:
    """Return an authority event of PCR 7."""
    return record(7, ev.EV_EFI_VARIABLE_AUTHORITY, variable_data(guid, name, value))


def sbat_level(text: bytes) -> bytes:
    """Return shim's event of the revocation level in force."""
    return authority(SHIM, "SbatLevel", text)


def grub(text: bytes, label: bytes = b"grub_cmd: ", pcr: int = 8) -> bytes:
    """Return a text of GRUB's, labelled as wanted: the label is not hashed."""
    return record(pcr, ev.EV_IPL, label + text + b"\0", hashed=text)


def loads(line: bytes) -> bytes:
    """Return what GRUB measures for `linux LINE`."""
    return grub(b"linux " + line) + record(9, ev.EV_IPL, b"/vmlinuz\0", hashed=b"kernel") + grub(line, KERNEL)


KERNEL = b"kernel_cmdline: "
