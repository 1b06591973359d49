"""`fence` for the test over every response; its packets are in `tests/agent/firewall/test_packets.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.directive import Response as Request
from tests.agent.responses.case import Case, firewall_case

BAD = (
    [],
    ["10.0.0.0/8"],
    ["fe80::1%eth0"],
    ["127.0.0.1"],
    ["0.0.0.0"],
    ["224.0.0.1"],
    ["host"],
    ["1.2.3.4 } ; flush ruleset ;"],
)


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    request = Request(name="fence", reason="suspect", addresses=["10.10.1.13", "fd10:1::13"])
    bad = [Request(name="fence", addresses=list(addresses)) for addresses in BAD]
    with firewall_case(request, bad) as made:
        yield made
