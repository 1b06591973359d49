"""Secure Boot's state and keys as a firmware log has them: PCR 7, and shim's own lists in PCR 14.

The separator of PCR 7 parts policy (SecureBoot, PK, KEK, db, dbx) from who vouched for what was loaded. Events are told
by name and GUID inside the hashed data and separators by their digest, since the log's types prove nothing: what comes
after the separator can be added by anyone who runs later, what comes before it cannot. No input raises anything.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from contract import eventtypes as ev
from contract import uefi
from contract.errors import Rejected
from contract.eventdata import KEY_LISTS, MAX_CACHED_LIST_BYTES, ipl_text, key_list, whole_variable
from contract.eventlog import Event
from contract.messages import Message
from contract.uefi import Entry, Variable, printable

MAX_SUBJECT_CHARS: Final = 200
KEYS_PCR: Final = 7
MOK_PCR: Final = 14
_KEY_EVENTS: Final = (ev.EV_EFI_VARIABLE_DRIVER_CONFIG, ev.EV_EFI_VARIABLE_AUTHORITY)
_STATES: Final = {b"\0": False, b"\1": True}
_WANTED_LISTS: Final = ("PK", "KEK", "db", "dbx")


class Signature(Message, frozen=True, kw_only=True):
    """One entry of a key list. All text is printable."""

    variable: str
    """`PK`, `KEK`, `db`, `dbx`, `MokList`, ...: the list that holds it."""
    kind: str
    """`x509`, `sha256`, another type of UEFI 2.10, 32.4.1 by name or GUID; `list` where the log holds but the digest
    of the whole list (shim's MOK lists in PCR 14)."""
    owner: str = ""
    """GUID of whoever put it there; empty where the record has none."""
    sha256: bytes
    """SHA-256 of the certificate (DER), or the listed hash, or what was extended."""
    subject: str = ""
    """Of a certificate, RFC 4514; empty where it cannot be read."""
    covered: bool | None = None
    """Whether a digest covers it, and nothing in PCR 7 is hidden that could have stood beside it."""


class Source(Message, frozen=True, kw_only=True):
    """Where in the log a claim stands."""

    event: int
    pcr: int
    covered: bool | None
    """Whether the event's digest is that of the data the claim was read from; a claim not covered proves nothing."""


@lru_cache(maxsize=512)
def subject_of(der: bytes) -> str:
    """Return a certificate's subject as printable text (RFC 4514); empty where it cannot be read."""
    try:
        subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        return ""
    return printable(subject, MAX_SUBJECT_CHARS)


def _signature(variable: str, entry: Entry, sure: bool | None) -> Signature:
    certificate = entry.kind == "x509"
    return Signature(
        variable=variable,
        kind=entry.kind,
        owner=entry.owner,
        sha256=entry.data if entry.kind == "sha256" else sha256(entry.data).digest(),
        subject=subject_of(entry.data) if certificate and len(entry.data) <= MAX_CACHED_LIST_BYTES else "",
        covered=sure,
    )


def signatures_in(variable: str, value: bytes, sure: bool | None) -> tuple[Signature, ...]:
    """Return the entries of a key variable; none where it is malformed. A fleet shares its lists, so they are kept."""
    kept = _signatures if len(value) <= MAX_CACHED_LIST_BYTES else _signatures.__wrapped__
    return kept(variable, value, sure)


@lru_cache(maxsize=64)
def _signatures(variable: str, value: bytes, sure: bool | None) -> tuple[Signature, ...]:
    listed = key_list(value)
    return () if isinstance(listed, Rejected) else tuple(_signature(variable, e, sure) for e in listed)


@lru_cache(maxsize=64)
def _authority(variable: str, value: bytes, sure: bool | None) -> Signature | None:
    try:
        return _signature(variable, uefi.parse_authority(value), sure)
    except Rejected:
        return None


class KeyReader:
    """Reads the events of PCR 7 and 14 in the order of the log."""

    __slots__ = ("_authorities", "_clouded", "_lists", "_mok", "_sbat", "_secure", "_separated", "_shim")

    def __init__(self) -> None:
        self._separated = False
        self._clouded = False
        """Something in PCR 7 is not what its type and data say, or is of a type that has no business there."""
        self._secure: list[tuple[Event, bytes, bool]] = []
        self._lists: list[tuple[Event, str, bytes]] = []
        self._authorities: list[tuple[Event, str, bytes]] = []
        self._sbat: list[tuple[Event, bytes]] = []
        self._shim: tuple[Event, bytes] | None = None
        self._mok: list[tuple[Event, str]] = []

    def take(self, event: Event, said: int) -> None:
        """Take the next event of PCR 7 or 14, of the type that its digest says."""
        if event.pcr == MOK_PCR:
            self._mok.append((event, ipl_text(event.untrusted_data)))
            return
        kind, sure = event.type, event.covered
        if not sure or kind != said:
            self._clouded = True
        if said == ev.EV_SEPARATOR:
            self._separated = True
            return
        if kind not in _KEY_EVENTS and said not in _KEY_EVENTS:
            self._clouded = self._clouded or kind != ev.EV_EFI_ACTION
            return
        found = whole_variable(event.untrusted_data)
        if found is None:
            self._clouded = True
        elif not self._separated:
            self._take_policy(event, found, bool(sure) and kind == said)
        else:
            self._take_later(event, found)

    def _take_policy(self, event: Event, found: Variable, sure: bool) -> None:
        if found.name == "SecureBoot":
            self._secure.append((event, found.value, sure and found.guid == uefi.GLOBAL_VARIABLE))
        elif sure and KEY_LISTS.get(found.name) == found.guid:
            if event.type == ev.EV_EFI_VARIABLE_AUTHORITY and isinstance(key_list(found.value), Rejected):
                self._authorities.append((event, found.name, found.value))
            else:
                self._lists.append((event, found.name, found.value))

    def _take_later(self, event: Event, found: Variable) -> None:
        if found.name == "SecureBoot":
            self._secure.append((event, found.value, False))
        elif found.guid == uefi.SHIM_LOCK and found.name == "SbatLevel":
            self._sbat.append((event, found.value))
        elif found.guid == uefi.SHIM_LOCK and found.name == "MokSBState":
            self._shim = self._shim or (event, found.value)
        else:
            self._authorities.append((event, found.name, found.value))

    def claims(self, fields: dict[str, Any], sources: dict[str, Source]) -> None:
        """Write what was read: fields of `contract.claims.Claims` and where they stand."""
        sure = None if self._clouded else True
        if len(self._secure) == 1:
            event, value, proved = self._secure[0]
            if proved and value in _STATES:
                fields["secure_boot"] = _STATES[value]
                sources["secure_boot"] = _source(event, True)
        self._write_lists(fields, sources)
        authorities = [
            (event, signed)
            for event, name, value in self._authorities
            if (signed := _authority(name, value, sure)) is not None
        ]
        if authorities:
            fields["authorities"] = [signed for _, signed in authorities]
            sources["authorities"] = _source(authorities[0][0], sure)
        self._write_shim(fields, sources, sure)
        if self._mok:
            fields["mok"] = [
                Signature(variable=name[:128], kind="list", sha256=event.digest) for event, name in self._mok
            ]
            sources["mok"] = _source(self._mok[0][0], None)

    def _write_lists(self, fields: dict[str, Any], sources: dict[str, Source]) -> None:
        """Write the lists; one that is there twice or malformed is absent."""
        times = Counter(name for _, name, _ in self._lists)
        signatures: list[Signature] = []
        for event, name, value in self._lists:
            if times[name] == 1 and not isinstance(key_list(value), Rejected):
                signatures += signatures_in(name, value, True)
                sources[name] = _source(event, True)
                if name == "PK":
                    fields["setup_mode"] = not value
                    sources["setup_mode"] = _source(event, True)
        if self._lists:
            fields["signatures"] = signatures
            whole = all(name in sources for name in _WANTED_LISTS)
            sources["signatures"] = _source(self._lists[0][0], True if whole else None)

    def _write_shim(self, fields: dict[str, Any], sources: dict[str, Source], sure: bool | None) -> None:
        if self._sbat:
            event, value = self._sbat[0]
            # shim measures it once; a second one was added by somebody else.
            once = sure if len(self._sbat) == 1 else None
            try:
                fields["sbat_level"], fields["sbat"] = uefi.parse_sbat_level(value)
                sources["sbat_level"] = sources["sbat"] = _source(event, once)
            except Rejected:
                pass
        if self._shim is not None:
            event, value = self._shim
            fields["shim_verifies"] = value != b"\1"
            sources["shim_verifies"] = _source(event, sure)
        elif self._sbat:
            fields["shim_verifies"] = True
            sources["shim_verifies"] = _source(self._sbat[0][0], sure)


def _source(event: Event, sure: bool | None) -> Source:
    return Source(event=event.index, pcr=event.pcr, covered=sure)
