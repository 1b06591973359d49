"""What the surfaces of one controller process share: named parts, of which each surface takes what it needs."""

from __future__ import annotations

from dataclasses import dataclass

from controller.bell import Bell
from controller.config import Config
from controller.failures import Failures
from controller.fleet import Fleet
from controller.fleet.auditlog import AuditLog
from controller.fleet.escrow import Escrow
from controller.fleet.evidence import Archive
from controller.fleet.people import People
from controller.keys import Keys
from controller.logins import Logins
from controller.metrics import Metrics
from controller.oidc import Oidc
from controller.records import Change
from controller.roots import DeviceTrust
from controller.sessions import Sessions
from controller.signed_files import SignedFiles


@dataclass(slots=True, kw_only=True)
class Services:
    """The parts of a running controller."""

    config: Config
    fleet: Fleet
    archive: Archive
    audit: AuditLog
    escrow: Escrow
    people: People
    logins: Logins
    oidc: Oidc | None
    keys: Keys
    sessions: Sessions
    signed_files: SignedFiles
    metrics: Metrics
    bell: Bell
    failures: Failures
    tries: Failures
    """Tries to log in by address, right ones as well."""
    device_trust: DeviceTrust
    """Replaced whole when the folders are read again."""

    async def tell(self, change: Change, now: float, *, ask_for_report: bool = False) -> None:
        """Give every connected node that a change of ours touches its new directive at once."""
        self.bell.ring()
        await self.sessions.tell(change.affected, now)
        if ask_for_report:
            await self.sessions.challenge(change.affected, now)
