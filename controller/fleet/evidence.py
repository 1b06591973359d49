"""Use cases of stored evidence: what is worth keeping, for how long, and what is made of it when somebody asks.

Kept are the first attestation of each boot, every change of the verdict, and evidence that was refused; never a
report that says what the one before said. Signing is left to whoever reads: a result is made of stored facts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from contract.bootpolicy import BootPolicy
from contract.bundle import (
    Bundle,
    Stored,
    compress,
    expand,
    files_of,
    pack,
    policy_document,
    reference_pcrs,
    sha256,
    unpack,
)
from contract.errors import Rejected
from contract.result import Area, Facts, Kind, Weighed, result_of, tiers
from contract.resultkey import ResultKey
from contract.wire import decode, encode
from controller import judge
from controller.evidence_records import BundleView, EvidenceView, ResultView
from controller.fleet.paging import cut, number
from controller.judge import Appraisal
from controller.policy import EvidenceLimits
from controller.presented import Presented
from controller.records import Evidence, Page
from controller.standing import OVERDUE_INTERVALS
from controller.store import Store, Transaction, boots, nodes, sites
from controller.store import evidence as rows
from controller.store.evidence import EvidenceRow
from controller.store.nodes import NodeRow

MAX_FACTS_BYTES = 1024 * 1024
_FIRMWARE_PCRS = frozenset({0, 1, 2, 3})
_MAX_POLICIES = 256


class _Policy(NamedTuple):
    """What is wanted of a policy's text, which may be megabytes, without reading it again."""

    sha256: bytes
    firmware: bool
    ima: bool


_policies: dict[str, _Policy] = {}
"""By the baseline's SHA-256: the same content gives the same."""


# -- keeping (inside the transaction that judges) --------------------------------------------------------


class Verdict(NamedTuple):
    """What was made of evidence."""

    appraisal: Appraisal
    evidence: Evidence | None
    """None: it did not verify."""
    lasting: Collection[str] = ()
    """Keys of the suspicions after it."""


def keep(
    tx: Transaction,
    limits: EvidenceLimits,
    row: NodeRow,
    presented: Presented,
    verdict: Verdict,
    *,
    now: float,
) -> int | None:
    """Store evidence that is the first of its boot, whose verdict differs from the one before, or that was refused anew;
    return its id, None where none was stored.

    `row` is the node before this report. Called once the boot has been remembered: the accepted boot that is stored beside
    is the one that holds from now on.
    """
    before, appraisal = row.state, verdict.appraisal
    known = {*before.suspicions, *before.muted}
    if verdict.evidence is None:
        if {suspicion.key for suspicion in appraisal.suspicions} <= known:
            return None
        kind: Kind = "refused"
    elif before.boot is None or before.boot.reset != verdict.evidence.boot.reset:
        kind = "boot"
    elif appraisal.tier != row.tier or set(verdict.lasting) != known:
        kind = "change"
    else:
        return None
    parts = [(digest, packed) for digest, packed in presented.prepare() if digest]
    for digest, packed in parts:
        rows.add_blob(tx, digest, packed, now)
    stored = presented.stored(reference_pcrs(boots.reference(tx, row.node)))
    facts = _facts_of(tx, row, presented, verdict, kind=kind, stored=stored, now=now)
    made = rows.add(
        tx,
        EvidenceRow(
            id=0,
            node=row.node,
            kind=kind,
            at=now,
            until=None,
            reset=facts.reset,
            tier=appraisal.tier,
            facts=encode(facts),
            event_log_sha256=facts.event_log_sha256,
            ima_log_sha256=facts.ima_log_sha256,
            policy_sha256=facts.policy_sha256,
            packed=pack(stored),
        ),
    )
    rows.keep_newest(tx, row.node, kind, limits.of(kind))
    return made


