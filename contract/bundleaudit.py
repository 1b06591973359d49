"""Re-verification of an evidence bundle: that its files belong together, that they verify, and that the result says so.

The quote, the logs and the policy are judged by `contract.offline`, the token by `contract.resultkey`; here is only what
ties them to each other. No clock, no files. Whose result it is, is the caller's to know: the key comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from contract import bundle, offline
from contract.auditkey import read_key
from contract.binding import qualifying_data
from contract.bundle import Binding, Policies
from contract.errors import Rejected
from contract.messages import Finding
from contract.offlinelogs import ADVISORY_CODES
from contract.result import Result, base64url
from contract.resultkey import verify_result

_HEX: Final = 16


class Audit(Struct, frozen=True, kw_only=True):
    """What a bundle comes to."""

    findings: list[Finding]
    """Everything that speaks against it; advisory ones are in `notes`."""
    notes: list[Finding]
    partial: list[str]
    """What the bundle does not hold, so that it was not re-verified."""
    result: Result
    claims: dict[str, object]

    @property
    def verified(self) -> bool:
        """Whether the evidence verifies and the result agrees."""
        return not self.findings


def audit(files: Mapping[str, bytes], key: ec.EllipticCurvePublicKey) -> Audit:
    """Verify a bundle whose result must be signed by `key`.

    1. every file is there and well formed (`bundle.missing`, `bundle.file`)
    2. the result is the key's, whenever it held (`result.*`), and of this node (`bundle.node`)
    3. the files are those that the result names by digest (`bundle.digest`)
    4. the qualifying data is over nonce, node, certificate, report and firmware log (`bundle.binding`)
    5. quote, logs and policy verify (`contract.offline`)
    6. a result that affirms or warns says everything that speaks against the evidence (`bundle.disagrees`)

    Raises Rejected for 1 and 2; the rest are findings.
    """
    missing = sorted(bundle.NAMES - bundle.OPTIONAL - files.keys())
    if missing:  # 1
        raise Rejected("bundle.missing", missing[0])
    binding = _binding(files[bundle.BINDING])
    policies = _policies(files, binding)
    result = verify_result(files[bundle.RESULT], key, now=None)  # 2
    if binding.node != result.sub:
        raise Rejected("bundle.node", f"evidence of {binding.node}, result of {result.sub}")
    findings = [*_digests(files, result, policies, binding), *_bound(files, binding, result)]  # 3, 4
    whole_ima = bundle.IMA_LOG in files and binding.ima_offset == 0
    verdict = _evidence(files, policies, whole_ima)  # 5
    against = [f for f in verdict.findings if f.code not in ADVISORY_CODES]
    unsaid = [f for f in against if f.code not in _said(result)]
    if unsaid and _vouched(result):  # 6
        detail = f"the result says {result.ear_status} and nothing of {unsaid[0].code}"
        findings.append(Finding(code="bundle.disagrees", detail=detail))
    return Audit(
        findings=[*findings, *against],
        notes=[f for f in verdict.findings if f not in against],
        partial=_partial(files, binding, policies, whole_ima),
        result=result,
        claims=verdict.claims,
    )


def _binding(untrusted: bytes) -> Binding:
    try:
        found = msgspec.json.decode(untrusted, type=Binding)
        bytes.fromhex(found.nonce + found.certificate_sha256 + found.event_log_sha256)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise Rejected("bundle.file", f"{bundle.BINDING}: {error}") from None
    return found


def _pcrs(untrusted: Mapping[str, str], name: str) -> dict[int, bytes]:
    try:
        return {int(pcr): bytes.fromhex(value) for pcr, value in untrusted.items()}
    except ValueError as error:
        raise Rejected("bundle.file", f"{name}: {error}") from None


def _shown_pcrs(files: Mapping[str, bytes]) -> dict[int, bytes]:
    try:
        banks = msgspec.json.decode(files[bundle.PCRS], type=dict[str, dict[str, str]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected("bundle.file", f"{bundle.PCRS}: {error}") from None
    return _pcrs(banks.get("sha256", {}), bundle.PCRS)


def _reference(binding: Binding, files: Mapping[str, bytes]) -> dict[int, bytes]:
    return _pcrs(binding.reference, bundle.BINDING) or _shown_pcrs(files)


def _policies(files: Mapping[str, bytes], binding: Binding) -> Policies:
    in_force = bundle.read_policies(files[bundle.POLICY])
    try:
        return bundle.for_audit(in_force, _reference(binding, files))
    except msgspec.ValidationError as error:  # values that are no SHA-256 digests
        raise Rejected("bundle.file", f"{bundle.BINDING}: {error}") from None


def _digests(
    files: Mapping[str, bytes], result: Result, policies: Policies, binding: Binding
) -> list[Finding]:
    said = result.appraisal.appraised.evidence
    wanted = {
        bundle.QUOTE: "quote_sha256",
        bundle.SIGNATURE: "signature_sha256",
        bundle.BODY: "body_sha256",
        bundle.EVENT_LOG: "event_log_sha256",
        bundle.POLICY: "policy_sha256",
    }
    found = []
    for name, key in wanted.items():
        content = files.get(name)
        if content is not None and said.get(key, "") != bundle.sha256(content).hex():
            found.append(
                Finding(code="bundle.digest", detail=f"{name} is not the file that the result is about")
            )
    begins = said.get("ima_offset", 0)  # earlier lines may stand before those it is about
    lines_at = begins - binding.ima_offset if isinstance(begins, int) else -1
    lines = files.get(bundle.IMA_LOG, b"")[max(0, lines_at) :]
    if lines_at < 0 or (said.get("ima_log_sha256", "") != (bundle.sha256(lines).hex() if lines else "")):
        detail = f"{bundle.IMA_LOG} is not the file that the result is about"
        found.append(Finding(code="bundle.digest", detail=detail))
    if files[bundle.POLICY_TOML] != bundle.policy_toml(policies):
        detail = f"{bundle.POLICY_TOML} does not follow from {bundle.POLICY}"
        found.append(Finding(code="bundle.digest", detail=detail))
    return found


def _bound(files: Mapping[str, bytes], binding: Binding, result: Result) -> list[Finding]:
    extra = bundle.extra_data(files[bundle.QUOTE])
    over = qualifying_data(
        nonce=bytes.fromhex(binding.nonce),
        node=binding.node,
        certificate_sha256=bytes.fromhex(binding.certificate_sha256),
        body=files[bundle.BODY],
        event_log_sha256=bytes.fromhex(binding.event_log_sha256),
    )
    found = []
    if extra != over:
        detail = (
            f"the quote is not over this report: wanted {over.hex()[:_HEX]}…, found {extra.hex()[:_HEX]}…"
        )
        found.append(Finding(code="bundle.binding", detail=detail))
    if files[bundle.EXTRA].strip() != extra.hex().encode():
        found.append(Finding(code="bundle.binding", detail=f"{bundle.EXTRA} is not the quote's extraData"))
    if result.appraisal.eat_nonce != base64url(bytes.fromhex(binding.nonce)):
        found.append(Finding(code="bundle.binding", detail="the result is about evidence over another nonce"))
    log = files.get(bundle.EVENT_LOG)
    if log is not None and bundle.sha256(log).hex() != binding.event_log_sha256:
        found.append(
            Finding(code="bundle.binding", detail="the firmware log is not the one that the report names")
        )
    return found


def _evidence(files: Mapping[str, bytes], policies: Policies, whole_ima: bool) -> offline.Verdict:
    given = offline.Given(
        key=read_key(files[bundle.AK], files[bundle.EK]),
        attest=files[bundle.QUOTE],
        signature=files[bundle.SIGNATURE],
        nonce=bundle.extra_data(files[bundle.QUOTE]),
        pcrs=_shown_pcrs(files),
        event_log=files.get(bundle.EVENT_LOG),
        ima_log=files.get(bundle.IMA_LOG) if whole_ima else None,
        boot_policy=policies.boot,
        ima_policy=policies.ima if whole_ima else None,
    )
    return offline.verify(given)


def _vouched(result: Result) -> bool:
    said = result.appraisal.appraised.evidence
    return said.get("verified") == "true" and result.ear_status in ("affirming", "warning")


def _said(result: Result) -> set[str]:
    """Return the codes that the result names. A boot that a person is asked about differs from the accepted one."""
    codes = {
        str(shown.get("code")).rpartition(".observe.")[2] for shown in result.appraisal.appraised.findings
    }
    return codes | {"boot.pcr"} if "boot.unannounced" in codes else codes


def _partial(files: Mapping[str, bytes], binding: Binding, policies: Policies, whole_ima: bool) -> list[str]:
    found = []
    if binding.event_log_sha256 and bundle.EVENT_LOG not in files:
        found.append("the firmware log is not in the bundle")
    if policies.ima is not None and not whole_ima:
        found.append(f"the IMA log before byte {binding.ima_offset} is not in the bundle")
    return found
