"""What a verified quote and its logs prove, as plain data for a JSON document.

Every claim that was not checked says so; what a log says and no digest covers is marked as not proved. Makes no
verdict.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from contract.auditkey import AuditKey
from contract.claims import Claims, claims_of
from contract.eventlog import Coverage, EventLog
from contract.ima import ImaResult
from contract.quote import Attest

NOT_CHECKED = "not checked"
CHECKED = "checked"


def quote_claims(key: AuditKey, said: Attest, *, nonce: bytes | None, trusted: bool) -> dict[str, object]:
    """Return what the signed structure says of itself. `trusted`: the quote passed every check that could be made."""
    return {
        "key": {
            "algorithm": key.algorithm,
            "attributes": NOT_CHECKED if key.public is None else CHECKED,
        },
        "signer": CHECKED if key.qualified_name is not None and trusted else NOT_CHECKED,
        "nonce": CHECKED if nonce is not None and trusted else NOT_CHECKED,
        "extra_data": said.extra.hex(),
        "bank": "sha256",
        "quoted_pcrs": sorted(said.pcrs),
        "clock": {
            "reset": said.reset,
            "restart": said.restart,
            "clock_ms": said.clock,
            "safe": said.safe == 1,
            "firmware_version": f"{said.firmware:#x}",
        },
    }


def pcr_claims(quoted: Mapping[int, bytes], explained: Mapping[int, str]) -> dict[str, object]:
    """Return each quoted PCR with its value and what leads to it."""
    return {str(pcr): {"sha256": quoted[pcr].hex(), "explained_by": explained[pcr]} for pcr in sorted(quoted)}


def boot_claims(log: EventLog, explained: Mapping[int, str]) -> dict[str, object]:
    """Return what the firmware log says of the boot, and under `proved` which of it a quoted PCR bears out."""
    claims = claims_of(log)
    by_log = {pcr for pcr, by in explained.items() if by == "event log"}
    found = plain_claims(claims)
    found["proved"] = {name: claims.proved(name, by_log) for name in sorted(claims.sources)}
    return found


def plain_claims(claims: Claims) -> dict[str, object]:
    """Return what a log says as plain data; which PCRs bear it out is told elsewhere, of each by itself."""
    names = (name for name in claims.__struct_fields__ if name != "explained")
    return {name: plain(getattr(claims, name)) for name in names}


def coverage_claims(found: Coverage) -> dict[str, object]:
    """Return which PCRs firmware log and quote explain to each other, both ways; see `eventlog.Coverage`."""
    return {name: sorted(getattr(found, name)) for name in found.__struct_fields__}


def ima_claims(result: ImaResult) -> dict[str, object]:
    """Return how much of the IMA log the quoted PCR 10 proves."""
    return {
        "lines_proved": result.state.lines,
        "bytes_not_proved": result.unproved_bytes,
    }


def plain(value: object) -> object:
    """Return messages as dicts with all of their fields, and bytes as lower-case hexadecimal."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value
