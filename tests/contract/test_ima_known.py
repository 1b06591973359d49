"""Lines that were judged before are read by a shorter way (`contract.imawalk.remembered`). It answers as the long one."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.ima import ImaResult, ImaState
from contract.imapolicy import ImaPolicy, pack
from contract.imarules import ImaRules
from contract.imawalk import remembered
from contract.messages import PackageChange
from tests.contract.forge import PCRS
from tests.contract.imaforge import Log, judged, sha256

LONG = "/usr/lib/" + "x" * 300
"""More than the low byte of a length can tell."""
PATHS = [f"/usr/bin/{n}" for n in range(6)] + [LONG]
FILES = {path.encode(): sha256(path.encode()) for path in PATHS}
POLICY = ImaPolicy(package=[pack("base", "1.0-1", FILES)], boot_aggregate="optional", violations="warn")
NEW = "/opt/new"
UPGRADE = PackageChange(name="base", after="2.0-1", files={NEW: sha256(b"new")})
KINDS = ["known", "known", "known", "long", "new", "violation", "buffer", "other template", "other pcr"]

Lines = list[tuple[str, int]]


def log_of(lines: Lines, template: str, *, old: bool = False) -> Log:
    log = Log(None if old else PCRS, template)
    if old:
        log.file("boot_aggregate", b"1" * 20, algorithm="sha1")
    for kind, number in lines:
        path = LONG if kind == "long" else PATHS[number]
        if kind == "new":
            log.file(NEW, sha256(b"new"))
        elif kind == "violation":
            log.violation("/var/log/wtmp")
        elif kind == "buffer":
            log.buffer(".ima", b"key")
        elif kind == "other pcr":
            log.line(log.data(path.encode(), FILES[path.encode()]), pcr=11)
        else:
            other = "ima-ng" if template == "ima-sig" else "ima-sig"
            log.template = other if kind == "other template" else template
            log.file(path, FILES[path.encode()])
            log.template = template
    return log


def all_known(log: Log) -> ImaRules:
    """Return rules that remember whatever of the log can be remembered."""
    rules = ImaRules(POLICY)
    for quoted in (log.values[-1], log.padded[-1]):
        judged(rules, log, quoted)
    return rules


@st.composite
def reports(draw: st.DrawFn) -> tuple[Log, list[bytes], int, int, int]:
    """Return a log, its chain of PCR 10, how many lines were agreed, at which the quote is, and how many bytes come."""
    lines = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5)), min_size=1, max_size=12))
    old = draw(st.booleans())
    log = log_of(lines, draw(st.sampled_from(["ima-sig", "ima-ng"])), old=old)
    agreed = draw(st.integers(1, len(log.lines)))
    quoted = draw(st.integers(agreed, len(log.lines)))
    least = len(b"".join(log.lines[:agreed]))
    size = max(least, len(log.raw) - draw(st.sampled_from([0, 0, 0, 1, 40, 150])))
    return log, log.padded if old else log.values, agreed, quoted, size


def answers(
    log: Log, chain: list[bytes], agreed: int, quoted: int, size: int, *, quick: bool, told: bool
) -> list[ImaResult]:
    """Return what two reports come to: of the lines that were agreed, and of those that came then."""
    begin = len(b"".join(log.lines[:agreed]))
    rules = all_known(log) if quick else ImaRules(POLICY)
    first = judged(rules, log.raw[:begin], chain[agreed])
    again = rules if quick else ImaRules(POLICY)
    state, changes = first.pending or first.state, [UPGRADE] if told else []
    return [first, judged(again, log.raw[state.offset : size], chain[quoted], state=state, changes=changes)]


@given(reports(), st.booleans())
@example(report=(log_of([("new", 0), ("known", 1)], "ima-sig"), [], 2, 3, 10_000), told=True)
@example(report=(log_of([("known", 0), ("known", 1)], "ima-sig", old=True), [], 2, 3, 10_000), told=False)
@settings(max_examples=400, deadline=None)
def test_m01_m02_the_shorter_way_answers_as_the_long_one(
    report: tuple[Log, list[bytes], int, int, int], told: bool
) -> None:
    log, chain, agreed, quoted, size = report
    chain = chain or (log.padded if b"sha1:" in log.lines[0] else log.values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contract.ima.remembered", lambda _known, _untrusted, start, _quoted: start)
        long = answers(log, chain, agreed, quoted, size, quick=False, told=told)
    assert answers(log, chain, agreed, quoted, size, quick=True, told=told) == long
    for result in long:
        if result.caught_up:
            assert result.state.offset == len(b"".join(log.lines[: result.state.lines]))
            assert result.unproved_bytes >= 0


@pytest.mark.parametrize("templates", [("ima-ng", "ima-sig"), ("ima-sig", "ima-ng")])
def test_m05_a_known_last_line_of_another_template_ends_where_it_ends(templates: tuple[str, str]) -> None:
    """Its length is read at the wrong place, and the slice that goes past the end is the whole line all the same."""
    log = log_of([("known", 0), ("other template", 1)], templates[0])
    rules = all_known(log)
    for agreed in (0, 1, 2):
        state = judged(rules, b"".join(log.lines[:agreed]), log.values[agreed]).state if agreed else None
        result = judged(rules, b"".join(log.lines[agreed:]), log.value, state=state)
        assert (result.caught_up, result.state.offset, result.unproved_bytes) == (True, len(log.raw), 0)


KNOWN: Lines = [("known", 0), ("known", 1), ("known", 2)]


@pytest.mark.parametrize("template", ["ima-sig", "ima-ng"])
def test_known_lines_are_read_up_to_the_quoted_value_and_no_further(template: str) -> None:
    log = log_of(KNOWN, template)
    known, lines = all_known(log).known, log.lines
    first, rest = len(lines[0]), log.raw[len(lines[0]) :]
    start = 0, 1, log.values[1]
    assert remembered(known, rest, start, log.values[4]) == (len(rest), 4, log.values[4])
    assert remembered(known, rest, start, log.values[3]) == (len(rest) - len(lines[3]), 3, log.values[3])
    assert remembered(known, rest, start, b"q" * 32) == (len(rest), 4, log.values[4])
    assert remembered(known, rest, start, log.values[1]) == start
    assert remembered(known, b"", start, b"q" * 32) == start
    assert remembered(known, log.raw, (first, 1, log.values[1]), log.values[4])[1] == 4


@pytest.mark.parametrize("stop", ["new", "long", "violation", "buffer", "other template", "other pcr", "cut"])
def test_the_shorter_way_ends_before_what_is_not_known(stop: str) -> None:
    log = log_of([*KNOWN, ("known" if stop == "cut" else stop, 3), *KNOWN], "ima-sig")
    rest = log.raw[len(log.lines[0]) :]
    three = len(b"".join(log.lines[1:4]))
    if stop == "cut":
        rest = rest[: three + len(log.lines[4]) - 1]
    assert remembered(all_known(log).known, rest, (0, 1, log.values[1]), log.value) == (
        three,
        4,
        log.values[4],
    )


def test_the_first_line_of_a_boot_is_never_taken_from_memory() -> None:
    """m04: a log that begins with a file that is allowed begins with no aggregate of this boot."""
    rules = all_known(log_of(KNOWN, "ima-sig"))
    log = Log(None).file(PATHS[0], FILES[PATHS[0].encode()])
    result = judged(rules, log)
    assert [finding.code for finding in result.findings] == ["ima.boot-aggregate"]
    assert result.state != ImaState()
