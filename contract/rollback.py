"""Whether a boot went back behind an earlier one: revoked keys forgotten, shim's own keys changed, SBAT lowered (l14).

Pure comparison of two sets of claims; what the later log does not say, or no digest covers, counts as gone. Whether the
claims may be believed at all is for `contract.eventlog.explain` to say first.
"""

from __future__ import annotations

from contract.claims import Claims, Signature
from contract.keyclaims import KEYS_PCR, MOK_PCR
from contract.messages import Finding, never_more

_SHOWN = 3


def rolled_back(before: Claims, now: Claims) -> list[Finding]:
    """Return what an earlier boot had and this one has no more.

    1. every entry of dbx is still there (`boot.dbx-rolled-back`)
    2. shim's lists are the same, and shim verifies as before (`boot.mok-changed`)
    3. the revocation level is no older, in date and in each component (`boot.sbat-rolled-back`)
    """
    return [*_dbx(before, now), *_mok(before, now), *_sbat(before, now)]


def _listed(claims: Claims, variable: str) -> dict[tuple[str, bytes], Signature]:
    return {(s.kind, s.sha256): s for s in claims.signatures if s.variable == variable and s.covered is True}


def _event(claims: Claims, name: str) -> int | None:
    source = claims.sources.get(name)
    return source.event if source else None


def _dbx(before: Claims, now: Claims) -> list[Finding]:
    was, found = _listed(before, "dbx"), _listed(now, "dbx")
    gone = [signature for key, signature in was.items() if key not in found]  # 1
    if not gone:
        return []
    shown = ", ".join(s.subject or s.sha256.hex() for s in gone[:_SHOWN]) + ("…" if gone[_SHOWN:] else "")
    detail = f"dbx: {len(gone)} of {len(was)} revocations are gone: {never_more(shown, 1024)}"
    event = _event(now, "dbx")
    return [Finding(code="boot.dbx-rolled-back", detail=detail, pcr=KEYS_PCR, event=event)]


def _mok(before: Claims, now: Claims) -> list[Finding]:
    findings = []
    # By digest in the order extended: the names are only the log's word.
    was, found = ([s.sha256 for s in claims.mok] for claims in (before, now))
    if was != found:  # 2
        names = [s.variable for s in now.mok if s.sha256 not in was] or ["an entry"]
        detail = f"shim's lists: {never_more(', '.join(names[:_SHOWN]), 256)} differs, {len(found)} extended, was {len(was)}"
        event = _event(now, "mok")
        findings.append(Finding(code="boot.mok-changed", detail=detail, pcr=MOK_PCR, event=event))
    if before.shim_verifies is True and now.shim_verifies is not True:
        detail = "shim verified what it loaded before, and says so no more"
        event = _event(now, "shim_verifies")
        findings.append(Finding(code="boot.mok-changed", detail=detail, pcr=KEYS_PCR, event=event))
    return findings


def _sbat(before: Claims, now: Claims) -> list[Finding]:
    source = now.sources.get("sbat_level")
    sure = source is not None and source.covered is True
    level, date = (now.sbat, now.sbat_level) if sure else ({}, "")
    worse = [
        f"{component} {generation} to {level.get(component, 'nothing')}"
        for component, generation in before.sbat.items()
        if level.get(component, -1) < generation
    ]
    if date < before.sbat_level:
        worse.insert(0, f"{before.sbat_level} to {date or 'nothing'}")
    if not worse:  # 3
        return []
    detail = f"SBAT level: {never_more(', '.join(worse[:_SHOWN]), 1024)}"
    event = _event(now, "sbat_level")
    return [Finding(code="boot.sbat-rolled-back", detail=detail, pcr=KEYS_PCR, event=event)]
