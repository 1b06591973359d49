"""The firewall for the test over every probe. Its own tests are in `tests/agent/firewall`."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.agent.firewall.lab import BASELINE, FencedNode
from tests.agent.probes.case import Case
from tests.parts.topology import Topology

_SYS_SETRESUID = {"x86_64": 117, "aarch64": 147}
_NOBODY, _KEEP = 65534, -1


def _set_effective_user(uid: int) -> None:
    """Change the effective user of the calling thread only, which is what the kernel's own call does."""
    number = _SYS_SETRESUID[__import__("platform").machine()]
    if ctypes.CDLL(None, use_errno=True).syscall(number, _KEEP, uid, _KEEP):
        raise OSError(ctypes.get_errno(), "setresuid")


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    toml = "[firewall]\n" + re.sub(r"^(\[\[?)", r"\1firewall.", BASELINE, flags=re.MULTILINE)
    with Topology({"probe": 1}) as built:
        node = FencedNode(built.nodes[0], built)
        try:
            node.settle()
            yield Case(
                toml=toml,
                around=node.probe.around,
                spoil=lambda: node.namespace.nft("delete table inet ringfence"),
                # Without CAP_NET_ADMIN the kernel tells nothing about nftables.
                blind=lambda: node.do(lambda: _set_effective_user(_NOBODY)),
                state=node.namespace.ruleset,
                trace=lambda: node.namespace.run("nft", "-a", "list", "ruleset").stdout,
                run=node.do,
                undoes=False,
            )
        finally:
            node.do(lambda: _set_effective_user(0))
            node.clear()
            node.close()
