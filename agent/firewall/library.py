"""libnftables: text in, JSON out, one batch at a time (docs/adr/0002-nft-text-in-json-out.md).

Refuses nothing by itself. Relies on: CAP_NET_ADMIN; libnftables.so.1; the network namespace of the thread that makes a context.
"""

from __future__ import annotations

import errno
import re

import nftables

from agent.firewall import compare

_MAX_ERROR_CHARS = 400


class NetfilterError(OSError):
    """The kernel or libnftables did not do what was asked. Nothing of the batch is in force."""


def context() -> nftables.Nftables:
    """Return a context that prints JSON, with numbers for protocols and symbols."""
    made = nftables.Nftables()
    made.set_json_output(True)
    made.set_numeric_proto_output(True)
    made.set_numeric_symbol_output(True)
    return made


def run(within: nftables.Nftables, text: str) -> str:
    """Carry out a batch, whole or not at all; return what it lists. Raises NetfilterError with the library's words."""
    code, out, error = within.cmd(text)
    if code != 0:
        raise NetfilterError(errno.EINVAL, " ".join(str(error).split())[:_MAX_ERROR_CHARS])
    return str(out)


def parsed(listing: str) -> list[compare.Object]:
    """Return the objects of a listing. Raises NetfilterError where it is no JSON."""
    try:
        return compare.parsed(listing)
    except (ValueError, KeyError) as error:
        raise NetfilterError(errno.EBADMSG, f"libnftables printed no JSON ({error})") from None


def version(within: nftables.Nftables) -> tuple[int, ...]:
    """Return the library's version; empty where it does not say."""
    for entry in parsed(run(within, "list counters")):
        about = entry.get("metainfo")
        if isinstance(about, dict):
            return tuple(int(part) for part in re.findall(r"\d+", str(about.get("version")))[:3])
    return ()
