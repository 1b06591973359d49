"""`alert` for the test over every response."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.directive import Response as Request
from tests.agent.responses.case import Case, firewall_case


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    with firewall_case(Request(name="alert", reason="look here"), [], acts=False, fails=False) as made:
        yield made
