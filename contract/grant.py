"""Grants and break-glass codes as they travel in a directive. Pure.

A grant is time-boxed access for a named person: who, for whom, on what evidence, what, from when until when, asked by
whom and approved by whom. It opens nothing by itself: the node compares it with the bounds of its signed baseline.

Refuses, by its types: a grant of nothing, a list that is empty where it names peers or ports (none is never all), an
end that is not after its start, an address with host bits, names with control characters.
Relies on: the directive's signature and number; `agent.grants` for what may be opened.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

MAX_GRANTS: Final = 16
"""On one node, open or yet to open."""
MAX_CODES: Final = 16
MAX_GRANT_S: Final = 90 * 86400.0
"""Longer than that is a rule, and belongs into the baseline."""

_PRINTABLE = r"\A[^\x00-\x1f\x7f\u0080-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]+\Z"
Words = Annotated[str, Meta(min_length=1, max_length=128, pattern=_PRINTABLE)]
Why = Annotated[str, Meta(min_length=1, max_length=512, pattern=_PRINTABLE)]
GrantId = Annotated[int, Meta(ge=1, le=2**53)]
Port = Annotated[int, Meta(ge=1, le=65535)]
UsbId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{4}:[0-9a-f]{4}\Z")]
"""Vendor and product, as lsusb(8) prints them."""
Account = Annotated[str, Meta(pattern=r"\A[a-z_][a-z0-9_-]{0,31}\Z")]
"""A user name as useradd(8) takes it."""
Door = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")]
Moment = Annotated[float, Meta(ge=0, le=2**40)]
Peer = ipaddress.IPv4Network | ipaddress.IPv6Network


class _Wire(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """As contract.messages.Message; here to keep this module below it."""


class Opening(_Wire, frozen=True, kw_only=True):
    """Connections that may begin while the grant is open; answers come with them."""

    direction: Literal["in", "out"]
    """`in`: from the peers to this node."""
    protocol: Literal["tcp", "udp"]
    ports: Annotated[list[Port], Meta(min_length=1, max_length=16)]
    """Destination ports."""
    peers: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=16)]
    """Addresses or prefixes of the other side."""

    def __post_init__(self) -> None:
        for text in self.peers:
            network(text)


class Access(_Wire, frozen=True, kw_only=True):
    """What a grant opens."""

    openings: Annotated[list[Opening], Meta(max_length=8)] = field(default_factory=list)
    usb: Annotated[list[UsbId], Meta(max_length=16)] = field(default_factory=list)
    accounts: Annotated[list[Account], Meta(max_length=4)] = field(default_factory=list)
    doors: Annotated[list[Door], Meta(max_length=8)] = field(default_factory=list)
    """Physical doors: recorded on the node, opened by people."""

    def __post_init__(self) -> None:
        if not (self.openings or self.usb or self.accounts or self.doors):
            raise ValueError("a grant of nothing: name openings, usb, accounts or doors")


class Grant(_Wire, frozen=True, kw_only=True):
    """One grant. Its id is never given twice, and what stands under an id never changes."""

    id: GrantId
    who: Words
    """The person who comes."""
    company: Words
    evidence: Words
    """Why this person may: contract or training reference."""
    access: Access
    starts: Moment
    ends: Moment
    reason: Why
    requested_by: Words
    approved_by: Annotated[list[Words], Meta(min_length=1, max_length=4)]

    def __post_init__(self) -> None:
        if not 0 < self.ends - self.starts <= MAX_GRANT_S:
            raise ValueError(f"a grant ends after it starts, and lasts at most {MAX_GRANT_S:.0f} s")


class CodeHash(_Wire, frozen=True, kw_only=True):
    """A one-use break-glass code, as the node knows it: enough to recognise it, not to guess it."""

    id: GrantId
    salt: Annotated[bytes, Meta(min_length=16, max_length=16)]
    hash: Annotated[bytes, Meta(min_length=32, max_length=32)]


def network(text: str) -> Peer:
    """Return an address or prefix. Raises ValueError for anything else, also for host bits and zone ids."""
    if "%" in text:
        raise ValueError(f"peer {text!r}: expected no zone id")
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        raise ValueError(f"peer {text!r}: expected an IP address or prefix ({error})") from None


# -- break-glass codes -----------------------------------------------------------------------------------

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: what people take for one another is one character."""
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1"})
CODE_CHARS: Final = 20
"""100 bits."""
_GROUP: Final = 5
_LABEL: Final = b"ringfence.break-glass.1"
_N, _R, _P = 2**14, 8, 1
"""scrypt (RFC 7914): 16 MiB and some 50 ms for each guess."""


def new_code() -> str:
    """Return a new code, in groups as people copy it from paper."""
    code = "".join(secrets.choice(_ALPHABET) for _ in range(CODE_CHARS))
    return "-".join(code[at : at + _GROUP] for at in range(0, CODE_CHARS, _GROUP))


def plain_code(untrusted: str) -> str | None:
    """Return what was typed without what does not count (case, spaces, hyphens); None where it cannot be a code."""
    code = "".join(untrusted[:128].split()).replace("-", "").upper().translate(_READ_AS)
    return code if len(code) == CODE_CHARS and set(code) <= set(_ALPHABET) else None


def code_hash(plain: str, salt: bytes, node: str) -> bytes:
    """Return the hash (32 bytes) of a plain code, good for this node only."""
    bound = hashlib.sha256(_LABEL + bytes([len(node)]) + node.encode() + salt).digest()
    return hashlib.scrypt(plain.encode(), salt=bound, n=_N, r=_R, p=_P, dklen=32)


def hashed(code_id: int, code: str, node: str) -> CodeHash:
    """Return what the node is told of a new code. Raises ValueError for text that is no code."""
    plain = plain_code(code)
    if plain is None:
        raise ValueError("no break-glass code")
    salt = secrets.token_bytes(16)
    return CodeHash(id=code_id, salt=salt, hash=code_hash(plain, salt, node))


def matching(codes: list[CodeHash], untrusted: str, node: str) -> CodeHash | None:
    """Return the code that was typed, None where it is none of these. Every code is tried, whichever it is."""
    plain = plain_code(untrusted)
    if plain is None:
        return None
    found = None
    for code in codes:
        if secrets.compare_digest(code_hash(plain, code.salt, node), code.hash):
            found = code
    return found
