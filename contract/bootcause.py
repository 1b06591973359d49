"""What most likely happened where two boots differ: in words, for the person who has to decide. Decides nothing.

Stages, descriptions and commands are as much worth as the reference that holds them; packages are the node's own word.
"""

from __future__ import annotations

from collections.abc import Sequence

from contract.bootpolicy import REVOCATION
from contract.bootreference import OTHER, Change, Reference, release_of
from contract.messages import never_more
from contract.nodeword import NOTHING_SAID, NodeWord, packages_text

MAX_CAUSE_CHARS = 512


def likely_cause(
    changes: Sequence[Change], before: Reference, after: Reference, word: NodeWord = NOTHING_SAID
) -> str:
    """Return in words what most likely happened; empty where the changes tell no story."""
    stages = {change.stage or OTHER for change in changes}
    named = sorted(stages - {OTHER, REVOCATION})
    commands = _commands(before, after)
    if commands and not named:
        return commands
    if before.firmware_version != after.firmware_version and "firmware" in named:
        return never_more(
            f"firmware '{before.firmware_version}' became '{after.firmware_version}'", MAX_CAUSE_CHARS
        )
    was, now = release_of(before.command_line), release_of(after.command_line)
    parts = [f"the {stage}" for stage in named]
    if "kernel" in named and was and now and was != now:
        parts[named.index("kernel")] += f" ({was} -> {now})"
    parts += _lists(changes)
    if not parts:
        return ""
    rest = "and nothing else" if OTHER not in stages else "with other events"
    text = f"{' and '.join(parts)} changed{',' if OTHER in stages else ''} {rest}"
    packages = packages_text(word, stages, now)
    return never_more(f"{text}; {packages}" if packages else text, MAX_CAUSE_CHARS)


def _commands(before: Reference, after: Reference) -> str:
    """Return how the kernel's command line changed; empty where it did not, or is not known."""
    if not before.command_line or not after.command_line:
        return ""
    was, now = before.command_line.split(), after.command_line.split()
    parts = [f"+{p}" for p in now if p not in was] + [f"-{p}" for p in was if p not in now]
    return never_more(f"the kernel command line changed: {' '.join(parts)}", 240) if parts else ""


def _lists(changes: Sequence[Change]) -> list[str]:
    """Return which lists of revocations or of the owner's keys changed, by their names."""
    names = {
        change.after.description.partition(" ")[0]
        for change in changes
        if change.stage == REVOCATION and change.after is not None
    }
    return [f"the list {name}" for name in sorted(names)]
