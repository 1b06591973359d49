"""What somebody may do for a while: grants, and a break-glass code that is in force; both laid over the plan's stance.

Refuses nothing itself. Relies on: the loop asking on every turn; the worker thread alone calling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agent.breakglass import BreakGlass
from agent.grantbook import GrantBook
from agent.grants import OpenGrant
from agent.hold import Hold, Request
from agent.host import Host
from agent.netfilter import Netfilter
from agent.plan import Stance
from agent.responses import Told
from agent.spool import Spool
from agent.store import Store
from contract import directive as directives


class Permits:
    """The grants and codes of one node."""

    def __init__(
        self,
        hold: Hold,
        keeping: tuple[Store, Spool],
        around: tuple[Host, Netfilter],
        tell: Callable[[Told], object],
        *,
        boottime_s: float,
    ) -> None:
        """`boottime_s`: now."""
        host, netfilter = around
        self._store = keeping[0]
        self.grants = GrantBook(hold, netfilter, tell, boot_id=host.boot_id)
        self.glass = BreakGlass(hold, *keeping, tell, boot_id=host.boot_id, boottime_s=boottime_s)

    def over(self, planned: Stance, now: float, boottime_s: float) -> tuple[Stance, tuple[OpenGrant, ...]]:
        """Return the stance that is to be held, and the grants that are open under it."""
        held = self.glass.through(planned, boottime_s)
        opened = self.grants.open_now(held.posture, now, boottime_s)
        self._store.mark_grants(is_open=any(grant.usb or grant.accounts for grant in opened))
        return held, opened


def standing(requests: Iterable[Request], held: Stance) -> list[directives.Response]:
    """Return the requests to carry out: a node that a code has released is not isolated by the order of before."""
    return [each for each, _, _ in requests if each.name != "isolate" or held.posture == "isolated"]
