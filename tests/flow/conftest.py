"""One small lab for all flow tests: two sites, three nodes, everything real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flow.lab import Lab


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """East with two nodes, west with one; each holds version 1 of the baseline named after its site."""
    with Lab({"east": 2, "west": 1}, interval_s=4.0, confirm_s=6.0) as built:
        built.bring_up()
        yield built
