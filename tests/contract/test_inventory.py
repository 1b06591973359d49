"""Facts as they travel: whole, small, printable, and only those that the quoted report named."""

from __future__ import annotations

import hashlib
import os
import zlib

import pytest

from contract.errors import Rejected
from contract.inventory import (
    MAX_FACTS_BYTES,
    MAX_NAME_BYTES,
    MAX_OF_A_KIND,
    MAX_VALUE_BYTES,
    Fact,
    Facts,
    fitting,
    packed,
    unpacked,
)
from contract.messages import MAX_INVENTORY_BYTES
from contract.wire import encode

BASH = Fact("package", "bash", "5.2")


def sent(*facts: Fact, tail: bytes = b"") -> tuple[bytes, bytes]:
    """What a hostile agent may send: any facts, and the digest that it had quoted."""
    content = encode(Facts(facts=list(facts))) + tail
    return zlib.compress(content), hashlib.sha256(content).digest()


def code(untrusted: bytes, sha256: bytes) -> str:
    with pytest.raises(Rejected) as refused:
        unpacked(untrusted, sha256)
    return refused.value.code


def test_the_same_facts_in_any_order_are_the_same_bytes() -> None:
    kernel = Fact("system", "kernel", "6.1")
    one, other = packed([BASH, kernel]), packed([kernel, BASH, kernel])
    assert one == other
    assert unpacked(one.packed, one.sha256).facts == [kernel, BASH]
    assert packed([BASH]).sha256 != one.sha256


def test_q21_what_the_quoted_report_did_not_name_is_refused() -> None:
    good = packed([BASH])
    assert code(packed([Fact("package", "bash", "5.3")]).packed, good.sha256) == "inventory.differs"
    assert code(good.packed, b"") == "inventory.differs"


def test_c06_what_unpacks_to_more_than_the_limit_is_refused_at_the_limit() -> None:
    bomb = zlib.compress(bytes(200 * MAX_FACTS_BYTES))
    assert len(bomb) < MAX_INVENTORY_BYTES
    assert code(bomb, bytes(32)) == "inventory.too-large"
    assert code(os.urandom(MAX_INVENTORY_BYTES + 1), bytes(32)) == "inventory.too-large"


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_what_is_cut_short_or_goes_on_is_refused(cut: int) -> None:
    good = packed([BASH])
    assert code(good.packed[:cut], good.sha256) == "inventory.packing"
    assert code(good.packed + b"x", good.sha256) == "inventory.packing"
    assert code(b"\0" * 40, good.sha256) == "inventory.packing"
    assert code(*sent(BASH, tail=b"\0")) == "inventory.malformed"


@pytest.mark.parametrize(
    "text", ["a\x1b[2J", "a\nb", "a\0b", "\u202eevil", "\x85", "a\u2028b", "\ue000"], ids=ascii
)
def test_c12_text_that_cannot_be_shown_is_refused(text: str) -> None:
    assert code(*sent(Fact("package", text, "1"))) == "inventory.text"
    assert code(*sent(Fact("package", "bash", text))) == "inventory.text"


def test_limits_hold_whatever_is_sent() -> None:
    many = [Fact("interface", f"eth{n}", "x") for n in range(MAX_OF_A_KIND + 1)]
    assert code(*sent(*many)) == "inventory.too-large"
    assert code(*sent(BASH, BASH)) == "inventory.malformed"
    assert code(*sent(Fact("package", "é" * MAX_NAME_BYTES, "1"))) == "inventory.too-large"
    assert code(*sent(Fact("package", "x" * (MAX_NAME_BYTES + 1), "1"))) == "inventory.malformed"
    assert code(*sent(Fact("secret", "x", "1"))) == "inventory.malformed"  # type: ignore[arg-type]
    assert code(*sent(Fact("package", "", "1"))) == "inventory.malformed"


def test_what_has_no_room_is_left_out_and_counted() -> None:
    rest = [Fact("system", "kernel", "6.1")]
    many = [Fact("package", f"package-{n:05}", "1") for n in range(20_100)]
    made = packed([*many, *rest])
    said = unpacked(made.packed, made.sha256)
    assert len(said.facts) == 20_001
    assert said.left_out == 100
    big = [Fact("package", f"{n:05}".ljust(900, "x"), "1") for n in range(3000)]
    made = packed([*big, *rest])
    said = unpacked(made.packed, made.sha256)
    assert said.facts[0] == rest[0]
    assert len(said.facts) + said.left_out == 3001
    assert len(encode(said)) <= MAX_FACTS_BYTES < len(encode(said)) + 2000


def test_text_of_the_machine_is_made_to_fit() -> None:
    fact = fitting("package", " a\x1b[2J\udcff\n ", "é" * MAX_VALUE_BYTES)
    assert fact is not None
    assert fact.name == "a\\x1b[2J\\udcff"
    assert len(fact.value.encode()) <= MAX_VALUE_BYTES
    assert fact.value.endswith("…")
    made = packed([fact])
    assert unpacked(made.packed, made.sha256).facts == [fact]
    assert fitting("package", " ", "1") is None
    assert fitting("package", "a", "") is None
