"""Attestation results: what the verifier concluded, signed, for others to rely on. EAR as a JWT (JWS compact, ES256).

Form: draft-ietf-rats-ear-04 with the trustworthiness vector of draft-ietf-rats-ar4si (its clause 2.3.4 for the values).
Five tiers are computed first, one for each area; the vector follows from them.

| area | findings that count in it | claim of the vector |
|---|---|---|
| identity | `ek.` `ak.` `tpm.` `identity.` `enrolment.` `quote.` `nonce.` `report.` `message.` | instance-identity |
| firmware | `quote.firmware-version`; `boot.` and `eventlog.` about PCR 0 to 3 or named `boot.firmware…` | hardware |
| boot | other `boot.` and `eventlog.`, `reference.`, `drift.boot` | executables |
| runtime | `ima.` | executables |
| configuration | `drift.` `posture.` `baseline.`; `drift.files` also speaks for file-system | configuration |

A finding of any other code counts in every area: what nobody has placed makes nothing better. An area that was not
judged is `none`, never `affirming`; an endorsement key that nothing proves makes identity a warning at best.
runtime-opaque, storage-opaque and sourced-data are 0: a TPM says nothing about them.

Values: identity 2, -33 (recognised, its TPM unproved), 96; hardware 2, 32, 96; executables 2 (boot and run time), 3 (boot
alone), 33, 96; configuration 2, -33 (differs from the baseline), 96; file-system 0, 32, 96. Evidence whose cryptographic
checks failed: 99 everywhere. A failure of the verifier itself: -1 everywhere.

Refuses to judge: tiers of findings come from the verifier. Signing and checking are in `contract.resultkey`.
"""

from __future__ import annotations

import base64
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from contract.errors import Rejected
from contract.messages import BaselineRef, Digest, Finding, Line, Message, Name, Tier

Area = Literal["identity", "firmware", "boot", "runtime", "configuration"]
AREAS: Final[tuple[Area, ...]] = ("identity", "firmware", "boot", "runtime", "configuration")
Kind = Literal["boot", "change", "refused"]

EAR_PROFILE: Final = "tag:ietf.org,2026:rats/ear#04"
EXTENSION: Final = "urn:ringfence:appraisal:1"
DEVELOPER: Final = "Ringfence"
OWN_FAILURE: Final = "verification.failed"

RANK: Final[dict[Tier, int]] = {"none": 0, "affirming": 1, "warning": 2, "contraindicated": 3}
_FIRMWARE_PCRS: Final = frozenset({0, 1, 2, 3})
_IDENTITY: Final = (
    "ek.",
    "ak.",
    "tpm.",
    "identity.",
    "enrolment.",
    "quote.",
    "nonce.",
    "report.",
    "message.",
)
_CONFIGURATION: Final = ("drift.", "posture.", "baseline.")
_VALUES: Final[dict[str, dict[Tier, int]]] = {
    "instance-identity": {"none": 0, "affirming": 2, "warning": -33, "contraindicated": 96},
    "configuration": {"none": 0, "affirming": 2, "warning": -33, "contraindicated": 96},
    "executables": {"none": 0, "affirming": 2, "warning": 33, "contraindicated": 96},
    "file-system": {"none": 0, "affirming": 2, "warning": 32, "contraindicated": 96},
    "hardware": {"none": 0, "affirming": 2, "warning": 32, "contraindicated": 96},
}
_SILENT: Final = ("runtime-opaque", "storage-opaque", "sourced-data")
_BOOT_ALONE: Final = 3
_NOT_AUTHENTIC: Final = 99
_MALFUNCTION: Final = -1

Hex = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{2}){0,64}\Z")]


class Weighed(Message, frozen=True, kw_only=True):
    """A finding and the best tier that it leaves."""

    finding: Finding
    tier: Tier


