"""What a node's firmware log claims, in short, for people and the API. Made from claims of a log that was judged."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from contract.claims import Claims

MAX_LOADED = 256
MAX_SIGNERS = 64


class LoadedView(Struct, frozen=True, kw_only=True):
    """Something that was measured as it was loaded."""

    stage: str
    name: str
    sha256: str
    pcr: int
    event: int


class BootClaims(Struct, frozen=True, kw_only=True):
    """Null and empty mean that the log does not say."""

    recorded_at: float
    secure_boot: bool | None
    setup_mode: bool | None
    shim_verifies: bool | None
    debugger: bool
    firmware_version: str
    kernel_command_line: str | None
    lockdown: str | None
    sbat_level: str
    keys: dict[str, int]
    """Entries by list: PK, KEK, db, dbx, MokList."""
    signers: list[str]
    """Who vouched for what was loaded: subjects, or digests where there is none."""
    loaded: list[LoadedView]
    exit_boot_services: bool | None


def shown(claims: Claims, recorded_at: float) -> BootClaims:
    """Return claims in short."""
    keys = Counter(signature.variable for signature in (*claims.signatures, *claims.mok))
    signers = [each.subject or f"{each.variable} {each.sha256.hex()}" for each in claims.authorities]
    return BootClaims(
        recorded_at=recorded_at,
        secure_boot=claims.secure_boot,
        setup_mode=claims.setup_mode,
        shim_verifies=claims.shim_verifies,
        debugger=claims.debugger,
        firmware_version=claims.firmware_version,
        kernel_command_line=claims.kernel_command_line,
        lockdown=claims.lockdown,
        sbat_level=claims.sbat_level,
        keys=dict(keys),
        signers=list(dict.fromkeys(signers))[:MAX_SIGNERS],
        loaded=[
            LoadedView(
                stage=each.stage, name=each.name, sha256=each.sha256.hex(), pcr=each.pcr, event=each.event
            )
            for each in claims.loaded[:MAX_LOADED]
        ],
        exit_boot_services=claims.exit_boot_services,
    )