def _facts_of(
    tx: Transaction,
    row: NodeRow,
    presented: Presented,
    verdict: Verdict,
    *,
    kind: Kind,
    stored: Stored,
    now: float,
) -> Facts:
    """Return what a result of this evidence will say; stores the policy that it rests on."""
    appraisal, evidence = verdict.appraisal, verdict.evidence
    policy_sha256, judged = _policy(tx, presented, evidence, now)
    (event_log_sha256, _), _ = presented.prepare()
    return Facts(
        node=row.node,
        site=row.site,
        kind=kind,
        at=now,
        tier=appraisal.tier,
        verified=evidence is not None,
        findings=[Weighed(finding=f, tier=judge.weight(f.code)) for f in appraisal.findings],
        judged=judged if evidence is not None else [],
        ek_trust=row.ek_trust,
        ek_sha256=row.ek_id,
        ak_name=row.ak_name,
        nonce=presented.nonce,
        quote_sha256=sha256(stored.quote),
        signature_sha256=sha256(stored.signature),
        body_sha256=sha256(stored.body),
        event_log_sha256=event_log_sha256 or stored.event_log_sha256,
        ima_log_sha256=stored.ima_log_sha256,
        ima_offset=stored.ima_offset,
        policy_sha256=policy_sha256,
        certificate_sha256=presented.certificate_sha256,
        baseline=presented.body.baseline,
        announced=[] if evidence is None else evidence.announced,
        boot_id=presented.body.boot_id,
        reset=_reset(row, evidence),
    )


def _reset(row: NodeRow, evidence: Evidence | None) -> int:
    if evidence is not None:
        return evidence.counters.reset
    return row.state.counters.reset if row.state.counters else 0


def _policy(
    tx: Transaction, presented: Presented, evidence: Evidence | None, now: float
) -> tuple[bytes, list[Area]]:
    """Store the policy in force, once for all nodes; return its SHA-256 and the areas that it has judged."""
    baseline = presented.record.baseline
    key = "" if baseline is None else baseline.sha256
    known = _policies.get(key)
    if known is None or not rows.touch(tx, known.sha256, now):
        sections = None if baseline is None else sites.sections(tx, baseline.name, baseline.version)
        boot, ima = (b"", b"") if sections is None else (sections.boot, sections.ima)
        document = policy_document(boot, ima)
        pcrs = (msgspec.json.decode(boot, type=BootPolicy) if boot else BootPolicy()).pcrs
        known = _Policy(sha256(document), bool(_FIRMWARE_PCRS.intersection(pcrs)), bool(ima))
        rows.add_blob(tx, known.sha256, compress(document), now)
        if len(_policies) >= _MAX_POLICIES:
            _policies.clear()
        _policies[key] = known
    judged: list[Area] = ["boot"]
    if known.firmware:
        judged.append("firmware")
    if known.ima and evidence is not None and evidence.ima is not None:
        judged.append("runtime")
    if presented.body.baseline is not None:
        judged.append("configuration")
    return known.sha256, judged


# -- reading ---------------------------------------------------------------------------------------------


