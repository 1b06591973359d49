"""The IMA log over real TLS and WebSocket: only new lines, chunk by chunk, from the start after a signed reset."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest_asyncio

from contract.messages import MAX_IMA_CHUNK_BYTES, Answer, Challenge, Report
from tests.controller.live import Live, answer_to, next_message, running
from tests.parts import imalog
from tests.parts.simulator import Node, replayed
from tests.parts.softtpm import SoftTpm

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
EVENT_LOG = (VECTORS / "good-rsa/eventlog.bin").read_bytes()
PCRS = replayed(EVENT_LOG)
TOOL = hashlib.sha256(b"tool").digest()
BOOT = imalog.of_boot(PCRS, {"/usr/bin/tool": TOOL})
IMA = f'[ima]\nexclude = ["/opt/models/"]\nmax_reports = 4\n[ima.allow]\n"/usr/bin/tool" = ["sha256:{TOOL.hex()}"]\n'


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        await controller.assign(2, extra=IMA)
        yield controller


async def measuring(live: Live, log: bytes = BOOT) -> Node:
    """A connected node whose kernel has measured this log."""
    node = await live.node("press-1")
    node.measure(log)
    return node


def reboot(node: Node, log: bytes) -> None:
    """Switch off and on."""
    node.tpm = SoftTpm(node.identity.ek, node.identity.ak, resets=node.tpm._resets + 1)
    node.pcrs, node.ima_log = PCRS, None
    node.measure(log)


async def told(node: Node, report: Report | None = None) -> Answer:
    """The answer to one report."""
    answer = await answer_to(node, report or node.report())
    assert isinstance(answer, Answer), answer
    return answer


async def asked_again(node: Node, report: Report | None = None) -> Answer:
    """The demand for more that one report brings; the nonce of its Challenge is taken."""
    answer = await told(node, report)
    assert (answer.number, answer.tier) == (0, "none")
    assert isinstance(await next_message(node), Challenge)
    return answer


def codes(answer: Answer) -> list[str]:
    return [finding.code for finding in answer.findings]


async def test_only_new_lines_travel(live: Live) -> None:
    node = await measuring(live)
    first = node.report()
    assert first.ima_log == BOOT and first.event_log is not None
    answer = await told(node, first)
    assert (answer.tier, answer.ima_offset) == ("affirming", len(BOOT))
    assert node.report().ima_log == b""
    line = imalog.record("/usr/bin/tool", TOOL)
    node.measure(line)
    report = node.report()
    assert report.ima_log == line
    assert (await told(node, report)).tier == "affirming"
    # What is agreed outlives the session, and a restart of the controller: it stands with the node.
    again = await live.again(node.identity)
    assert again.ima_offset == len(BOOT + line)
    record = await live.fleet.session("press-1")
    assert record.ima is not None and record.ima.lines == 3


async def test_a_file_that_nothing_allows_is_told_isolated_for_and_stays_told(live: Live) -> None:
    node = await measuring(live)
    await told(node)
    node.measure(imalog.record("/usr/bin/rootkit", bytes(32)))
    answer = await told(node)
    assert (answer.tier, codes(answer)) == ("contraindicated", ["ima.unknown-file"])
    assert "/usr/bin/rootkit" in answer.findings[0].detail
    assert "site.isolated" in await live.kinds() or "node.isolated" in await live.kinds()
    assert "ima.unknown-file" in codes(await told(node))


async def test_nothing_is_asked_where_no_policy_wants_it(live: Live) -> None:
    await live.assign(3)
    node = await live.node("press-1")
    node.measure(BOOT)
    assert node.ima_offset is None and node.report().ima_log is None
    assert (await told(node)).tier == "affirming"


async def test_a_new_policy_wants_the_log_from_the_beginning(live: Live) -> None:
    node = await measuring(live, BOOT + imalog.record("/usr/bin/other", TOOL))
    assert codes(await told(node)) == ["ima.other-path"]
    more = f'"/usr/bin/other" = ["sha256:{TOOL.hex()}"]\n'
    await live.assign(3, extra=IMA + more)
    # It reports over the old demand, and is sent back for the whole log.
    answer = await asked_again(node)
    assert (answer.event_log_wanted, answer.ima_offset) == (False, 0)
    assert "ima.other-path" not in codes(await told(node))


async def test_q17_after_a_reboot_the_logs_come_from_the_beginning(live: Live) -> None:
    node = await measuring(live)
    await told(node)
    reboot(node, BOOT + imalog.record("/usr/bin/tool", TOOL))
    answer = await asked_again(node)
    assert (answer.event_log_wanted, answer.ima_offset) == (True, 0)
    answer = await told(node)
    assert (answer.tier, answer.ima_offset) == ("affirming", len(node.ima_log or b""))
    assert "node.rebooted" in await live.kinds("press-1")


async def test_q17_m05_an_offset_kept_over_a_reboot_is_refused_and_recorded(live: Live) -> None:
    node = await measuring(live)
    kept = (await told(node)).ima_offset
    reboot(node, BOOT)
    await asked_again(node)
    report = msgspec.structs.replace(node.report(ima_offset=kept), ima_log=b"")
    assert codes(await told(node, report)) == ["ima.offset"]
    assert "evidence.rejected" in await live.kinds("press-1")


async def test_m05_an_offset_past_the_end_is_refused(live: Live) -> None:
    node = await measuring(live)
    await told(node)
    assert codes(await told(node, node.report(ima_offset=2**40))) == ["ima.offset"]
    # The next one is asked for where agreement ends.
    assert node.ima_offset == len(BOOT)


async def test_q21_a_chunk_changed_after_the_quote_is_found(live: Live) -> None:
    node = await measuring(live)
    report = node.report()
    changed = BOOT.replace(TOOL, hashlib.sha256(b"another").digest())
    answer = await told(node, msgspec.structs.replace(report, ima_log=changed))
    assert (answer.tier, codes(answer)) == ("contraindicated", ["ima.mismatch"])
    assert answer.ima_offset == 0


def long_log(size: int) -> bytes:
    """A log of at least so many bytes that the policy has nothing against."""
    line = imalog.record("/opt/models/vision", hashlib.sha256().digest(), bytes(2000))
    return BOOT + line * (size // len(line) + 1)


async def test_a_long_log_travels_in_chunks_and_counts_as_one_report(live: Live) -> None:
    log = long_log(2 * MAX_IMA_CHUNK_BYTES + 1000)
    node = await measuring(live, log)
    chunks = 0
    while True:
        report = node.report()
        assert report.ima_log is not None
        chunks += 1
        if len(report.ima_log) < MAX_IMA_CHUNK_BYTES:
            break
        answer = await asked_again(node, report)
        assert answer.ima_offset is not None and answer.ima_offset > len(log) * (chunks - 1) // 3
        assert (await live.fleet.node("press-1")).summary.last_report_at is None
    answer = await told(node, report)
    assert (answer.tier, answer.ima_offset, chunks) == ("affirming", len(log), 3)


async def test_m10_a_log_that_never_catches_up_is_a_finding(live: Live) -> None:
    node = await measuring(live, long_log(6 * MAX_IMA_CHUNK_BYTES))
    node.pcrs = {**node.pcrs, imalog.PCR: bytes(31) + b"x"}
    for _ in range(4):
        await asked_again(node)
    answer = await told(node)
    assert answer.tier == "contraindicated" and "ima.never-matches" in codes(answer)


async def test_garbage_for_a_log_is_a_finding_and_the_session_goes_on(live: Live) -> None:
    node = await measuring(live)
    for number, garbage in enumerate((b"\xff" * 500, b"\0" * 500, BOOT[:-1], b"", BOOT + b"\n")):
        answer = await told(node, msgspec.structs.replace(node.report(), ima_log=garbage))
        if garbage == BOOT + b"\n":  # after the line at which PCR 10 is met nothing is looked at
            assert codes(answer) == [], number
        else:
            assert answer.tier == "contraindicated" and codes(answer)[0].startswith("ima."), number
    assert codes(await told(node)) == []


async def test_what_the_log_claims_is_kept_with_the_node(live: Live) -> None:
    node = await measuring(live)
    await told(node)
    status, answer = await live.call("GET", "/api/v1/nodes/press-1")
    assert status == 200
    claims = answer["boot_claims"]
    assert isinstance(claims, dict)
    assert claims["secure_boot"] is False and claims["kernel_command_line"].startswith("/boot/vmlinuz ")
    assert (answer["ima_lines"], answer["ima_bytes"]) == (2, len(BOOT))
