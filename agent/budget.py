"""What repairs may cost, and when one rests because it does not last. PURE: no clock, no files.

Whoever changes a thing again and again must not make the agent burn the node (processor, flash) by mending it. So each
section has an account: processor time and bytes written by its repairs within an hour, and when each key was last
mended. A key that was mended `FLAPS` times within `WITHIN_S` rests, and rests twice as long each time after that; it
stays a drift meanwhile, and is never forgotten.

Refuses: to count for the firewall and for what closes a door in one step (`Probe.rationed`): those never rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from contract.baseline import RepairLimits

HOUR_S = 3600.0
FLAPS = 3
WITHIN_S = 600.0
FIRST_REST_S = 30.0
LONGEST_REST_S = 900.0
MAX_KEYS = 1024
"""Keys of one section whose repairs are remembered, the latest ones: an attacker chooses how many there are."""
_SLOT_S = 60.0
"""Costs within this time are one entry."""


class Cost(NamedTuple):
    """What one round of repairs took."""

    processor_s: float
    written_bytes: int


class Spent(NamedTuple):
    """Cost since `at`, seconds on the monotonic clock."""

    at: float
    processor_s: float
    written_bytes: int


class Tries(NamedTuple):
    """Repairs of one key."""

    latest: tuple[float, ...]
    """The last `FLAPS` of them."""
    times: int
    """Since it was last quiet."""
    rest_s: float
    """How long it rests after the last one."""


class Account(NamedTuple):
    """One section's."""

    spent: tuple[Spent, ...] = ()
    tries: Mapping[str, Tries] = {}


class Decision(NamedTuple):
    """What may be repaired now, and why the rest may not."""

    may: frozenset[str]
    resting: Mapping[str, str]
    """Key -> why."""
    over: str
    """Why nothing at all may be repaired; empty: the budget holds."""


def decide(account: Account, limits: RepairLimits, keys: Iterable[str], now: float) -> Decision:
    """Say which of the drifting `keys` may be repaired at `now`, seconds on the monotonic clock."""
    keys = list(dict.fromkeys(keys))
    recent = [each for each in account.spent if now - each.at < HOUR_S]
    processor_s = sum(each.processor_s for each in recent)
    written_mb = sum(each.written_bytes for each in recent) / 1e6
    over = ""
    if processor_s >= limits.processor_s:
        over = f"repair budget spent: {limits.processor_s:g} s of processor time in an hour"  # what it took may be more
    elif written_mb >= limits.written_mb:
        over = f"repair budget spent: {limits.written_mb:g} MB written in an hour"
    if over:
        return Decision(frozenset(), dict.fromkeys(keys, over), over)
    resting = {}
    for key in keys:
        tries = account.tries.get(key)
        if tries is not None and now - tries.latest[-1] < tries.rest_s:
            resting[key] = f"repaired {tries.times} times; rests {tries.rest_s:g} s"
    return Decision(frozenset(keys) - resting.keys(), resting, "")


def charge(account: Account, keys: Iterable[str], cost: Cost, now: float) -> Account:
    """Return the account after a round of repairs of `keys`, whether they worked or not."""
    spent = [each for each in account.spent if now - each.at < HOUR_S]
    if spent and now - spent[-1].at < _SLOT_S:
        last = spent.pop()
        cost = Cost(last.processor_s + cost.processor_s, last.written_bytes + cost.written_bytes)
        spent.append(Spent(last.at, *cost))
    else:
        spent.append(Spent(now, *cost))
    tries = {key: each for key, each in account.tries.items() if not _quiet(each, now)}
    for key in dict.fromkeys(keys):
        before = tries.pop(key, Tries((), 0, 0.0))
        latest = (*before.latest, now)[-FLAPS:]
        rest_s = before.rest_s
        if rest_s:
            rest_s = min(2 * rest_s, LONGEST_REST_S)
        elif len(latest) == FLAPS and now - latest[0] < WITHIN_S:
            rest_s = FIRST_REST_S
        tries[key] = Tries(latest, before.times + 1, rest_s)
    return Account(tuple(spent), dict(list(tries.items())[-MAX_KEYS:]))


def _quiet(tries: Tries, now: float) -> bool:
    """Tell whether a key has kept still for so long after its rest that it begins anew."""
    return now - tries.latest[-1] >= tries.rest_s + WITHIN_S
