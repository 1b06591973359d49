"""Announced reference values: when they hold, for whom, and that TOML and CoRIM say the same."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import get_args

import cbor2
import msgspec
import pytest
from cbor2 import CBORTag
from hypothesis import given
from hypothesis import strategies as st

from contract.boot import BootPolicy
from contract.corim import MAX_DEPTH, MAX_ITEMS, PROFILE, encode_corim, parse_corim
from contract.errors import Rejected
from contract.references import (
    MAX_IMPORT_BYTES,
    NOTHING_EXPECTED,
    ExpectedStage,
    ReferenceSet,
    announced_at,
    expected_at,
    parse_reference_toml,
    policy_fingerprint,
    reference_toml,
    spans_text,
)

TONIGHT = 1_764_000_000.0
A, B, C = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b", b"c"))
SET = ReferenceSet(
    site="hall-3",
    values={"kernel": [A, B], "initrd": [C]},
    valid_from=TONIGHT,
    valid_until=TONIGHT + 3600.5,
    hardware_class="N40ET41W",
    os_release="Debian 12.13",
    note='kernel "6.1.0-19" \\ für Halle 3',
    supersedes=[hashlib.sha256(b"old").hexdigest()],
)

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
printable = st.text(st.characters(codec="utf-8"), max_size=40).filter(str.isprintable)
times = st.floats(0, 2**40, allow_nan=False) | st.integers(0, 2**40).map(float)


@st.composite
def sets(draw: st.DrawFn) -> ReferenceSet:
    values = draw(
        st.dictionaries(
            st.sampled_from(get_args(ExpectedStage)),
            st.lists(digests, min_size=1, max_size=4),
            min_size=1,
            max_size=3,
        )
    )
    known = {digest for of_stage in values.values() for digest in of_stage}
    since, until = draw(times), draw(st.none() | times)
    return ReferenceSet(
        site=draw(st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\Z")),
        values=values,  # type: ignore[arg-type]
        valid_from=since,
        valid_until=None if until is None or until <= since else until,
        hardware_class=draw(printable),
        os_release=draw(printable),
        note=draw(printable),
        supersedes=[digest for digest in draw(st.lists(digests, max_size=3)) if digest not in known],
    )


def test_a_set_holds_from_its_time_until_its_end() -> None:
    assert expected_at([SET], TONIGHT - 1) == NOTHING_EXPECTED
    during = expected_at([SET], TONIGHT)
    assert [(v.stage, v.sha256.hex(), v.hardware_class) for v in during.values] == [
        ("kernel", A, "N40ET41W"),
        ("kernel", B, "N40ET41W"),
        ("initrd", C, "N40ET41W"),
    ]
    after = expected_at([SET], TONIGHT + 3601)
    assert after.values == []
    assert (
        [value.hex() for value in after.superseded] == SET.supersedes == [v.hex() for v in during.superseded]
    )


def test_what_is_announced_again_is_not_superseded() -> None:
    again = ReferenceSet(site="hall-3", values={"kernel": SET.supersedes}, valid_from=TONIGHT + 10)
    assert expected_at([SET, again], TONIGHT + 5).superseded != []
    assert expected_at([SET, again], TONIGHT + 10).superseded == []


def test_the_fingerprint_changes_with_policy_reference_and_what_is_announced() -> None:
    policy = BootPolicy()
    some = expected_at([SET], TONIGHT)
    seen = {
        policy_fingerprint(policy, None, NOTHING_EXPECTED),
        policy_fingerprint(msgspec.structs.replace(policy, secure_boot="required"), None, NOTHING_EXPECTED),
        policy_fingerprint(policy, b"a boot", NOTHING_EXPECTED),
        policy_fingerprint(policy, b"another boot", NOTHING_EXPECTED),
        policy_fingerprint(policy, None, some),
        policy_fingerprint(policy, None, expected_at([SET], TONIGHT + 3601)),
    }
    assert len(seen) == 6
    assert policy_fingerprint(BootPolicy(), None, NOTHING_EXPECTED) in seen


@given(st.lists(sets(), max_size=5), times)
def test_the_spans_of_a_row_change_whenever_what_is_expected_does(
    some: list[ReferenceSet], now: float
) -> None:
    text = spans_text([(n, one.valid_from, one.valid_until) for n, one in enumerate(some, 1)])
    moments = sorted({now, *(one.valid_from for one in some), *(one.valid_until or 0.0 for one in some)})
    for before, after in pairwise(moments):
        if expected_at(some, before) != expected_at(some, after):
            assert announced_at(text, before) != announced_at(text, after)


def test_no_announcement_costs_nothing() -> None:
    assert spans_text([]) == ""
    assert announced_at("", TONIGHT) == ""
    assert announced_at(spans_text([(7, TONIGHT, TONIGHT + 5)]), TONIGHT - 1) == ""
    assert announced_at(spans_text([(7, TONIGHT, TONIGHT + 5)]), TONIGHT) == "7"
    assert announced_at(spans_text([(7, TONIGHT, TONIGHT + 5)]), TONIGHT + 5) == "7-"


@given(st.lists(sets(), min_size=1, max_size=4))
def test_toml_and_corim_give_back_what_was_written(some: list[ReferenceSet]) -> None:
    assert parse_reference_toml(reference_toml(some).encode()) == some
    assert parse_corim(encode_corim(some)) == some
    assert encode_corim(some) == encode_corim(some)


def test_a_corim_is_what_the_draft_says() -> None:
    corim = cbor2.loads(encode_corim([SET]))
    assert corim.tag == 501
    assert corim.value[3] == CBORTag(32, PROFILE)
    [comid] = corim.value[1]
    assert comid.tag == 506
    content = cbor2.loads(comid.value)
    [[environment, measurements]] = content[4][0]
    assert environment == {0: {2: "N40ET41W"}, 2: CBORTag(560, b"hall-3")}
    kernel = next(m for m in measurements if m[0] == "kernel")
    assert kernel[1][2] == [[1, bytes.fromhex(A)], [1, bytes.fromhex(B)]]
    assert kernel[1][0] == {0: "Debian 12.13"}


def foreign(**changes: object) -> bytes:
    """Return a CoRIM as another tool writes it: class by vendor and model, one digest of each algorithm, no site."""
    measurement = {1: {0: {0: "1.0.0", 1: 16384}, 2: [[7, bytes(48)], [1, bytes.fromhex(A)]]}}
    environment = {0: {0: CBORTag(37, bytes(16)), 1: "ACME Inc.", 2: "RoadRunner", 3: 1}}
    comid = {1: {0: bytes(16)}, 2: [{0: "ACME Inc.", 2: [0]}], 4: {0: [[environment, [measurement]]]}}
    corim: dict[object, object] = {0: bytes(16), 1: [CBORTag(506, cbor2.dumps(comid))]}
    corim |= {int(key[1:]): value for key, value in changes.items()}
    return cbor2.dumps(CBORTag(501, corim))


def test_a_foreign_corim_is_taken_where_the_caller_says_what_it_leaves_out() -> None:
    [one] = parse_corim(foreign(), site="hall-3", stage="kernel", valid_from=TONIGHT)
    assert one == ReferenceSet(
        site="hall-3",
        values={"kernel": [A]},
        valid_from=TONIGHT,
        hardware_class="ACME Inc. RoadRunner",
        note="version 1.0.0",
    )
    span = {0: CBORTag(1, 1_764_000_000), 1: CBORTag(1, 1_764_000_600)}
    [dated] = parse_corim(foreign(_4=span), site="hall-3", stage="kernel")
    assert (dated.valid_from, dated.valid_until) == (TONIGHT, TONIGHT + 600)
    for missing in ({"site": "hall-3"}, {"stage": "kernel"}, {"site": "hall-3", "stage": "kernel"}):
        with pytest.raises(Rejected):
            parse_corim(foreign(), **missing)


@pytest.mark.parametrize(
    ("untrusted", "code"),
    [
        (b"", "corim.malformed"),
        (b"\xd9\x01\xf5", "corim.malformed"),
        (b"\x00\x00", "corim.malformed"),
        (b"\x9f\xff", "corim.malformed"),
        (b"\x5f\x41a\xff", "corim.malformed"),
        (b"\xbf\x00\x00\xff", "corim.malformed"),
        (b"\x1c", "corim.malformed"),
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "corim.malformed"),
        (b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "corim.malformed"),
        (b"\x81" * (MAX_DEPTH + 1) + b"\x00", "corim.too-large"),
        (b"\x99\xff\xff" + b"\x00" * 65535 + b"\x00", "corim.malformed"),
        (b"\x9a\x00\x02\x00\x00" + b"\x00" * 0x20000, "corim.too-large"),
        (bytes(MAX_IMPORT_BYTES + 1), "corim.too-large"),
        (bytes.fromhex("c5821b7fffffffffffffff01"), "corim.malformed"),
        (b"\xd8\x1c\x80", "corim.malformed"),
        (b"\xd8\x23\x61(", "corim.malformed"),
        (b"\xd9\x01\x00\x81\x61a", "corim.malformed"),
        (cbor2.dumps(CBORTag(502, [b"", {}, b"", b""])), "corim.signed"),
        (cbor2.dumps(CBORTag(501, {})), "corim.malformed"),
        (cbor2.dumps(CBORTag(501, {0: "x"})), "corim.malformed"),
        (cbor2.dumps(CBORTag(501, {0: "x", 1: [CBORTag(505, b"")]})), "corim.unsupported"),
        (b"\xd9\x01\xf5\xa2\x00\x00\x00\x00", "corim.malformed"),
    ],
)
def test_a_corim_that_is_none_is_refused(untrusted: bytes, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse_corim(untrusted, site="x", stage="kernel", valid_from=0.0)
    assert refused.value.code == code


def test_the_bounds_are_those_of_the_items_not_of_the_bytes() -> None:
    assert MAX_ITEMS < MAX_IMPORT_BYTES
    many = cbor2.dumps(CBORTag(501, {0: "x", 1: [0] * MAX_ITEMS}))
    with pytest.raises(Rejected, match=r"corim\.too-large"):
        parse_corim(many)


@given(st.binary(max_size=400), st.data())
def test_garbage_raises_nothing_but_rejected(noise: bytes, data: st.DataObject) -> None:
    good = encode_corim([SET])
    at = data.draw(st.integers(0, len(good) - 1))
    cut = good[:at] + noise[:3] + good[at + data.draw(st.integers(0, 3)) :]
    for untrusted in (noise, cut, good[:at]):
        try:
            found = parse_corim(untrusted, site="x", stage="kernel", valid_from=0.0)
        except Rejected as rejected:
            assert rejected.code.startswith("corim.")
        else:
            assert all(isinstance(one, ReferenceSet) for one in found)
        try:
            parse_reference_toml(untrusted)
        except Rejected as rejected:
            assert rejected.code.startswith("reference.")


@pytest.mark.parametrize(
    "changes",
    [
        {"values": {}},
        {"values": {"kernel": []}},
        {"values": {"kernal": [A]}},
        {"values": {"kernel": [A.upper()]}},
        {"site": "Hall 3"},
        {"valid_until": TONIGHT},
        {"note": "two\nlines"},
        {"note": "\u202egnp.exe"},
        {"supersedes": [A]},
        {"stage": "kernel"},
        {"values": {"kernel": [f"{n:064x}" for n in range(1025)]}},
    ],
)
def test_a_set_that_cannot_be_meant_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**msgspec.to_builtins(SET), **changes}, ReferenceSet, strict=True)


def test_a_file_of_sets_names_the_line_of_what_is_wrong() -> None:
    text = reference_toml([SET]).replace("hardware_class", "hardware")
    with pytest.raises(Rejected) as refused:
        parse_reference_toml(text.encode(), file="update.toml")
    assert refused.value.code == "reference.key"
    assert refused.value.detail.startswith("update.toml:3: reference[0].hardware: unknown key")
    for empty in (b"", b"reference = []"):
        with pytest.raises(Rejected, match=r"reference\.key"):
            parse_reference_toml(empty)
    for write in (reference_toml, encode_corim):
        with pytest.raises(Rejected, match=r"reference\.none"):
            write([])