class Facts(Message, frozen=True, kw_only=True):
    """Everything a result says about one piece of evidence: kept with it, signed when somebody asks."""

    node: Name
    site: Name
    kind: Kind
    at: float
    """When it was appraised, seconds since 1970."""
    tier: Tier
    """The verifier's overall conclusion."""
    verified: bool
    """False when the evidence was refused: then nothing of it is proved."""
    findings: list[Weighed] = field(default_factory=list)
    judged: list[Area] = field(default_factory=list)
    """Areas in which something was looked at."""
    ek_trust: Line
    """What proves the endorsement key; `unverified`: nothing does."""
    ek_sha256: Hex
    """Of the EK's SubjectPublicKeyInfo."""
    ak_name: Hex
    nonce: bytes
    quote_sha256: Digest
    signature_sha256: Digest
    body_sha256: Digest
    event_log_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    """Empty when the machine has none."""
    ima_log_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    """Of the lines that came with this evidence; empty when none did."""
    ima_offset: int = 0
    """Where in the IMA log those lines begin, in bytes."""
    policy_sha256: Digest
    certificate_sha256: Digest
    baseline: BaselineRef | None = None
    """What the node says it holds."""
    announced: list[Line] = field(default_factory=list)
    """What differs from the boot accepted before, and was announced."""
    boot_id: Line = ""
    reset: int = 0
    """The TPM's reset counter."""


class Holding(Struct, frozen=True, kw_only=True):
    """From when to when a conclusion holds: `open` while nothing has replaced it."""

    since: int
    until: int
    open: bool


class Appraised(Struct, frozen=True, kw_only=True):
    """The Ringfence extension of one EAR appraisal, as it stands in a token."""

    tiers: dict[Area, Tier]
    findings: list[dict[str, str | int]]
    evidence: dict[str, str | int]
    holds: Holding
    baseline: dict[str, str | int] | None = None
    announced: list[str] = field(default_factory=list)


