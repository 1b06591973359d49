"""A disk is replaced, lost, cloned: the whole node with its own TPM against a real controller."""

from __future__ import annotations

import asyncio
import datetime
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from agent.tpm import TpmForeignKeys
from contract.certpath import Trust
from contract.devid import DevIdTrust
from contract.errors import Rejected
from controller.permissions import EVERYWHERE
from controller.policy import SitePolicy
from controller.roots import DeviceTrust
from tests.agent.test_identity import IDEVID, SIGNING, Bench, device_certificate
from tests.agent.wholenode import NODE, WholeNode, until
from tests.contract.vendor import Authority
from tests.controller.live import EVENT_LOG, Live, running
from tests.parts.swtpm import EkAuthority, SoftwareTpm


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("machine"))
    yield made
    made.tpm.close()


@pytest_asyncio.fixture
async def live(tmp_path: Path, bench: Bench) -> AsyncIterator[Live]:
    """A controller that believes the maker of these TPMs."""
    bench.tpm.reboot(EVENT_LOG.read_bytes())
    async with running(tmp_path, interval_s=0.5) as controller:
        trust(controller, bench.authority)
        yield controller


def trust(live: Live, authority: EkAuthority, maker: Authority | None = None) -> None:
    """Configure roots."""
    paths = (authority.root, authority.issuer)
    roots = [x509.load_pem_x509_certificate(path.read_bytes()) for path in paths]
    devids = Trust(certificates=[maker.root, maker.issuer] if maker else ())
    live.services.device_trust = DeviceTrust(ek=Trust(certificates=roots), devid=DevIdTrust(idevid=devids))


async def policy(live: Live, **what: object) -> None:
    """Set the site's policy."""
    wanted = SitePolicy(interval_s=0.5, **what)  # type: ignore[arg-type]
    await live.fleet.set_policy("factory", wanted, actor="tester", reason="test", now=time.time())


async def let_in(live: Live, node: WholeNode, *, replace: bool = False) -> None:
    """Enrol with a person's approval."""
    task = asyncio.create_task(node.enrol())

    async def waiting() -> str:
        items = (await live.fleet.list_enrolments(scope=EVERYWHERE, state="proved")).items
        return items[0].enrolment if items else ""

    await until("the claim", waiting)
    await live.fleet.approve(await waiting(), actor="ann", now=time.time(), replace=replace)
    await task


async def test_a_new_disk_in_the_same_machine_is_let_in_under_its_name(
    live: Live, bench: Bench, tmp_path: Path
) -> None:
    await policy(live, reenrol="same-ek")
    old = WholeNode(tmp_path / "old", live, bench.tpm)
    await let_in(live, old)
    assert (await live.fleet.node(NODE)).tpm.kind == "virtual"
    async with old.running():
        await until("a report", lambda: reported(live, 0.0))
    reference = (await live.fleet.node(NODE)).boot_reference_at
    await old.close()
    new = WholeNode(tmp_path / "new", live, bench.tpm)
    since = time.time()
    async with new.running():  # enrols by itself: nobody is asked
        await until("a report from the new disk", lambda: reported(live, since))
    assert new.keys().ak_public != old.keys().ak_public
    assert "enrolment.keys-replaced" in await live.kinds(NODE)
    with pytest.raises(Rejected, match=r"session\.certificate"):
        await live.fleet.check_certificate(NODE, old.identity().sha256)
    assert (await live.fleet.node(NODE)).boot_reference_at == reference
    # The old disk, put back: its certificate is void and its AK revoked.
    with pytest.raises(Rejected, match=r"enrolment\.ak-revoked|replaced"):
        await WholeNode(tmp_path / "old", live, bench.tpm).enrol()
    await new.close()


async def reported(live: Live, since: float) -> bool:
    """Whether a report has come after `since`."""
    at = (await live.fleet.node(NODE)).summary.last_report_at
    return at is not None and at > since


async def test_b04_by_default_a_person_is_asked_and_the_running_session_ends(
    live: Live, bench: Bench, tmp_path: Path
) -> None:
    old = WholeNode(tmp_path / "old", live, bench.tpm)
    await let_in(live, old)
    new = WholeNode(tmp_path / "new", live, bench.tpm)
    await let_in(live, new, replace=True)
    assert await new.certificate_is_bound(new.identity())
    assert not await old.certificate_is_bound(old.identity())
    await old.close()
    await new.close()


