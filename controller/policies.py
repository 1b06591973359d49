"""What reports are judged by: the sections of a signed baseline, compiled, and what is announced for a site. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from contract.boot import BootPolicy
from contract.imapolicy import ImaPolicy
from contract.imarules import ImaRules
from contract.references import NOTHING_EXPECTED, Expected, policy_fingerprint
from controller.records import Record, Sections


class Policies(Record, frozen=True, kw_only=True, weakref=True):
    """What one baseline says of attestation."""

    boot: BootPolicy
    expected: Expected = NOTHING_EXPECTED
    """What is announced for the site."""
    fingerprint: bytes
    """Of the [boot] section and what is announced: a boot that was judged by another one is judged again."""
    ima: ImaRules | None
    """None: the baseline has no [ima] section, and nobody wants the log."""
    without: Policies | None = None
    """The same where nothing is announced: lives for as long as any site's do."""


def expecting(policies: Policies, expected: Expected) -> Policies:
    """Return the same policies at a site for which something is announced."""
    fingerprint = policy_fingerprint(policies.boot, None, expected)
    return msgspec.structs.replace(policies, expected=expected, fingerprint=fingerprint, without=policies)


def compiled(sections: Sections) -> Policies:
    """Compile stored sections; an absent [boot] section is the strictest there is."""
    boot = msgspec.json.decode(sections.boot, type=BootPolicy) if sections.boot else BootPolicy()
    return Policies(
        boot=boot,
        fingerprint=policy_fingerprint(boot, None, NOTHING_EXPECTED),
        ima=ImaRules(msgspec.json.decode(sections.ima, type=ImaPolicy)) if sections.ima else None,
    )


STRICTEST: Final = compiled(Sections(boot=b"", ima=b""))
"""Holds for a site without a baseline."""
