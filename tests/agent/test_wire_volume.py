"""What an agent at rest says: known PCRs are left out, and a day of reports keeps to its promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.binding import QUOTED_PCRS
from contract.messages import Report
from contract.wire import encode
from controller.session import Session
from tests.agent.wholenode import NODE, WholeNode, until
from tests.controller.live import EVENT_LOG, running
from tests.parts.swtpm import SoftwareTpm

_AROUND_BYTES = 8 + 22 + 66
"""WebSocket head and mask, TLS 1.3 record, Ethernet, IPv4 and TCP with time stamps."""
_ANSWER_BYTES = 128 + 4 + 22 + 66
_ACKNOWLEDGED_BYTES = 66
_REPORTS_A_DAY = 86400 / (60 * 0.95)
_PROMISE_BYTES = 2_000_000


async def test_steady_reports_leave_out_what_is_known_and_a_day_of_them_is_less_than_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Report] = []
    judge = Session.appraised

    async def noted(session: Session, report: Report, *rest: object) -> object:
        came.append(report)
        return await judge(session, report, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "appraised", noted)
    machine = SoftwareTpm.manufacture(tmp_path / "tpm")
    machine.reboot(EVENT_LOG.read_bytes())
    async with running(tmp_path, interval_s=0.5) as live:
        node = WholeNode(tmp_path / "disk", live, machine)
        await node.expected(node=NODE)
        await node.enrol()
        async with node.running():
            await until("four reports", lambda: len(came) >= 4)
        summary = (await live.fleet.node(NODE)).summary
        await node.close()
    machine.close()
    assert summary.tier == "affirming"
    assert set(came[0].pcrs) == QUOTED_PCRS
    assert came[-1].pcrs == {}
    steady = len(encode(came[-1])) + _AROUND_BYTES + _ANSWER_BYTES + 2 * _ACKNOWLEDGED_BYTES
    assert steady * _REPORTS_A_DAY < _PROMISE_BYTES
