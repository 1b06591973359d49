"""What keeps old boot code from coming back: the firmware's dbx, shim's SBAT level, and the lists of the machine's owner.

An accepted boot notes what its lists revoked, so that a list of which nobody has told can be compared with it: one that
revokes more is an update, one that revokes less was rolled back, also to a state that this node never had. The digest of
a list is also what may be announced; here it is computed from a variable as Linux shows it (efivarfs). Pure.

Sources: UEFI 2.10, 32.4.1 (signature lists); TCG PC Client Platform Firmware Profile 1.06, 10.4.2 (UEFI_VARIABLE_DATA);
shim, SBAT.md and MokVars.txt.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection
from hashlib import sha256
from struct import pack
from typing import Annotated, Final

from msgspec import Meta

from contract import uefi
from contract.bootpolicy import REVOCATION
from contract.claims import Claims
from contract.errors import Rejected
from contract.eventdata import variable
from contract.eventlog import Event
from contract.eventtypes import EV_EFI_VARIABLE_AUTHORITY, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_IPL
from contract.keyclaims import MOK_PCR
from contract.messages import Count, Digest, Message

MAX_VARIABLE_BYTES: Final = 1024 * 1024
_VARIABLES: Final = frozenset({"dbx", "SbatLevel"})
_MOK_LISTS: Final = (b"MokListX", b"MokList")
_ATTRIBUTES_BYTES: Final = 4
_FILE: Final = re.compile(r"([^/]{1,64})-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII)
_MEASURED: Final = {
    ("dbx", uefi.IMAGE_SECURITY): "dbx",
    (
        "SbatLevelRT",
        uefi.SHIM_LOCK,
    ): "SbatLevel",  # shim's copy for the running system; the original is hidden
}
_WANTED: Final = (
    f"wanted a variable as efivarfs shows it: dbx-{uefi.IMAGE_SECURITY} or SbatLevelRT-{uefi.SHIM_LOCK} "
    "in /sys/firmware/efi/efivars of a node that has the update"
)


class Revoked(Message, frozen=True, kw_only=True):
    """What the lists of a boot revoked, as far as digests cover it. None: the log does not prove it."""

    dbx: Annotated[list[Digest], Meta(max_length=uefi.MAX_LIST_ENTRIES)] | None = None
    """SHA-256 over kind and content of each entry, in the order of the list."""
    sbat: dict[str, Count] | None = None
    """Component to the least generation that is allowed to boot."""


def stage_of(event: Event) -> str:
    """Return `revocation` for an event that measures such a list, empty for any other. The name of a MOK list is only the
    log's word."""
    data = event.untrusted_data
    if event.type in (EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_AUTHORITY):
        found = variable(data)
        return REVOCATION if found is not None and found[0] in _VARIABLES else ""
    if event.type == EV_IPL and event.pcr == MOK_PCR and data.rstrip(b"\0") in _MOK_LISTS:
        return REVOCATION
    return ""


def revoked_by(claims: Claims, explained: Collection[int]) -> Revoked:
    """Return what a boot's lists revoked, as far as claims are covered in PCRs that the quote bears out."""
    dbx = None
    if claims.proved("dbx", explained):
        dbx = [
            sha256(entry.kind.encode() + b"\0" + entry.sha256).digest()
            for entry in claims.signatures
            if entry.variable == "dbx"
        ]
    sbat = dict(claims.sbat) if claims.proved("sbat", explained) else None
    return Revoked(dbx=dbx, sbat=sbat)


def held_against(before: Revoked, after: Revoked, claims: Claims) -> dict[int, str]:
    """Return what each list that can be compared no longer revokes, by its event in the log; empty text for one that
    revokes at least what it did. `claims` are those of `after`; a list that is not proved in both is left out."""
    found: dict[int, str] = {}
    if before.dbx is not None and after.dbx is not None:
        gone = set(before.dbx).difference(after.dbx)
        found[claims.sources["dbx"].event] = (
            f"dbx: {len(gone)} of {len(set(before.dbx))} entries are gone" if gone else ""
        )
    if before.sbat is not None and after.sbat is not None:
        lower = [
            f"{component} {least} -> {after.sbat.get(component, 'none')}"
            for component, least in sorted(before.sbat.items())
            if after.sbat.get(component, 0) < least
        ]
        found[claims.sources["sbat"].event] = f"SBAT: {', '.join(lower[:4])}" if lower else ""
    return found


def variable_sha256(file_name: str, untrusted: bytes) -> bytes:
    """Return what is extended for a revocation list, from its file in efivarfs (attributes, then the value).

    Only of dbx and the SBAT level can this be told from a file: an update file (DBXUpdate.bin) is appended by the firmware
    to what it has, and of MOK lists shim shows the running system others than it measures.
    Raises Rejected `variable.unsupported`, `variable.malformed`.
    """
    name = _FILE.fullmatch(file_name)
    measured = _MEASURED.get((name[1], name[2])) if name else None
    if name is None or measured is None:
        raise Rejected("variable.unsupported", f"{file_name[:200]}: {_WANTED}; else give --sha256")
    value = untrusted[_ATTRIBUTES_BYTES:]
    if not _ATTRIBUTES_BYTES < len(untrusted) <= MAX_VARIABLE_BYTES:
        raise Rejected("variable.malformed", f"{file_name}: {len(untrusted)} bytes")
    try:
        if measured == "dbx":
            uefi.parse_signature_lists(value)
        else:
            uefi.parse_sbat_level(value)
    except Rejected as rejected:
        raise Rejected("variable.malformed", f"{file_name}: {rejected.detail}; {_WANTED}") from None
    header = pack("<16sQQ", uuid.UUID(name[2]).bytes_le, len(measured), len(value))
    return sha256(header + measured.encode("utf-16-le") + value).digest()