class Submodule(Struct, frozen=True, kw_only=True):
    """One EAR appraisal (clause 3.1)."""

    ear_status: Tier
    ear_trustworthiness_vector: dict[str, Annotated[int, Meta(ge=-128, le=127)]]
    ear_appraisal_policy_ids: Annotated[list[str], Meta(min_length=1)]
    appraised: Appraised = field(name=EXTENSION)
    eat_profile: str = EXTENSION
    eat_nonce: str = ""


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The claims of a token (clause 3). Times are whole seconds since 1970."""

    eat_profile: Literal["tag:ietf.org,2026:rats/ear#04"]
    iss: str
    sub: Name
    iat: int
    nbf: int
    exp: int
    ear_status: Tier
    ear_verifier_id: dict[str, str]
    submods: Annotated[dict[str, Submodule], Meta(min_length=1, max_length=1)]
    eat_nonce: str | None = None

    @property
    def appraisal(self) -> Submodule:
        """The one appraisal that a token of ours has."""
        return next(iter(self.submods.values()))


def areas_of(finding: Finding) -> tuple[Area, ...]:
    """Return the areas that a finding counts in: one, or all when its code has no place."""
    code = finding.code.rpartition(".observe.")[2]
    if code == "quote.firmware-version" or code.startswith("boot.firmware"):
        return ("firmware",)
    if code.startswith(("boot.", "eventlog.")):
        return ("firmware",) if finding.pcr in _FIRMWARE_PCRS else ("boot",)
    if code.startswith(("reference.", "drift.boot")):
        return ("boot",)
    if code.startswith("ima."):
        return ("runtime",)
    if code.startswith(_CONFIGURATION):
        return ("configuration",)
    return ("identity",) if code.startswith(_IDENTITY) else AREAS


def tiers(facts: Facts) -> dict[Area, Tier]:
    """Return the tier of each area. Of refused evidence nothing but what refused it is said."""
    found: dict[Area, Tier] = dict.fromkeys(AREAS, "none")
    if facts.verified:
        found |= dict.fromkeys(facts.judged, "affirming")
        found["identity"] = "warning" if facts.ek_trust == "unverified" else "affirming"
    for weighed in facts.findings:
        for area in areas_of(weighed.finding):
            found[area] = _worse(found[area], weighed.tier)
    return found


def vector(facts: Facts) -> dict[str, int]:
    """Return the AR4SI trustworthiness vector, all eight claims."""
    silent = dict.fromkeys(_SILENT, 0)
    if not facts.verified:
        codes = [weighed.finding.code for weighed in facts.findings]
        value = _MALFUNCTION if OWN_FAILURE in codes else _NOT_AUTHENTIC
        return dict.fromkeys(_VALUES, value) | silent
    by_area = tiers(facts)
    code_tier = _worse(by_area["boot"], by_area["runtime"])
    files: Tier = "none"
    for weighed in facts.findings:
        if weighed.finding.code.endswith("drift.files"):
            files = _worse(files, weighed.tier)
    executables = _VALUES["executables"][code_tier]
    if code_tier == "affirming" and by_area["runtime"] == "none":
        executables = _BOOT_ALONE
    return {
        "instance-identity": _VALUES["instance-identity"][by_area["identity"]],
        "configuration": _VALUES["configuration"][by_area["configuration"]],
        "executables": executables,
        "file-system": _VALUES["file-system"][files],
        "hardware": _VALUES["hardware"][by_area["firmware"]],
    } | silent


def status(facts: Facts) -> Tier:
    """Return `ear_status`: the conclusion, and never better than the worst area (EAR, clause 3.1)."""
    worst = facts.tier
    for tier in tiers(facts).values():
        worst = _worse(worst, tier)
    return worst


def result_of(
    facts: Facts,
    *,
    issuer: str,
    build: str,
    issued_at: float,
    until: float,
    still_holds: bool,
    nonce: bytes | None = None,
) -> Result:
    """Return the claims to sign. `until`: seconds since 1970; `nonce`: of whoever asks, 8 to 64 bytes, echoed.

    Raises Rejected `result.nonce`.
    """
    if nonce is not None and not 8 <= len(nonce) <= 64:
        raise Rejected("result.nonce", f"{len(nonce)} bytes, wanted 8 to 64")
    tier = status(facts)
    ends = max(int(facts.at), int(until))
    return Result(
        eat_profile=EAR_PROFILE,
        iss=issuer,
        sub=facts.node,
        iat=int(issued_at),
        nbf=int(facts.at),
        exp=ends,
        eat_nonce=None if nonce is None else base64url(nonce),
        ear_status=tier,
        ear_verifier_id={"developer": DEVELOPER, "build": build},
        submods={
            facts.node: Submodule(
                ear_status=tier,
                ear_trustworthiness_vector=vector(facts),
                ear_appraisal_policy_ids=[f"urn:ringfence:policy:sha256:{facts.policy_sha256.hex()}"],
                eat_nonce=base64url(facts.nonce),
                appraised=Appraised(
                    tiers=tiers(facts),
                    findings=[_shown(weighed) for weighed in facts.findings],
                    evidence=_digests(facts),
                    holds=Holding(since=int(facts.at), until=ends, open=still_holds),
                    baseline=None if facts.baseline is None else _baseline(facts.baseline),
                    announced=facts.announced,
                ),
            )
        },
    )


def _worse(one: Tier, other: Tier) -> Tier:
    return one if RANK[one] >= RANK[other] else other


def _shown(weighed: Weighed) -> dict[str, str | int]:
    finding = weighed.finding
    shown: dict[str, str | int] = {"code": finding.code, "detail": finding.detail, "tier": weighed.tier}
    if finding.pcr is not None:
        shown["pcr"] = finding.pcr
    if finding.event is not None:
        shown["event"] = finding.event
    return shown


def _digests(facts: Facts) -> dict[str, str | int]:
    shown: dict[str, str | int] = {
        "kind": facts.kind,
        "verified": str(facts.verified).lower(),
        "site": facts.site,
        "ek_trust": facts.ek_trust,
        "ek_sha256": facts.ek_sha256,
        "ak_name": facts.ak_name,
        "boot_id": facts.boot_id,
        "tpm_resets": facts.reset,
        "nonce": facts.nonce.hex(),
        "quote_sha256": facts.quote_sha256.hex(),
        "signature_sha256": facts.signature_sha256.hex(),
        "body_sha256": facts.body_sha256.hex(),
        "policy_sha256": facts.policy_sha256.hex(),
        "certificate_sha256": facts.certificate_sha256.hex(),
    }
    if facts.event_log_sha256:
        shown["event_log_sha256"] = facts.event_log_sha256.hex()
    if facts.ima_offset:
        shown["ima_offset"] = facts.ima_offset
    if facts.ima_log_sha256:
        shown["ima_log_sha256"] = facts.ima_log_sha256.hex()
    return shown


def _baseline(ref: BaselineRef) -> dict[str, str | int]:
    return {"name": ref.name, "version": ref.version, "sha256": ref.sha256.hex()}


def base64url(value: bytes) -> str:
    """Return base64url without padding (RFC 7515, clause 2)."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
