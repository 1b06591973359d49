"""`isolate` for the test over every response; its packets are in `tests/agent/firewall`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.directive import Response as Request
from tests.agent.responses.case import Case, firewall_case


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    request = Request(name="isolate", reason="evidence broken")
    with firewall_case(request, [Request(name="isolate", addresses=["10.0.0.1"])]) as made:
        yield made
