"""Whether this controller's keys are those of the others over the same database: a node believes one set, not two.

The database keeps their fingerprints, never a key. A controller that finds another fingerprint refuses to start.
"""

from __future__ import annotations

from collections.abc import Mapping

from contract.errors import Rejected
from controller.store import Duplicate, Store, Transaction, replicas


async def check(store: Store, held: Mapping[str, str], now: float) -> list[str]:
    """Hold these fingerprints (by name) against the recorded ones, and record what is new. Returns names that others hold and
    this one does not. Raises Rejected `keys.others`."""
    try:
        return await store.run(lambda tx: _check(tx, held, now))
    except Duplicate:  # another controller recorded its own a moment ago
        return await store.run(lambda tx: _check(tx, held, now))


def _check(tx: Transaction, held: Mapping[str, str], now: float) -> list[str]:
    recorded = replicas.keys(tx)
    other = sorted(name for name, sha256 in held.items() if recorded.get(name, sha256) != sha256)
    if other:
        raise Rejected(
            "keys.others",
            f"{', '.join(other)}: not the keys of the controllers over this database; copy their folder keys/ here"
            " (without server.pem and server.key) and start again",
        )
    replicas.add_keys(tx, {name: sha256 for name, sha256 in held.items() if name not in recorded}, now)
    return sorted(name for name in recorded if name not in held)
