"""Draft of `[time]`: whether the clock is set, and by which servers."""

from __future__ import annotations

from agent.learning import Draft, entry, section
from agent.probes import Surroundings
from agent.timeservers import configured


def draft(around: Surroundings) -> Draft:
    """Return the configured servers. Raises OSError."""
    servers = sorted(configured(around.host))
    set_now = around.host.clock.kernel().synchronised
    keys = {"synchronised": set_now, "unknown": "report" if servers else "ignore"}
    decide = "" if set_now else "no time service has set this clock; certificates and directives expire by it"
    text = [section("time", keys, decide=decide)]
    if servers:
        text.append(
            entry(
                "time.server", {"names": servers}, decide="public servers: anybody's clock, over the Internet"
            )
        )
    return Draft("\n".join(text), [] if servers else ["time: no server is configured"])
