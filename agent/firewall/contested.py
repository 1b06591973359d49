"""What a drift of the firewall says about a fight over it, by its key. Pure."""

from __future__ import annotations

from agent.firewall.beneath import is_table
from agent.firewall.foreigners import leads_past
from agent.firewall.holds import is_hold
from contract.messages import Drift

_RULESET = "ruleset"


def is_held(drift: Drift) -> bool:
    """Tell whether somebody keeps us from mending this: a table under a name of ours that is owned, or rewriting that stands."""
    return is_hold(drift.key) or leads_past(drift)


def is_fought_over(drift: Drift) -> bool:
    """Tell whether a drift that was mended, or that somebody keeps us from mending, counts for the contest."""
    return is_table(drift.key) or leads_past(drift)


def says_not_in_force(key: str) -> bool:
    """Tell whether our rules are not in force as wanted, or nobody could look, as long as a drift with this key stands."""
    return key == _RULESET or (is_table(key) and not is_hold(key) and not key.endswith(" remains"))
