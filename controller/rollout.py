"""The decision of a rollout, pure: who is next, who has proved it, when to go on, when to halt.

Rules that hold whatever the input:
1. A node has proved a baseline only when its evidence says that it is in force, confirmed and without drift, and the evidence
   is trusted. Sent is not proved, applied is not proved.
2. No wave begins before every node of those before it that can be reached has proved it, and has held it for the soak time.
   Nodes that cannot be reached do not hold anybody up, except in the first wave: somebody must have proved it.
3. Past `max_failures` nothing more is sent.
4. Outside the windows nothing is sent. What was sent before is still judged.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from controller.rollout_records import NodeFacts, Progress, Terms, Wave

_UNREACHABLE = frozenset({"unreachable"})
_WORSE = frozenset({"untrusted", "isolated"})


class Moved(NamedTuple):
    """A node's new progress, and why."""

    node: str
    progress: Progress
    detail: str


class Step(NamedTuple):
    """What follows from the facts."""

    moved: tuple[Moved, ...]
    send: tuple[str, ...]
    """Choose the baseline for these."""
    wave: int
    halt: str
    """Why nothing more is sent; empty: go on."""
    done: bool


def waves_of(nodes: Sequence[tuple[str, str, bool]], waves: Sequence[Wave]) -> dict[str, int]:
    """Return the wave of each node, from 1. `nodes`: name, site, and whether it is healthy and connected.

    Within a wave of numbers or percents the healthy come first, so that a canary is one that can prove something;
    then by a hash of the name, so that neither a site nor the beginning of the alphabet is always first.
    """
    order = sorted(nodes, key=lambda n: (not n[2], hashlib.sha256(n[0].encode()).digest()))
    left = [name for name, _, _ in order]
    site_of = {name: site for name, site, _ in nodes}
    out: dict[str, int] = {}
    number = 0
    for wave in waves:
        if wave.sites is not None:
            chosen = [name for name in left if site_of[name] in wave.sites]
        else:
            upto = wave.nodes if wave.nodes is not None else -(-len(nodes) * (wave.percent or 0.0) // 100)
            chosen = left[: max(0, int(upto) - len(out))]
        if chosen:
            number += 1
            out |= dict.fromkeys(chosen, number)
            taken = set(chosen)
            left = [name for name in left if name not in taken]
    return out | dict.fromkeys(left, number + 1)


def decide(terms: Terms, wave: int, facts: Sequence[NodeFacts], now: float, *, window_open: bool) -> Step:
    """Return the next step of a running rollout that has come to `wave` (0: nothing was sent yet)."""
    moved = [move for node in facts if (move := _judged(node, terms, now)) is not None]
    after = {node.node: node.progress for node in facts} | {move.node: move.progress for move in moved}
    failed = [node.node for node in facts if after[node.node] == "failed"]
    if len(failed) > terms.max_failures:
        shown = ", ".join(sorted(failed)[:5]) + (", ..." if len(failed) > 5 else "")
        return Step(
            tuple(moved), (), wave, f"{len(failed)} failed, at most {terms.max_failures} may: {shown}", False
        )
    last = max((node.wave for node in facts), default=0)
    if wave and not _wave_ended(facts, moved, wave, terms, now):
        return Step(
            tuple(moved), _sendable(facts, after, wave, terms) if window_open else (), wave, "", False
        )
    if wave >= last:
        return Step(tuple(moved), (), wave, "", True)
    if not window_open:
        return Step(tuple(moved), (), wave, "", False)
    return Step(tuple(moved), _sendable(facts, after, wave + 1, terms), wave + 1, "", False)


def _judged(node: NodeFacts, terms: Terms, now: float) -> Moved | None:
    """Return how a node has moved by what is known of it; None where it stays."""
    if node.progress not in ("sent", "away", "proved"):
        return None
    away = node.standing in _UNREACHABLE
    heard = node.last_report_at is not None and node.last_report_at > node.since
    if node.progress == "proved":
        trouble = _trouble(node) if not away else ""
        return Moved(node.node, "failed", f"after it had proved it: {trouble}") if trouble else None
    if away:
        return None if node.progress == "away" else Moved(node.node, "away", "cannot be reached")
    if node.progress == "away" and heard:
        return Moved(node.node, "sent", "is back")
    if not heard:
        return None
    trouble = _trouble(node)
    if node.holds and not trouble:
        return Moved(node.node, "proved", "in force, no drift")
    if now - node.since >= terms.deadline_s:
        return Moved(
            node.node, "failed", trouble or f"reports, and does not hold it after {terms.deadline_s:g} s"
        )
    return None


def _trouble(node: NodeFacts) -> str:
    if node.tier == "contraindicated" or node.standing in _WORSE:
        return f"it is {node.standing}, its evidence {node.tier}"
    if node.holds and node.drifts:
        return f"{node.drifts} drifts"
    return "" if node.holds else "it holds another baseline"


def _wave_ended(
    facts: Sequence[NodeFacts], moved: Sequence[Moved], wave: int, terms: Terms, now: float
) -> bool:
    """Say whether every node so far that can be reached has proved it, for long enough."""
    after = {node.node: (node.progress, node.since) for node in facts if node.wave <= wave}
    after |= {move.node: (move.progress, now) for move in moved if move.node in after}
    progress = {each for each, _ in after.values()}
    if progress & {"waiting", "sent"}:
        return False
    proved = [since for each, since in after.values() if each == "proved"]
    if not proved:
        return "away" not in progress
    return now - max(proved) >= terms.soak_s


def _sendable(
    facts: Sequence[NodeFacts], after: dict[str, Progress], wave: int, terms: Terms
) -> tuple[str, ...]:
    """Those of the wave whose turn it is, within the budget of each site."""
    under_way = Counter(node.site for node in facts if after[node.node] == "sent")
    out = []
    for node in sorted(facts, key=lambda each: (each.wave, each.node)):
        if node.wave > wave or after[node.node] != "waiting":
            continue
        if terms.per_site and under_way[node.site] >= terms.per_site:
            continue
        under_way[node.site] += 1
        out.append(node.node)
    return tuple(out)
