"""What a node says it consists of: hardware, system, packages, models, interfaces; as facts that can be compared one by one.

The quote covers the SHA-256 of the facts, so they are that node's word (`contract.nodeword`) and no more: people search them, no
verdict rests on them. Both sides hold to the same limits. Text that is not printable is refused, so what is stored can be
shown anywhere. Pure.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Final, Literal, NamedTuple, get_args

from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.messages import MAX_INVENTORY_BYTES, Count, Message
from contract.wire import decode, encode

Kind = Literal["hardware", "firmware", "system", "tpm", "interface", "model", "package"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MAX_PACKAGES: Final = 20_000
MAX_OF_A_KIND: Final = 4096
"""Of each other kind."""
MAX_FACTS_BYTES: Final = 1024 * 1024
"""Of the facts, before they are packed."""
MAX_NAME_BYTES: Final = 1024
MAX_VALUE_BYTES: Final = 512
"""PostgreSQL's index takes 2,704 bytes of a row."""
_LEVEL: Final = 6


class Fact(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """One thing that is so: `package`, `bash`, `5.2.15-2+b7`."""

    kind: Kind
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES)]
    value: Annotated[str, Meta(min_length=1, max_length=MAX_VALUE_BYTES)]


class Facts(Message, frozen=True, kw_only=True):
    """All that a node says of itself, sorted, each once."""

    facts: Annotated[list[Fact], Meta(max_length=MAX_PACKAGES + MAX_OF_A_KIND * (len(KINDS) - 1))]
    left_out: Count = 0
    """How many more there were room for none."""


class Taken(NamedTuple):
    """Facts as they travel."""

    sha256: bytes
    """Of the facts before they were packed: the report names it."""
    packed: bytes


def packed(found: Iterable[Fact]) -> Taken:
    """Return the facts as they travel; what is over a limit is left out and counted, packages first."""
    each = Counter[str]()
    kept: list[Fact] = []
    size = left_out = 0
    for fact in sorted(set(found), key=lambda fact: (KINDS.index(fact.kind), fact.name, fact.value)):
        each[fact.kind] += 1
        size += len(encode(fact))
        if each[fact.kind] > _most(fact.kind) or size > MAX_FACTS_BYTES - 64:
            left_out += 1
        else:
            kept.append(fact)
    content = encode(Facts(facts=kept, left_out=left_out))
    return Taken(hashlib.sha256(content).digest(), zlib.compress(content, _LEVEL))


def unpacked(untrusted: bytes, sha256: bytes) -> Facts:
    """Return the facts of which a quoted report named the SHA-256. Raises Rejected `inventory.too-large`, `inventory.packing`,
    `inventory.differs`, `inventory.malformed`, `inventory.text`."""
    if len(untrusted) > MAX_INVENTORY_BYTES:
        raise Rejected("inventory.too-large", f"{len(untrusted)} bytes packed")
    expander = zlib.decompressobj()
    try:
        content = expander.decompress(untrusted, MAX_FACTS_BYTES + 1)
    except zlib.error as error:
        raise Rejected("inventory.packing", str(error)) from None
    if len(content) > MAX_FACTS_BYTES:
        raise Rejected("inventory.too-large", f"more than {MAX_FACTS_BYTES} bytes unpacked")
    if not expander.eof or expander.unused_data:
        raise Rejected("inventory.packing", "cut short, or with bytes after its end")
    if hashlib.sha256(content).digest() != sha256:
        raise Rejected("inventory.differs", "not what the quoted report named")
    said = decode(content, Facts, max_bytes=MAX_FACTS_BYTES, code="inventory.malformed")
    _check(said.facts)
    return said


def fitting(kind: Kind, name: str, value: str) -> Fact | None:
    """Return a fact of text from the machine, made printable and cut to the limits; None where there is no text."""
    name, value = _cut(name, MAX_NAME_BYTES), _cut(value, MAX_VALUE_BYTES)
    return Fact(kind, name, value) if name and value else None


def _most(kind: str) -> int:
    return MAX_PACKAGES if kind == "package" else MAX_OF_A_KIND


def _check(facts: list[Fact]) -> None:
    """Refuse what no honest agent sends."""
    if len(set(facts)) != len(facts):
        raise Rejected("inventory.malformed", "a fact stands there twice")
    for kind, count in Counter(fact.kind for fact in facts).items():
        if count > _most(kind):
            raise Rejected("inventory.too-large", f"{count} of kind {kind}")
    for fact in facts:
        if not (fact.name.isprintable() and fact.value.isprintable()):
            raise Rejected("inventory.text", f"{fact.kind}: text that cannot be shown")
        if len(fact.name.encode()) > MAX_NAME_BYTES or len(fact.value.encode()) > MAX_VALUE_BYTES:
            raise Rejected("inventory.too-large", f"{fact.kind}: a name or value is too long")


def _cut(text: str, max_bytes: int) -> str:
    """Return own text for a limit in bytes, visibly cut, with escapes for what cannot be shown."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text.strip()
    )
    raw = shown.encode()
    if len(raw) <= max_bytes:
        return shown
    return raw[: max_bytes - 3].decode("utf-8", "ignore") + "…"