async def test_b12_a_cloned_disk_in_another_machine_gets_nowhere(
    live: Live, bench: Bench, tmp_path: Path
) -> None:
    await policy(live, reenrol="same-ek")
    node = WholeNode(tmp_path / "disk", live, bench.tpm)
    await let_in(live, node)
    await node.close()
    before = (await live.fleet.node(NODE)).ek_id
    shutil.copytree(tmp_path / "disk", tmp_path / "clone")
    other = SoftwareTpm.manufacture(tmp_path / "other", bench.authority)
    other.start()
    other.extend_from_log(EVENT_LOG.read_bytes())
    try:
        clone = WholeNode(tmp_path / "clone", live, other)
        since = time.time()
        # It holds the TLS key, so a session opens; the TPM signs nothing, so no report ever comes.
        async with clone.running():
            await until("its session", lambda: connected(live))
            await asyncio.sleep(2.0)
        assert not await reported(live, since)
        with pytest.raises(TpmForeignKeys):
            clone.tpm.quote(b"n", [0])
        with pytest.raises(Rejected, match="another TPM"):
            await clone.enrol()
        # Nor with keys of its own.
        shutil.rmtree(tmp_path / "clone" / "state")
        with pytest.raises(Rejected, match="another TPM"):
            await WholeNode(tmp_path / "clone", live, other).enrol()
        await clone.close()
    finally:
        other.close()
    assert (await live.fleet.node(NODE)).ek_id == before
    [incident] = (await live.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.kind, incident.nodes) == ("identity", [NODE])


async def connected(live: Live) -> bool:
    """Whether a session is open."""
    return (await live.fleet.node(NODE)).summary.connected


async def test_b07_a_virtual_tpm_is_refused_where_hardware_is_required(
    live: Live, bench: Bench, tmp_path: Path
) -> None:
    await policy(live, require_hardware_tpm=True)
    node = WholeNode(tmp_path / "disk", live, bench.tpm)
    with pytest.raises(Rejected, match="is a program"):
        await node.enrol()
    await node.close()
    assert "ek.virtual" in await live.kinds(NODE)
    # By way of the API, as people set it.
    body = {"policy": {"require_hardware_tpm": False, "interval_s": 0.5}, "reason": "a lab"}
    assert (await live.call("PUT", "/api/v1/sites/factory/policy", body, headers={"If-Match": "*"}))[0] == 200
    await let_in(live, node := WholeNode(tmp_path / "disk", live, bench.tpm))
    _, shown = await live.call("GET", f"/api/v1/nodes/{NODE}", role="viewer")
    assert shown["tpm"]["kind"] == "virtual"  # type: ignore[index]
    _, listed = await live.call("GET", "/api/v1/enrolments", role="viewer")
    assert {item["tpm_kind"] for item in listed["items"]} == {"virtual"}  # type: ignore[index, attr-defined]
    await node.close()


async def test_a_device_identity_is_a_claim_of_the_enrolment(
    live: Live, bench: Bench, tmp_path: Path
) -> None:
    maker = Authority(now=datetime.datetime.now(datetime.UTC))
    bench.tpm.reboot()
    bench.write(IDEVID, device_certificate(maker, bench.key(0x81020008, SIGNING), "SN-4711"))
    bench.tpm.reboot(EVENT_LOG.read_bytes())
    node = WholeNode(tmp_path / "disk", live, bench.tpm)
    await let_in(live, node)  # nobody vouches for that maker yet
    shown = (await live.fleet.node(NODE)).tpm
    assert shown.devids == () and shown.notes[0].startswith("devid.certificate-path: ")
    assert "devid.refused" in await live.kinds(NODE)
    trust(live, bench.authority, maker)
    await node.enrol()  # the same TPM with the same AK comes in by itself
    [device] = (await live.fleet.node(NODE)).tpm.devids
    assert (device.kind, device.serial) == ("idevid", "SN-4711")
    await node.close()
    bench.tpm.reboot()
    bench.clear(IDEVID)


async def test_b06_a_machine_that_nothing_proves_says_its_ek_id_itself_and_knocking_leaves_nothing_to_approve(
    live: Live, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live.services.device_trust = DeviceTrust(
        ek=Trust(certificates=()), devid=DevIdTrust(idevid=Trust(certificates=()))
    )
    node = WholeNode(tmp_path / "disk", live, bench.tpm)
    caplog.set_level("INFO", "ringfence")
    with pytest.raises(Rejected) as refused:
        await node.enrol()
    assert refused.value.code == "enrolment.ek-untrusted"
    said = refused.value.detail.rpartition("; the EK id of this machine is ")[2]
    assert f"the EK id of this machine is {said}" in caplog.messages
    assert (await live.fleet.list_enrolments(scope=EVERYWHERE)).items == []
    [told] = [event for event in await live.events() if event.kind == "enrolment.ek-untrusted"]
    assert told.detail["ek"] == said
    await live.fleet.preregister(said, site="factory", node=NODE, actor="tester", now=time.time())
    assert (await node.enrol()).site == "factory"
