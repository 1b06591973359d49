"""The head of a baseline, and its sections as raw tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from contract.baseline import MAX_SECTIONS, parse_baseline, section
from contract.errors import Rejected

GOOD = b"""\
[baseline]
name = "factory"
version = 3
summary = "for a test"
[baseline.offline]
isolate_after_s = 3600

[sysctl]
mode = "observe"
[files]
"""


def test_a_good_baseline() -> None:
    baseline = parse_baseline(GOOD)
    assert (baseline.head.name, baseline.head.version, baseline.head.mode) == ("factory", 3, "enforce")
    assert baseline.head.offline.isolate_after_s == 3600.0
    assert baseline.sections == {"sysctl": {"mode": "observe"}, "files": {}}
    assert baseline.text == GOOD.decode()


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        (
            "name =",
            "nam =",
            "f:2: baseline.nam: unknown key; expected one of: name, version, summary, mode, offline",
        ),
        ('"factory"', '"Factory"', "f:2: baseline.name: expected `str` matching regex"),
        ('"factory"', '"a\\nb"', "f:2: baseline.name: expected `str` matching regex"),
        ('"factory"', '"a-"', "f:2: baseline.name: expected `str` matching regex"),
        ("version = 3", "version = 0", "f:3: baseline.version: expected `int` >= 1"),
        ("version = 3", "version = 3.0", "f:3: baseline.version: expected `int`, got `float`"),
        ("version = 3", "version = true", "f:3: baseline.version: expected `int`, got `bool`"),
        ("version = 3\n", "", "f:1: baseline.version: expected a value: this key is required"),
        ("= 3600", "= -1", "f:6: baseline.offline.isolate_after_s: expected `float` > 0"),
        ("= 3600", "= nan", "f:6: baseline.offline.isolate_after_s: expected `float`"),
        ("= 3600", "= inf", "f:6: baseline.offline.isolate_after_s: expected `float` <="),
        ("[files]", "[Files]", "f:10: Files: expected a section name"),
        ("[files]", '["fi les"]', "f:10: fi les: expected a section name"),
        ("[files]", "[[files]]", "f:10: files: expected `object`, got `array`"),
        ("[baseline]\n", "[base]\n", "f:5: baseline.name: expected a value: this key is required"),
    ],
)
def test_a09_one_wrong_key_or_type_refuses_the_whole(old: str, new: str, detail: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse_baseline(GOOD.replace(old.encode(), new.encode()), file="f")
    assert refused.value.code == "baseline.key"
    assert refused.value.detail.startswith(detail)


def test_no_head_and_no_bytes_are_refused() -> None:
    for untrusted in (b"", b"[files]\n"):
        with pytest.raises(Rejected, match=r"baseline\.key: baseline:1: baseline: expected a table"):
            parse_baseline(untrusted)


def test_a_key_outside_of_every_table_is_refused() -> None:
    with pytest.raises(Rejected, match="f:1: loose: expected `object`, got `int`"):
        parse_baseline(b"loose = 1\n" + GOOD, file="f")


def test_sections_are_bounded() -> None:
    with pytest.raises(Rejected, match=f"expected at most {MAX_SECTIONS} sections"):
        parse_baseline(GOOD + b"".join(b"[s%d]\n" % number for number in range(MAX_SECTIONS)))


def test_a_section_is_laid_over_its_type() -> None:
    class Sysctl(Struct, forbid_unknown_fields=True):
        mode: int

    with pytest.raises(Rejected, match=r"f:9: sysctl\.mode: expected `int`, got `str`"):
        section(parse_baseline(GOOD, file="f"), "sysctl", Sysctl)


@given(st.binary(max_size=300), st.integers(0, len(GOOD)))
def test_no_bytes_raise_anything_but_rejected(noise: bytes, place: int) -> None:
    for untrusted in (noise, GOOD[:place] + noise + GOOD[place:], GOOD[:place]):
        try:
            parse_baseline(untrusted)
        except Rejected as refused:
            assert refused.code in {"baseline.key", "baseline.syntax", "baseline.too-large"}
