"""Our tables as libnftables lists them, and what a text would make of them, tried where it harms nobody.

What is wanted is loaded in a throw-away network namespace and listed there by the same code: only what the kernel itself made of two texts is
ever compared. Relies on: libnftables.so.1; CAP_SYS_ADMIN for the throw-away namespace.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import nftables

from agent.firewall import compare, link, netlink
from agent.firewall.compare import Canonical
from agent.firewall.library import NetfilterError, context, parsed, run
from agent.firewall.netlink import Talk
from agent.firewall.spare import Names
from contract.errors import Rejected

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_FLAG_NAMES = {1: "dormant", 2: "owner", 4: "persist"}


def own(within: nftables.Nftables, talk: Talk, wanted: Iterable[tuple[str, str]], names: Names) -> Canonical:
    """Return the canonical form of tables of ours, by their own names, of those that stand."""
    standing = netlink.tables(talk)
    names.leave(standing)
    flags = {(each.family, each.name): each.flags for each in standing}
    out: dict[str, tuple[str, ...]] = {}
    for family, table in wanted:
        real = names.real((family, table))
        if flags.get(real):
            # Never listed: ours has no flags, and older libraries read freed memory when they print them.
            said = [name for bit, name in _FLAG_NAMES.items() if flags[real] & bit]
            out[f"{family} {table} table {table}"] = (f"flags {' '.join(said) or flags[real]}",)
        elif real in flags:
            listed = parsed(run(within, f"list table {' '.join(real)}"))
            out |= compare.canonical(names.objects(listed, (family, table)))
    return out


def loaded(text: str, tables: Iterable[tuple[str, str]]) -> Canonical:
    """Return `own` of `tables` with nothing but `text` loaded. Raises Rejected `firewall.refused`. For `in_own_namespace`."""
    within = context()
    try:
        run(within, link.on_loopback(text))
    except NetfilterError as error:
        raise Rejected("firewall.refused", str(error.strerror)) from None
    talk = Talk()
    try:
        return own(within, talk, tables, Names())
    finally:
        talk.close()


def in_own_namespace(work: Callable[[], T]) -> T:
    """Run `work` on a thread with a network namespace of its own, which ends with it."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise NetfilterError(code, f"unshare: {os.strerror(code)}")
            results.append(work())
        except (OSError, Rejected, ValueError) as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="nftables-dry-run")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
