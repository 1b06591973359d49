"""What the surfaces of one controller process share: named parts, of which each surface takes what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contract.sockets import SocketReport
from controller.asking import Asking
from controller.bell import Bell
from controller.budget import Budget
from controller.config import Config
from controller.failures import Failures
from controller.fleet import Fleet
from controller.fleet.auditlog import AuditLog
from controller.fleet.escrow import Escrow
from controller.fleet.evidence import Archive
from controller.fleet.once import Once
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
    once: Once
    oidc: Oidc | None
    keys: Keys
    sessions: Sessions
    asking: Asking
    signed_files: SignedFiles
    metrics: Metrics
    bell: Bell
    failures: Failures
    budget: Budget
    tries: Failures
    """Tries to log in by address, right ones as well."""
    device_trust: DeviceTrust
    """Replaced whole when the folders are read again."""
    quiet: bool = False
    """Of a rehearsal: nothing is sent to anybody, and nobody is woken. What a handler tells others goes through here."""

    def ring(self) -> None:
        """Wake whoever waits for events."""
        if not self.quiet:
            self.bell.ring()

    async def drop(self, node: str) -> None:
        """Close the session of a node whose certificate is no longer bound."""
        if not self.quiet:
            await self.sessions.drop(node)

    async def challenge(self, nodes: Sequence[str], *, wait_s: float) -> dict[str, float | None]:
        """Ask connected nodes for a report, as `Sessions.rehearse`; in a rehearsal nobody is asked, and none has answered."""
        return await self.sessions.rehearse(nodes, wait_s=0.0 if self.quiet else wait_s, ask=not self.quiet)

    async def sockets_of(self, nodes: Sequence[str]) -> dict[str, SocketReport | str]:
        """What nodes have open, as `Asking.sockets_of`; in a rehearsal nobody is asked."""
        if self.quiet:
            return dict.fromkeys(nodes, "not asked in a dry run")
        return await self.asking.sockets_of(nodes)

    async def tell(self, change: Change, now: float, *, ask_for_report: bool = False) -> None:
        """Give every connected node that a change of ours touches its new directive at once."""
        if self.quiet:
            return
        self.ring()
        await self.sessions.tell(change.affected, now)
        if ask_for_report:
            await self.sessions.challenge(change.affected, now)
