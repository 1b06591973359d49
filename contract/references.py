"""Reference values that people announce beforehand: "from tonight, kernel X is expected at site Y".

A set belongs to one site, may be limited to one class of hardware, and holds from a time until a time. It allows exactly
the digests that it lists, at the stage under which it lists them; what it supersedes may never come back by itself.
Pure: the time is given. TOML in and out is here, CoRIM in `contract.corim`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct, field

from contract.bootpolicy import BootPolicy, HexDigest
from contract.claims import Stage
from contract.errors import Rejected
from contract.messages import Digest, Line, Message, Name, Seconds
from contract.toml import convert_toml, parse_toml

MAX_SETS: Final = 256
MAX_VALUES: Final = 1024
MAX_IMPORT_BYTES: Final = 1024 * 1024
FOREVER: Final = 2.0**40
CODE: Final = "reference"

ExpectedStage = Literal[Stage, "revocation"]
"""What is loaded, or a list of what may not be: dbx, SBAT level, MOK lists (`contract.revocations`)."""
Label = Annotated[str, Meta(max_length=128)]
Note = Annotated[str, Meta(max_length=256)]


class ReferenceSet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Values that are expected at one site for a time."""

    site: Name
    values: Annotated[
        dict[ExpectedStage, Annotated[list[HexDigest], Meta(min_length=1)]],
        # msgspec holds the keys to it, and does not say so in the schema that it writes.
        Meta(min_length=1, extra_json_schema={"propertyNames": {"enum": [*get_args(Stage), "revocation"]}}),
    ]
    """Stage to SHA-256 digests, in lower-case hexadecimal, as they are extended."""
    valid_from: Seconds
    """Seconds since 1970."""
    valid_until: Seconds | None = None
    """From here on the set allows nothing more; what was accepted by it stays accepted. None: no end."""
    hardware_class: Label = ""
    """Firmware version that machines of the class measure; empty: every class."""
    os_release: Label = ""
    """What a node says that it runs once it has booted this, as `ringfence node` shows it; empty: whatever it runs. The
    node's word: it narrows what is expected, and proves nothing."""
    note: Note = ""
    """For people."""
    supersedes: Annotated[list[HexDigest], Meta(max_length=MAX_VALUES)] = field(default_factory=list)
    """Digests that are not good any more once a node has left them."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if sum(map(len, self.values.values())) > MAX_VALUES:
            raise ValueError(f"at most {MAX_VALUES} digests in one set")
        if self.valid_until is not None and self.valid_until <= self.valid_from:
            raise ValueError("`valid_until` must be later than `valid_from`")
        if not all(text.isprintable() for text in (self.hardware_class, self.os_release, self.note)):
            raise ValueError("text for people must be printable, on one line")
        if {value for of_stage in self.values.values() for value in of_stage} & set(self.supersedes):
            raise ValueError("a digest is both expected and superseded")

    def active(self, now: float) -> bool:
        """Return whether the set holds at `now` (seconds since 1970)."""
        return self.valid_from <= now and (self.valid_until is None or now < self.valid_until)


class ExpectedValue(Message, frozen=True, kw_only=True):
    """One announced digest."""

    stage: Line
    sha256: Digest
    hardware_class: Line = ""
    os_release: Line = ""
    note: Line = ""


class Expected(Message, frozen=True, kw_only=True):
    """All that is announced for the nodes of one site at one time."""

    values: list[ExpectedValue] = field(default_factory=list)
    superseded: list[Digest] = field(default_factory=list)


NOTHING_EXPECTED: Final = Expected()
Span = tuple[int, float, float | None]
"""Number of a set, `valid_from`, `valid_until`."""


class ReferenceFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of sets: `[[reference]]`, once for each."""

    reference: Annotated[list[ReferenceSet], Meta(min_length=1, max_length=MAX_SETS)]


def expected_at(sets: Iterable[ReferenceSet], now: float) -> Expected:
    """Return what the sets of one site announce at `now`. A set that has begun supersedes for good, also when it ends."""
    values: list[ExpectedValue] = []
    superseded: set[str] = set()
    for one in sets:
        if now >= one.valid_from:
            superseded.update(one.supersedes)
        if not one.active(now):
            continue
        values += [
            ExpectedValue(
                stage=stage,
                sha256=bytes.fromhex(digest),
                hardware_class=one.hardware_class,
                os_release=one.os_release,
                note=one.note,
            )
            for stage, digests in one.values.items()
            for digest in digests
        ]
    # A digest that a later set announces again is good again: the newest word of a person holds.
    again = {value.sha256.hex() for value in values}
    return Expected(values=values, superseded=[bytes.fromhex(v) for v in sorted(superseded - again)])


def spans_text(spans: Sequence[Span]) -> str:
    """Return the spans of a site's sets as its row holds them; empty for none."""
    return msgspec.json.encode(spans).decode() if spans else ""


@lru_cache(maxsize=1024)
def _spans(text: str) -> tuple[Span, ...]:
    return tuple(msgspec.json.decode(text, type=list[Span]))


def announced_at(text: str, now: float) -> str:
    """Return which sets have begun at `now`, and which of those have ended (`3,7-`), from a row's spans; empty: none.

    It changes whenever `expected_at` of the same sets may; read with every report, so nothing is parsed twice.
    """
    if not text:
        return ""
    return ",".join(
        f"{number}-" if until is not None and now >= until else f"{number}"
        for number, since, until in _spans(text)
        if now >= since
    )


def policy_fingerprint(policy: BootPolicy, untrusted_reference: bytes | None, expected: Expected) -> bytes:
    """Return 32 bytes that change whenever a boot must be judged anew: with the policy, the accepted boot, or what is
    announced.

    `untrusted_reference` is the stored encoding, which is not parsed; None where a new accepted boot makes the last
    verdict forgotten anyway.
    """
    digest = sha256(b"ringfence boot policy 2\0")
    parts = (
        msgspec.json.encode(policy, order="deterministic"),
        b"" if untrusted_reference is None else sha256(untrusted_reference).digest(),
        msgspec.msgpack.encode(expected),
    )
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def parse_reference_toml(untrusted: bytes, *, file: str = "references") -> list[ReferenceSet]:
    """Parse a file of sets. Raises Rejected `reference.too-large`, `reference.syntax`, `reference.key`."""
    data, text = parse_toml(untrusted, file=file, code=CODE)
    return convert_toml(data, ReferenceFile, text=text, file=file, code=CODE).reference


def reference_toml(sets: Sequence[ReferenceSet]) -> str:
    """Return the file of these sets. Raises Rejected `reference.none` for no set: an empty file says nothing."""
    if not sets:
        raise Rejected("reference.none", "no set to write")
    parts = []
    for one in sets:
        lines = ["[[reference]]", f"site = {_quoted(one.site)}"]
        lines += [
            f"{name} = {_quoted(value)}"
            for name in ("hardware_class", "os_release", "note")
            if (value := getattr(one, name))
        ]
        lines += [
            f"{name} = {value!r}"
            for name in ("valid_from", "valid_until")
            if (value := getattr(one, name)) is not None
        ]
        lines += _array("supersedes", one.supersedes) if one.supersedes else []
        lines.append("[reference.values]")
        for stage, digests in one.values.items():
            lines += _array(stage, digests)
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _array(name: str, digests: Sequence[str]) -> list[str]:
    return [f"{name} = [", *(f"    {_quoted(digest)}," for digest in digests), "]"]


def _quoted(text: str) -> str:
    """A JSON string without escapes beyond the basic plane is a TOML basic string (TOML 1.0.0, String)."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
