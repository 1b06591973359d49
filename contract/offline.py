"""Verification of recorded evidence by somebody who has files and no controller.

Takes bytes, returns a Verdict. What the controller knows of a node (its EK, its nonce, the boot it accepted, its last
counters) an auditor may not have: each such check is made when its input is given, and the claims say `not checked`
when it is not. A bad signature ends the matter; everything else that is wrong is collected, and the verdict is
`verified` only when nothing is.

No clock, no files. Bytes of the evidence never raise, whatever they are; Unusable says that the auditor asked for what
cannot be answered with the files given. It relies on `contract.quote` for the quote, on `contract.offlinelogs` for the
logs, on `contract.boot` and `contract.ima` for the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct as Record
from msgspec.structs import replace

from contract.auditkey import AuditKey
from contract.binding import IMA_PCR
from contract.boot import BootPolicy, judge_boot
from contract.errors import Rejected
from contract.eventlog import coverage
from contract.imapolicy import ImaPolicy
from contract.messages import Finding
from contract.offlineclaims import boot_claims, coverage_claims, ima_claims, pcr_claims, quote_claims
from contract.offlinelogs import (
    ADVISORY_CODES,
    NOT_COMPARED,
    RUNTIME_PCRS,
    Logs,
    Unusable,
    explained_by,
    followed,
    led_to,
    read_logs,
    told_apart,
    unexplained,
    values_from,
)
from contract.quote import Attest, VerifiedQuote, parse_attest, verify_quote

__all__ = ["Given", "Unusable", "Verdict", "verify"]

_BARE: Final = BootPolicy()


class Given(Record, frozen=True, kw_only=True):
    """What an auditor has. Only `key` and the policies are the auditor's own; the rest is evidence, and untrusted."""

    key: AuditKey
    attest: bytes
    """TPMS_ATTEST."""
    signature: bytes
    """TPMT_SIGNATURE."""
    nonce: bytes | None = None
    """What the quote was asked to be over (extraData)."""
    pcrs: Mapping[int, bytes] | None = None
    """SHA-256 bank; None: the values that the logs lead to."""
    event_log: bytes | None = None
    ima_log: bytes | None = None
    boot_policy: BootPolicy | None = None
    ima_policy: ImaPolicy | None = None


class Verdict(Record, frozen=True):
    """What the evidence comes to."""

    findings: tuple[Finding, ...]
    claims: dict[str, object]
    """Plain data (text, numbers, lists, dicts): what was proved, and what was not looked at. Empty after a bad signature."""

    @property
    def verified(self) -> bool:
        """Return whether nothing speaks against the evidence; advisory findings do not."""
        return all(finding.code in ADVISORY_CODES for finding in self.findings)


def verify(given: Given) -> Verdict:
    """Verify one quote with what belongs to it.

    1. the key may sign nothing but what its TPM made (`ak.*`; b02), where a public area was given
    2. the signature is the key's over these bytes (`quote.signature*`; q12, q14): else nothing more is said
    3. a TPMS_ATTEST over one selection of the SHA-256 bank (`quote.*`; q05 to q08, q11 to q13): else nothing more is said
    4. the logs are well formed (`eventlog.*`, `ima.*`)
    5. the PCR values are those shown or, where none are, those that the logs lead to
    6. all checks of `contract.quote.verify_quote`: nonce, signer, values, untouched PCRs (`quote.*`; q01, q09, q10, q15, q20)
    7. the logs lead to the quoted PCRs and hold what an honest machine writes (`eventlog.*`, `ima.*`); PCRs that the
       firmware log extends and the quote leaves out stand in the claims, as not proved
    8. boot and files are those of the policy (`boot.*`, `ima.*`), where one was given

    Raises Unusable where no PCR values are given and the logs given cannot hold them.
    """
    try:
        signing = given.key.loaded(given.signature, b"")
        signing.check_signature(given.signature, given.attest)  # 2
        said = parse_attest(given.attest)  # 3
        if not said.pcrs:
            raise Rejected("quote.pcr-selection", "the quote covers no PCR")
    except Rejected as refused:
        return Verdict((*_key_findings(given.key), _finding(refused)), {})
    logs = read_logs(given.event_log, given.ima_log)  # 4
    values = values_from(said, logs, signing.pcr_digest) if given.pcrs is None else given.pcrs  # 5
    quote, about_quote = _quote(given, said, values)  # 6
    if quote is None and given.pcrs is not None:
        about_quote += told_apart(said, logs, given.pcrs, signing.pcr_digest)
    elif quote is None:
        about_quote = [_unshown(finding, said, logs) for finding in about_quote]
    findings = [*_key_findings(given.key), *about_quote, *logs.findings]  # 1
    claims = quote_claims(given.key, said, nonce=given.nonce, trusted=not about_quote)
    claims["policy"] = {"boot": _told(given.boot_policy), "ima": _told(given.ima_policy)}
    if quote is not None:
        _judge(given, quote, logs, findings, claims)
    return Verdict(tuple(dict.fromkeys(findings)), claims)


