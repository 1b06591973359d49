"""The packaged lock-down baseline: what holds a node that has no signed baseline it can trust.

Default deny in, out and forward; the way to the controller is added by code. It is never reported as a baseline in force.
"""

from __future__ import annotations

from contract.baseline import Baseline, parse_baseline

NAME = "lockdown"
_TEXT = b"""\
[baseline]
name = "lockdown"
version = 1
summary = "No trusted baseline: the controller can be reached, and nothing else."

[firewall]
"""


def lockdown() -> Baseline:
    """Return the lock-down baseline, parsed by the code that parses signed ones."""
    return parse_baseline(_TEXT, file="lockdown.toml")
