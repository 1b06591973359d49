"""Draft of `[mounts]`: what is mounted now."""

from __future__ import annotations

from agent.learning import Draft, entry, section
from agent.probes import Surroundings

_ALLOWED = ("nodev", "nosuid", "noexec")
_PASSING = ("/run/user/", "/run/netns/", "/run/credentials/", "/var/lib/docker/", "/var/lib/containers/")
"""Below these, mounts come and go with sessions and containers."""


def draft(around: Surroundings) -> Draft:
    """Return a wanted mount for each, with the restricting options it has; passing ones are allowed by folder."""
    text = [
        section(
            "mounts", {"unknown": "report"}, decide="forbid network file systems, as the shipped baselines do"
        )
    ]
    seen: dict[str, tuple[str, list[str], int]] = {}
    passing: set[str] = set()
    for mount in around.host.mounts.mounts():
        folder = next((each for each in _PASSING if mount.path.startswith(each)), None)
        if folder is not None:
            passing.add(folder)
            continue
        options = [option for option in _ALLOWED if option in mount.options]
        seen[mount.path] = (mount.kind, options, seen.get(mount.path, ("", [], 0))[2] + 1)
    left_out = [
        f"mounts: {path}: {count} mounts, one over the other"
        for path, (_, _, count) in seen.items()
        if count > 1
    ]
    for path, (kind, options, count) in sorted(seen.items()):
        if count > 1:  # which of them is meant? allowed by path, whatever is on top
            text.append(
                entry("mounts.allow", {"paths": [path]}, decide="several mounts lie over each other here")
            )
        else:
            text.append(entry("mounts.mount", {"path": path, "types": [kind], "options": options}))
    if passing:
        text.append(
            entry("mounts.allow", {"paths": sorted(passing)}, decide="mounts of sessions and containers")
        )
    return Draft("\n".join(text), left_out)
