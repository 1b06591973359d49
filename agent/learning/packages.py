"""Draft of `[packages]`: what is installed now, without versions."""

from __future__ import annotations

from agent.learning import Draft, entry, section
from agent.probes import Surroundings


def draft(around: Surroundings) -> Draft:
    """Return one rule that allows what is installed; another package is then drift. Raises OSError without a database."""
    names = sorted({package.name for package in around.host.packages.versions()})
    decide = "strike out compilers and debuggers; `want` with `minimum` what must be there and how new"
    return Draft(
        "\n".join(
            [
                section("packages", {"unknown": "report"}),
                entry("packages.allow", {"names": names}, decide=decide),
            ]
        ),
        [],
    )