def _judge(
    given: Given, quote: VerifiedQuote, logs: Logs, findings: list[Finding], claims: dict[str, object]
) -> None:
    """Hold logs and policy against a verified quote; add to `findings` and `claims` (7, 8)."""
    policy = given.boot_policy
    runtime = RUNTIME_PCRS if policy is None else frozenset(policy.runtime_pcrs) | RUNTIME_PCRS
    findings += unexplained(logs, quote.pcrs, runtime)
    ima = followed(given.ima_policy, logs, quote.pcrs)
    if ima is not None:
        findings += ima.findings
    if policy is not None:
        findings += _boot(policy, quote, logs)
    explained = explained_by(logs, quote.pcrs, ima)
    claims["pcrs"] = pcr_claims(quote.pcrs, explained)
    if logs.event_log is not None:
        claims.update(boot_claims(logs.event_log, explained))
        claims["coverage"] = coverage_claims(coverage(logs.event_log, quote.pcrs, runtime | {IMA_PCR}))
    if ima is not None and ima.caught_up:
        claims["ima"] = ima_claims(ima)


def _boot(policy: BootPolicy, quote: VerifiedQuote, logs: Logs) -> list[Finding]:
    """Judge the boot by the section's rules and pinned values; the accepted boot is with the controller alone.

    So a section that has no rule but the comparison with that boot is `boot.no-reference` here: it would allow all.
    """
    findings = judge_boot(policy, quote, logs.event_log, None)
    bare = replace(
        policy, mode=None, pcrs=_BARE.pcrs, runtime_pcrs=[], event_log="required", unannounced="refuse"
    )
    if policy.reference == "enrolment" and bare != _BARE:
        detail = "the boot accepted at enrolment is with the controller: not compared; the other rules of [boot] are judged"
        findings = [f for f in findings if f.code != "boot.no-reference"]
        findings.append(Finding(code=NOT_COMPARED, detail=detail))
    return findings


def _key_findings(key: AuditKey) -> list[Finding]:
    try:
        key.check_attributes()
    except Rejected as refused:
        return [_finding(refused)]
    return []


def _quote(
    given: Given, said: Attest, values: Mapping[int, bytes] | None
) -> tuple[VerifiedQuote | None, list[Finding]]:
    """Verify the quote; go on behind a wrong nonce or signer to say what else is wrong. `values` of None are no values."""
    signer = given.key.qualified_name or said.signer
    extra = said.extra if given.nonce is None else given.nonce
    findings: list[Finding] = []
    while True:
        try:
            quote = verify_quote(
                given.key.loaded(given.signature, signer),
                given.attest,
                given.signature,
                qualifying_data=extra,
                pcrs=values or {},
                wanted_pcrs=said.pcrs,
                previous=None,
            )
        except Rejected as refused:
            if values is not None or refused.code in ("quote.signer", "quote.nonce"):
                findings.append(_finding(refused))
            if refused.code == "quote.signer":
                signer = said.signer
            elif refused.code == "quote.nonce":
                extra = said.extra
            else:
                return None, findings
        else:
            return quote, [*findings, *quote.findings]


def _unshown(finding: Finding, said: Attest, logs: Logs) -> Finding:
    """Say of values that nobody showed where they came from."""
    if finding.code != "quote.pcr-digest":
        return finding
    detail = f"the TPM signed other values than the logs lead to ({led_to(said, logs)}); with --pcrs the PCR can be named"
    return Finding(code=finding.code, detail=detail)


def _finding(refused: Rejected) -> Finding:
    return Finding(code=refused.code, detail=refused.detail)


def _told(policy: object) -> str:
    return "not given" if policy is None else "checked"