class Archive:
    """Stored evidence and the results made of it."""

    def __init__(
        self, store: Store, limits: EvidenceLimits, key: ResultKey, *, issuer: str, build: str
    ) -> None:
        """`issuer`: the controller's name; `build`: program and version, as `ear_verifier_id` has it."""
        self._store = store
        self._limits = limits
        self.key = key
        self._issuer = issuer
        self._build = build

    async def listed(self, node: str, *, after: str | None, limit: int) -> Page[EvidenceView]:
        """Evidence of one node, newest first. Raises Rejected `cursor.invalid`."""
        before = number(after)
        found = await self._store.run(lambda tx: rows.page(tx, node, before=before, limit=limit + 1))
        return cut([_view(row) for row in found], limit, lambda view: str(view.id))

    async def bundle(self, node: str, id_: int | None, *, now: float) -> BundleView:
        """One piece of evidence as files, the newest when no id is given. Raises Rejected `evidence.unknown`."""
        row, parts, until = await self._store.run(lambda tx: _whole(tx, node, id_))
        token = self._sign(row, until, now, None)
        return await asyncio.to_thread(self._bundle, row, parts, token)

    async def result(self, node: str, *, now: float, nonce: bytes | None) -> ResultView:
        """The result in force, signed now. Raises Rejected `node.unknown`, `result.none` when nothing that is
        stored supports it."""

        def read(tx: Transaction) -> tuple[EvidenceRow, float]:
            row, of_node = rows.get(tx, node, None), nodes.load(tx, node)
            if of_node is None:
                raise Rejected("node.unknown", node[:63])
            if row is None:
                raise Rejected("result.none", f"no evidence of {node[:63]} is stored")
            if row.tier != of_node.tier:
                raise Rejected(
                    "result.none", f"{node}: the verdict has changed by something that was not stored"
                )
            return row, _until(row, of_node)

        row, until = await self._store.run(read)
        return ResultView(node=node, result=self._sign(row, until, now, nonce))

    async def prune(self, *, now: float) -> int:
        """Remove what is too old; return how many pieces of evidence went."""
        older_than = now - self._limits.days * 86400.0
        gone = 0
        while True:
            some = await self._store.run(lambda tx: rows.prune(tx, older_than=older_than, now=now))
            gone += some
            if some < rows.PRUNED_AT_ONCE:
                return gone

    def _sign(self, row: EvidenceRow, until: float, now: float, nonce: bytes | None) -> str:
        result = result_of(
            _facts(row),
            issuer=self._issuer,
            build=self._build,
            issued_at=now,
            until=until,
            still_holds=row.until is None,
            nonce=nonce,
        )
        return self.key.sign(result)

    def _bundle(self, row: EvidenceRow, parts: list[bytes | None], token: str) -> BundleView:
        event_log, policy, *lines = [None if part is None else expand(part) for part in parts]
        if policy is None:
            raise Rejected("evidence.damaged", f"{row.node} {row.id}: its policy is gone")
        stored = unpack(row.packed)
        ima_log = b"".join(line for line in lines if line)
        own = len(lines[-1] or b"") if lines else 0
        files = files_of(
            Bundle(
                stored=stored,
                event_log=event_log,
                ima_log=ima_log,
                ima_offset=stored.ima_offset + own - len(ima_log),
                policy=policy,
                token=token,
                result_key=self.key.pem,
            )
        )
        return BundleView(id=row.id, node=row.node, files=files)


def _whole(tx: Transaction, node: str, id_: int | None) -> tuple[EvidenceRow, list[bytes | None], float]:
    """Return a row, its parts (firmware log, policy, then IMA lines from the earliest that lead up to its own)."""
    row = rows.get(tx, node, id_)
    if row is None:
        raise Rejected("evidence.unknown", f"{node[:63]}: {'none is stored' if id_ is None else id_}")
    parts = [rows.blob(tx, row.event_log_sha256), rows.blob(tx, row.policy_sha256)]
    of_node = nodes.load(tx, node)
    return row, [*parts, *_lines(tx, row)], _until(row, of_node)


def _lines(tx: Transaction, row: EvidenceRow) -> list[bytes | None]:
    """Return the packed IMA lines of this boot up to and with this row's, as far back as they are stored without a gap."""
    own = _facts(row)
    chain = [rows.blob(tx, row.ima_log_sha256) if row.ima_log_sha256 else None]
    begins = own.ima_offset
    for earlier in reversed(rows.of_boot(tx, row.node, row.reset, up_to=row.id - 1)):
        if begins == 0 or not earlier.ima_log_sha256:
            continue
        facts, packed = _facts(earlier), rows.blob(tx, earlier.ima_log_sha256)
        if packed is None or not facts.verified or facts.ima_offset + len(expand(packed)) != begins:
            continue
        chain.insert(0, packed)
        begins = facts.ima_offset
    return chain


def _until(row: EvidenceRow, of_node: NodeRow | None) -> float:
    """Return until when a verdict holds: the next one, or so long after the last report that said the same."""
    if row.until is not None:
        return row.until
    if of_node is None or of_node.last_report_at is None:
        return row.at
    return max(row.at, of_node.last_report_at) + OVERDUE_INTERVALS * of_node.policy.interval_s


def _facts(row: EvidenceRow) -> Facts:
    return decode(row.facts, Facts, max_bytes=MAX_FACTS_BYTES, code="evidence.damaged")


def _view(row: EvidenceRow) -> EvidenceView:
    facts = _facts(row)
    return EvidenceView(
        id=row.id,
        node=row.node,
        kind=row.kind,
        at=row.at,
        until=row.until,
        tier=row.tier,
        tiers=tiers(facts),
        findings=list(dict.fromkeys(weighed.finding.code for weighed in facts.findings)),
        quote_sha256=facts.quote_sha256.hex(),
        policy_sha256=facts.policy_sha256.hex(),
        event_log_sha256=facts.event_log_sha256.hex(),
    )
