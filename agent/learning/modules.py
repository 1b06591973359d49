"""Draft of `[modules]`: what the kernel has loaded now."""

from __future__ import annotations

from agent.learning import Draft, entry, section
from agent.probes import Surroundings


def draft(around: Surroundings) -> Draft:
    """Return one rule with every loaded module. A kernel without modules gets a section that names none."""
    modules = around.host.modules
    try:
        loaded = [module.name for module in modules.loaded()] if modules.loadable() else []
    except FileNotFoundError:
        # The list cannot be looked at here; a section would only say so in every report.
        return Draft("", ["modules: this kernel shows no list of its modules"])
    head = section(
        "modules", {"unknown": "report"}, decide="block what no node of yours needs, as strict.toml does"
    )
    if not loaded:
        return Draft(head, [])
    return Draft(
        f"{head}\n{entry('modules.allow', {'names': loaded}, decide='drivers of passing devices are here too')}",
        [],
    )
