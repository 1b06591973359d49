"""The agent's client certificate against a real controller: renewed in time, replaced after it ran out or was forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.channel import Unanswered
from agent.dial import Dialler
from agent.enrol import Identity
from contract.errors import Rejected
from contract.messages import MAX_FRAME_BYTES, PROTOCOL, SESSION_PATH
from controller.store import nodes
from tests.agent.wholenode import NODE, WholeNode, until
from tests.controller.live import EVENT_LOG, Live, running
from tests.parts.swtpm import SoftwareTpm

SKEW_S = 300.0
"""Certificates begin so long before they are issued, for clocks that are behind."""


@pytest.fixture(scope="module")
def manufactured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    made = SoftwareTpm.manufacture(tmp_path_factory.mktemp("tpm"))
    yield made
    made.close()


@pytest.fixture
def machine(manufactured: SoftwareTpm) -> SoftwareTpm:
    manufactured.reboot(EVENT_LOG.read_bytes())
    return manufactured


@pytest_asyncio.fixture
async def node(
    tmp_path: Path, machine: SoftwareTpm, request: pytest.FixtureRequest
) -> AsyncIterator[WholeNode]:
    """An enrolled node; the parameter is for how many seconds its certificates are good."""
    async with running(tmp_path, interval_s=0.5, certificate_s=request.param) as live:
        made = WholeNode(tmp_path / "disk", live, machine)
        await made.expected(node=NODE)
        await made.enrol()
        try:
            yield made
        finally:
            await made.close()


async def reported(live: Live, since: float) -> bool:
    """Whether a report has come after `since`."""
    at = (await live.fleet.node(NODE)).summary.last_report_at
    return at is not None and at > since


def test_it_is_asked_for_at_two_thirds_of_its_life() -> None:
    identity = Identity(sha256=bytes(32), not_before=1000.0, not_after=1900.0)
    assert identity.renew_at() == 1600.0


@pytest.mark.parametrize("node", [(SKEW_S + 4) * 1.5 - SKEW_S], indirect=True)
async def test_a_certificate_is_renewed_at_two_thirds_of_its_life_and_the_new_one_used(
    node: WholeNode,
) -> None:
    """Its life is such that two thirds are over four seconds after it was issued."""
    first = node.identity()
    issued = first.not_before + SKEW_S
    assert 3.0 <= first.renew_at() - issued <= 5.0
    async with node.running():
        await until("a report under the first", lambda: reported(node.live, 0.0))
        assert await node.certificate_is_bound(first)
        await until("a new certificate", lambda: node.identity().sha256 != first.sha256)
        assert time.time() >= first.renew_at()
        second = node.identity()
        assert second.not_after > first.not_after
        await until("a session with it", lambda: node.certificate_is_bound(second))
        since = time.time()
        await until("a report under the second", lambda: reported(node.live, since))
    with pytest.raises(Rejected, match=r"session\.certificate"):
        await node.live.fleet.check_certificate(NODE, first.sha256)
    assert (await node.live.kinds(NODE)).count("certificate.renewed") >= 1


@pytest.mark.parametrize("node", [3.0], indirect=True)
async def test_an_expired_certificate_makes_the_node_enrol_again_with_the_same_ak(node: WholeNode) -> None:
    first, keys = node.identity(), node.keys()
    await asyncio.sleep(max(0.0, first.not_after - time.time()) + 1.0)
    dialler = Dialler(node.config, node.store)
    async with dialler.client(node.enrolled(), keys) as http:
        with pytest.raises(Unanswered) as caught:
            async with http.websocket(SESSION_PATH, subprotocol=PROTOCOL, max_bytes=MAX_FRAME_BYTES):
                pass
    # A node whose clock is behind learns it from the controller's.
    assert await dialler.turned_away(caught.value, first.not_after)
    assert not await dialler.turned_away(caught.value, time.time() + 3600)
    since = time.time()
    async with node.running():
        await until("a report again", lambda: reported(node.live, since))
    assert node.identity().sha256 != first.sha256
    assert node.keys() == keys
    assert "enrolment.keys-replaced" not in await node.live.kinds(NODE)
    [by] = {
        line.actor for line in await node.live.fleet.list_audit(limit=100) if line.act == "enrolment.approved"
    } - {"EK list"}
    assert by == "the same TPM with the same AK"


@pytest.mark.parametrize("node", [3600.0], indirect=True)
async def test_a_certificate_that_the_controller_has_forgotten_is_replaced(node: WholeNode) -> None:
    """A database from last week: it knows the node, and another certificate."""
    first = node.identity()

    def forget(tx: object) -> None:
        nodes.set_certificates(tx, NODE, current=b"\1" * 32, following=None, not_after=time.time() + 3600)  # type: ignore[arg-type]

    await node.live.fleet._store.run(forget)
    async with node.running():
        await until("a report again", lambda: reported(node.live, 0.0))
        assert node.identity().sha256 != first.sha256
        assert await node.certificate_is_bound(node.identity())


@pytest.mark.parametrize("node", [3600.0], indirect=True)
async def test_other_failures_are_not_about_the_certificate(node: WholeNode) -> None:
    dialler = Dialler(node.config, node.store)
    await node.live.controller.stop()
    for error in (OSError("no route"), Unanswered(), TimeoutError()):
        assert not await dialler.turned_away(error, 0.0)
