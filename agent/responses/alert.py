"""`alert`: put a critical event into the spool, so that people on site and the SOC see it. Changes nothing else."""

from __future__ import annotations

from agent.probes import Surroundings
from agent.responses import Response as ResponseBase
from agent.responses import Told, Wanted
from contract import directive


class Response(ResponseBase):
    """Tell, in the controller's own words, that something is wrong here."""

    def wanted(self, request: directive.Response) -> Wanted:
        """Want nothing of the machine."""
        return Wanted()

    def apply(self, around: Surroundings, request: directive.Response) -> list[Told]:
        """Return one critical event with the reason that the controller gave."""
        return [Told(kind="response.alert", severity="critical", summary=request.reason or "alert")]

    def undo(self, around: Surroundings) -> list[Told]:
        """Leave nothing: an event that was told stays told."""
        return []
