"""Keeping evidence: what is kept, how much, for how long. On SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contract import bundle
from contract.errors import Rejected
from contract.messages import Drift
from contract.resultkey import ResultKey, load_result_key, verify_result
from controller.appraisal import Asked, parsed_body
from controller.fleet.evidence import Archive
from controller.policy import EvidenceLimits, FleetSettings
from controller.presented import Presented
from controller.standing import OVERDUE_INTERVALS
from controller.store import evidence as rows
from tests.parts.attester import CERTIFICATE_SHA256, Attester
from tests.parts.fleets import T0, FleetLab, drift, evidence

EVENT_LOG = (Path(__file__).resolve().parents[2] / "vectors/good-rsa/eventlog.bin").read_bytes()
LIMITS = EvidenceLimits(boots=2, changes=3, refused=2, days=10)
DAY = 86400.0


class Keeping:
    """A fleet that keeps evidence, and one archive over it."""

    def __init__(self, lab: FleetLab) -> None:
        self.lab = FleetLab(lab.store, FleetSettings(evidence=LIMITS))
        self.archive = Archive(
            lab.store, LIMITS, ResultKey(ec.generate_private_key(ec.SECP256R1())), issuer="here", build="x 1"
        )
        self.machines: dict[str, Attester] = {}
        self.number = 0

    async def node(self, name: str) -> None:
        """One more node."""
        await self.lab.enrol(name)
        self.machines[name] = Attester(name, EVENT_LOG)

    def presented(self, name: str, *, log: bool) -> Presented:
        """A report as it came."""
        machine = self.machines[name]
        nonce = machine.nonce()
        report = machine.report(nonce, Asked(event_log=log))
        return Presented(report, parsed_body(report), nonce, machine.record(), CERTIFICATE_SHA256)

    async def report(
        self, name: str, *, reset: int = 1, drifts: list[Drift] | None = None, now: float = T0
    ) -> None:
        """One report that verified."""
        self.number += 1
        what = evidence(name, number=self.number, now=now, reset=reset, drifts=drifts or [])
        presented = self.presented(name, log=True)
        await self.lab.fleet.take_report(name, what, now=now, presented=presented)

    async def kinds(self, name: str) -> list[str]:
        """Kinds of what is stored, newest first."""
        return [view.kind for view in (await self.archive.listed(name, after=None, limit=500)).items]

    async def blobs(self) -> int:
        """How many parts are stored."""
        query = rows.select(rows.func.count()).select_from(rows.evidence_blobs)
        return await self.lab.store.run(lambda tx: int(tx.execute(query).scalar_one()))


@pytest.fixture
async def keeping(lab: FleetLab) -> Keeping:
    made = Keeping(lab)
    await made.lab.site()
    await made.node("press-1")
    return made


async def test_r08_as_many_of_each_kind_are_kept_as_the_limits_say(keeping: Keeping) -> None:
    for n in range(6):
        await keeping.report("press-1", drifts=[drift("k", str(n))], now=T0 + n)
    for reset in range(2, 6):
        await keeping.report("press-1", reset=reset, now=T0 + 10 + reset)
    for n in range(4):
        presented = keeping.presented("press-1", log=False)
        await keeping.lab.fleet.reject_evidence(
            "press-1", Rejected(f"quote.x{n}", ""), now=T0 + 20 + n, presented=presented
        )
    found = await keeping.kinds("press-1")
    assert found == ["refused"] * 2 + ["boot"] * 2 + ["change"] * 3


async def test_a_flood_of_verdicts_of_one_node_takes_nothing_from_another(keeping: Keeping) -> None:
    await keeping.node("press-2")
    await keeping.report("press-2")
    for n in range(20):
        await keeping.report("press-1", drifts=[drift("k", str(n))], now=T0 + n)
    assert await keeping.kinds("press-2") == ["boot"]


async def test_what_nodes_share_is_stored_once(keeping: Keeping) -> None:
    await keeping.node("press-2")
    for name in ("press-1", "press-2"):
        await keeping.report(name)
        await keeping.report(name, reset=2)
    assert await keeping.blobs() == 2  # one firmware log, one policy


async def test_age_removes_all_but_the_newest_of_each_kind_and_then_what_nothing_names(
    keeping: Keeping,
) -> None:
    await keeping.report("press-1")
    await keeping.report("press-1", drifts=[drift("k", "1")], now=T0 + 1)
    await keeping.report("press-1", now=T0 + 2)
    assert await keeping.archive.prune(now=T0 + 9 * DAY) == 0
    assert await keeping.archive.prune(now=T0 + 11 * DAY) == 1
    assert await keeping.kinds("press-1") == ["change", "boot"]
    assert await keeping.blobs() == 2
    await keeping.lab.store.run(lambda tx: tx.execute(rows.delete(rows.evidence)))
    await keeping.archive.prune(now=T0 + 2 + rows.BLOB_REST_S)
    assert await keeping.blobs() == 2  # used until a day ago: whoever begins to name them now, keeps them
    await keeping.archive.prune(now=T0 + 3 + rows.BLOB_REST_S)
    assert await keeping.blobs() == 0


async def test_the_newest_result_holds_as_long_as_reports_say_the_same(keeping: Keeping) -> None:
    key = load_result_key(keeping.archive.key.pem)
    await keeping.report("press-1", now=T0)
    await keeping.report("press-1", now=T0 + 600)
    said = await keeping.archive.result("press-1", now=T0 + 601, nonce=None)
    result = verify_result(said.result.encode(), key, now=T0 + 601)
    assert (result.nbf, result.exp) == (T0, T0 + 600 + OVERDUE_INTERVALS * 60)
    await keeping.report("press-1", drifts=[drift("k", "1")], now=T0 + 700)
    oldest = (await keeping.archive.listed("press-1", after=None, limit=9)).items[-1]
    files = (await keeping.archive.bundle("press-1", oldest.id, now=T0 + 701)).files
    result = verify_result(files[bundle.RESULT], key, now=None)
    assert (result.nbf, result.exp, result.appraisal.appraised.holds.open) == (T0, T0 + 700, False)


async def test_r04_no_result_is_given_that_the_evidence_does_not_support(keeping: Keeping) -> None:
    await keeping.report("press-1")
    await keeping.lab.fleet.reject_evidence("press-1", Rejected("quote.magic", ""), now=T0 + 1)
    with pytest.raises(Rejected) as refused:
        await keeping.archive.result("press-1", now=T0 + 2, nonce=None)
    assert refused.value.code == "result.none"


async def test_damaged_evidence_is_told_and_never_a_crash(keeping: Keeping) -> None:
    await keeping.report("press-1")
    for packed in (b"", b"\x78\x9c", bundle.compress(b"\xc1"), bundle.compress(b"x") + b"more"):
        statement = rows.update(rows.evidence).values(packed=packed)
        await keeping.lab.store.run(lambda tx, statement=statement: tx.execute(statement))  # type: ignore[misc]
        with pytest.raises(Rejected) as refused:
            await keeping.archive.bundle("press-1", None, now=T0)
        assert refused.value.code == "evidence.damaged"


async def test_pages_go_on_where_the_one_before_ended(keeping: Keeping) -> None:
    for n in range(3):
        await keeping.report("press-1", drifts=[drift("k", str(n))], now=T0 + n)
    first = await keeping.archive.listed("press-1", after=None, limit=2)
    rest = await keeping.archive.listed("press-1", after=first.next, limit=2)
    assert [len(first.items), len(rest.items), rest.next] == [2, 1, None]
    for cursor in ("x", "-1", "1" * 19):
        with pytest.raises(Rejected) as refused:
            await keeping.archive.listed("press-1", after=cursor, limit=2)
        assert refused.value.code == "cursor.invalid"
