"""Response `isolate`: the node talks to the controller, and to what its signed isolated posture names; to nobody else.

The posture itself is kept by the firewall probe on every pass. `apply` is the part that cannot wait: the cut
table in one commit (under a millisecond), then open flows are ended. Isolation never ends by itself.
Refuses addresses: whom a node may still talk to is in its baseline, not in the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import responses
from agent.firewall import elsewhere
from agent.firewall.kept import Kept
from agent.firewall.model import model
from agent.firewall.nft import render_cut
from agent.firewall.section import Section
from agent.netfilter import Cut
from agent.responses import Told, Wanted
from contract import directive
from contract.errors import Rejected
from contract.messages import never_more

if TYPE_CHECKING:
    from agent.probes import Surroundings


class Response(responses.Response):
    """See the module."""

    def wanted(self, request: directive.Response) -> Wanted:
        """Return posture `isolated`. Raises Rejected `directive.response` where addresses are given."""
        if request.addresses:
            raise Rejected("directive.response", "isolate: takes no addresses")
        return Wanted(posture="isolated")

    def apply(self, around: Surroundings, request: directive.Response) -> list[Told]:
        """Cut at once. A failure is told; the pass that follows tries again with the whole batch."""
        netfilter = around.netfilter
        if netfilter is None:
            return [_failed("no access to nftables")]
        # Without a prepared cut no baseline was ever in force: the controller alone.
        cut = netfilter.prepared_cut or Cut(
            render_cut(Section(), around), Kept(model(Section(), "isolated", around))
        )
        try:
            entries, sockets = netfilter.cut_now(cut)
        except OSError as error:
            return [_failed(str(error))]
        detail = {"conntrack_deleted": str(entries), "sockets_destroyed": str(sockets)}
        reason = never_more(f"isolated: {request.reason or 'no reason given'}", 2048)
        return [Told(kind="isolate.applied", severity="critical", summary=reason, detail=detail)]

    def undo(self, around: Surroundings) -> list[Told]:
        """Join other namespaces that were cut off. Here the pass loads the rules of the new posture, without the cut."""
        try:
            elsewhere.rejoin(around.remembered)
        except OSError as error:
            return [
                Told(kind="isolate.failed", severity="warning", summary=f"still cut off elsewhere: {error}")
            ]
        return []


def _failed(why: str) -> Told:
    return Told(
        kind="isolate.failed",
        severity="critical",
        summary=never_more(f"isolation is not complete: {why}", 2048),
    )
