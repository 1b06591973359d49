"""Response `fence`: packets from and to a suspect neighbour's addresses are dropped, in every direction and state.

The fence is a set in our own table; the firewall probe keeps it on every pass. `apply` adds the addresses at once.
Refuses nothing that is an address, but the controller's own are left out (`agent.firewall.model.fences`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import responses
from agent.firewall.nft import fence_now
from agent.responses import Told, Wanted, checked_addresses
from contract import directive
from contract.errors import Rejected

if TYPE_CHECKING:
    from agent.probes import Surroundings


class Response(responses.Response):
    """See the module."""

    def wanted(self, request: directive.Response) -> Wanted:
        """Return the addresses to fence. Raises Rejected `directive.response` for bad ones and for none."""
        addresses = checked_addresses(request)
        if not addresses:
            raise Rejected("directive.response", "fence: expected addresses")
        return Wanted(fenced=addresses)

    def apply(self, around: Surroundings, request: directive.Response) -> list[Told]:
        """Add the addresses to the sets in force. Where that fails, the pass loads the rules with them."""
        if around.netfilter is None:
            return []
        text = fence_now(around)
        told = Told(
            kind="fence.applied",
            severity="warning",
            summary=f"fenced {len(request.addresses)} addresses of a suspect neighbour",
            detail={"reason": request.reason},
        )
        try:
            if text:
                around.netfilter.load(text)
        except OSError:
            return []  # the pass that follows loads all of it whole, and reads it back
        return [told]

    def undo(self, around: Surroundings) -> list[Told]:
        """Nothing is left to put away: the pass loads the rules without the addresses."""
        return []
