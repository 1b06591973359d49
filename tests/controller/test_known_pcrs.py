"""PCRs that a session knows: left out of a report, remembered for that session alone, worth nothing but under a quote."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest_asyncio

from contract.messages import SESSION_PATH, Answer, Challenge, Report
from tests.controller.live import Live, answer_to, next_message, running
from tests.parts.simulator import Node, client_context


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


def without(report: Report, *pcrs: int) -> Report:
    """The same report with side data of these PCRs left out; of all of them where none is named."""
    kept = {pcr: value for pcr, value in report.pcrs.items() if pcrs and pcr not in pcrs}
    return msgspec.structs.replace(report, pcrs=kept)


async def told(node: Node, report: Report) -> tuple[str, list[str]]:
    """Tier and codes of what the controller makes of it."""
    answer = await answer_to(node, report)
    assert isinstance(answer, Answer), answer
    return answer.tier, [finding.code for finding in answer.findings]


async def test_what_was_answered_once_may_be_left_out_and_what_has_changed_may_not(live: Live) -> None:
    node = await live.node("press-1")
    assert await told(node, node.report()) == ("affirming", [])
    assert await told(node, without(node.report())) == ("affirming", [])
    node.pcrs = {**node.pcrs, 10: bytes(31) + b"\x07"}
    assert (await told(node, without(node.report())))[1] == ["quote.pcr-digest"]
    only = msgspec.structs.replace(node.report(), pcrs={10: node.pcrs[10]})
    assert await told(node, only) == ("affirming", [])


async def test_q09_a_session_begins_with_nothing_known(live: Live) -> None:
    node = await live.node("press-1")
    assert (await told(node, without(node.report(), 4)))[1] == ["quote.pcr-values"]
    assert await told(node, node.report()) == ("affirming", [])
    again = await live.again(node.identity)
    assert (await told(again, without(again.report())))[1] == ["quote.pcr-values"]


async def test_q09_what_no_quote_can_be_over_is_not_remembered(live: Live) -> None:
    node = await live.node("press-1")
    more = {pcr: bytes(32) for pcr in range(100, 111)}
    strange = msgspec.structs.replace(node.report(), pcrs={**node.pcrs, **more})
    assert (await told(node, strange))[1] == ["quote.pcr-values"]
    assert await told(node, node.report()) == ("affirming", [])


async def test_a_report_that_was_only_asked_for_more_counts_for_nothing(live: Live) -> None:
    node = await live.node("press-1")
    await told(node, node.report())
    before = node.pcrs
    node.pcrs = {**before, 9: bytes(31) + b"\x01"}
    asked = await answer_to(node, node.report())
    assert isinstance(asked, Answer) and asked.number == 0
    assert isinstance(await next_message(node), Challenge)
    node.pcrs = before
    assert await told(node, without(node.report())) == ("affirming", [])


async def test_another_protocol_is_refused(live: Live) -> None:
    node = await live.node("press-1", connect=False)
    async with live.http.ws_connect(
        live.node_url + SESSION_PATH, ssl=client_context(live.ca, node.identity), protocols=("ringfence.1",)
    ) as old:
        frame = await old.receive(timeout=10)
        assert (frame.type, frame.data) == (aiohttp.WSMsgType.CLOSE, 1002)
