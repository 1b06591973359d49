"""Compiled policies: one for each baseline, for as long as a session uses it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from contract.directive import WantedBaseline
from contract.references import Expected, ExpectedValue
from controller import policybook
from controller.fleet import Fleet
from controller.policies import STRICTEST, Policies
from controller.policybook import PolicyBook
from controller.records import Sections, SessionRecord

ANNOUNCED = "[[1,100.0,null]]"


class Shelf(Fleet):
    """A fleet of which only the shelf of baselines is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def sections(self, name: str, version: int) -> Sections:
        """Every baseline has an [ima] section of its own."""
        self.asked.append(f"{name}/{version}")
        await asyncio.sleep(0)
        return Sections(boot=b"", ima=b'{"exclude":["/opt/models/%d/"]}' % version)

    async def expected(self, site: str, *, now: float) -> Expected:
        """One value."""
        return Expected(values=[ExpectedValue(stage="kernel", sha256=bytes(32))])


def record(version: int | None, *, site: str = "factory", announced: str = "") -> SessionRecord:
    """A node under this baseline."""
    wanted = None
    if version is not None:
        wanted = WantedBaseline(name="factory", version=version, sha256=f"{version:064x}")
    return SessionRecord(
        node="press-1",
        site=site,
        ek_public=b"",
        ak_public=b"",
        certificate_sha256=b"",
        interval_s=60.0,
        counters=None,
        boot=None,
        baseline=wanted,
        directive_number=0,
        announced=announced,
    )


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


async def test_a_baseline_is_compiled_once_for_all_sessions_also_when_they_come_at_once(shelf: Shelf) -> None:
    book = PolicyBook(shelf)
    found = await asyncio.gather(*(book.of(record(1), now=0.0) for _ in range(20)))
    assert {id(policies) for policies in found} == {id(found[0])} and shelf.asked == ["factory/1"]
    assert await book.of(record(None), now=0.0) is STRICTEST


async def test_what_is_in_use_is_never_compiled_again_however_many_there_are(shelf: Shelf) -> None:
    book = PolicyBook(shelf)
    used: list[Policies] = [await book.of(record(v), now=0.0) for v in range(3 * policybook.MAX_KEPT)]
    gc.collect()
    for version, policies in enumerate(used):
        assert await book.of(record(version), now=0.0) is policies
    assert len(shelf.asked) == len(used)


async def test_what_nobody_uses_is_let_go_of(shelf: Shelf) -> None:
    book = PolicyBook(shelf)
    for version in range(3 * policybook.MAX_KEPT):
        await book.of(record(version), now=0.0)
    gc.collect()
    assert len(book._known) == policybook.MAX_KEPT


async def test_announcements_make_other_policies_of_the_same_rules(shelf: Shelf) -> None:
    book = PolicyBook(shelf)
    before = await book.of(record(1, announced=ANNOUNCED), now=99.0)
    east = await book.of(record(1, announced=ANNOUNCED), now=100.0)
    assert before.expected.values == [] and east.expected.values != []
    assert before.fingerprint != east.fingerprint and before.ima is east.ima
    rules = before.ima
    del before
    gc.collect()
    assert await book.of(record(1, announced=ANNOUNCED), now=101.0) is east
    west = await book.of(record(1, site="west", announced=ANNOUNCED), now=101.0)
    assert west.ima is rules and shelf.asked == ["factory/1"]
