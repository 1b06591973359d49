"""What a response's test module gives to the test that runs over every response (`test_every_response`).

Each `tests/agent/responses/test_<name>.py` has `case(folder)`, a context manager that yields a Case built on real
parts: a machine as its baseline wants it, and one good request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from agent.netfilter import NetfilterError
from agent.probes import Surroundings
from agent.responses import Wanted
from contract.directive import Response as Request
from tests.agent.firewall.lab import FencedNode
from tests.parts.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Case:
    """One response on one machine."""

    request: Request
    bad: list[Request]
    """Requests under its name that are refused."""
    around: Callable[[Wanted], Surroundings]
    """The surroundings as the loop makes them for what is wanted."""
    state: Callable[[], object]
    """What the machine is, as a witness sees it."""
    passes: Callable[[Wanted], None]
    """The pass that follows: the machine is looked at and repaired."""
    spoil: Callable[[], None]
    """Make the quick part fail."""
    run: Callable[[Callable[[], Any]], Any] = lambda work: work()
    acts: bool = True
    """Whether `apply` itself changes the machine."""
    fails: bool = True
    """Whether there is anything in `apply` that can fail."""


@contextmanager
def firewall_case(
    request: Request, bad: list[Request], *, acts: bool = True, fails: bool = True
) -> Iterator[Case]:
    """Yield a case on a node with the real firewall."""
    with Topology({"response": 1}) as built:
        node = FencedNode(built.nodes[0], built)
        try:
            node.settle()

            def around(wanted: Wanted) -> Surroundings:
                return replace(node.probe.around, posture=wanted.posture or "normal", fenced=wanted.fenced)

            def spoil() -> None:
                def refuse(text: str) -> None:
                    raise NetfilterError(1, "not permitted")

                node.netfilter.load = refuse  # type: ignore[method-assign]

            yield Case(
                request=request,
                bad=bad,
                around=around,
                state=lambda: sorted(t.strip() for t in f"\n{node.namespace.ruleset()}".split("\ntable ")),
                passes=lambda wanted: node.settle(wanted.posture or "normal", wanted.fenced),
                spoil=spoil,
                run=node.do,
                acts=acts,
                fails=fails,
            )
        finally:
            node.clear()
            node.close()
