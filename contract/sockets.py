"""A node's open connections and listening sockets, as it tells them when a plan asks. Pure.

No quote covers them: they are good for a preview and for nothing else. Text that is not printable is refused.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from contract.errors import Rejected
from contract.messages import MAX_SOCKETS_BYTES, Count, Message
from contract.wire import decode

MAX_CONNECTIONS: Final = 1000
MAX_LISTENING: Final = 500
MAX_TEXT: Final = 128
"""Characters of a program, a user, a control group."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Said = Annotated[str, Meta(max_length=MAX_TEXT)]
AddressText = Annotated[str, Meta(max_length=45)]


class Connection(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """A socket that has a peer. Empty text and -1: the node could not tell."""

    protocol: Literal["tcp", "udp"]
    begun: Literal["here", "there"]
    """By whom: `there` where the node listens on the local port."""
    local_port: Port
    peer: AddressText
    peer_port: Port
    interface: Annotated[str, Meta(max_length=15)] = ""
    """By which the node reaches the peer."""
    uid: Annotated[int, Meta(ge=-1, le=2**32)] = -1
    user: Said = ""
    cgroup: Said = ""
    """Of the process that holds it: `/system.slice/vllm.service`."""
    program: Said = ""


class Listening(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """A socket that takes what comes, on other addresses than loopback."""

    protocol: Literal["tcp", "udp"]
    port: Port
    program: Said = ""


class Endpoint(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """Where the node knows its controller to be."""

    address: AddressText
    port: Port
    interface: Annotated[str, Meta(max_length=15)] = ""


class SocketReport(Message, frozen=True, kw_only=True):
    """All that a node tells of its sockets."""

    connections: Annotated[list[Connection], Meta(max_length=MAX_CONNECTIONS)] = field(default_factory=list)
    connections_left_out: Count = 0
    listening: Annotated[list[Listening], Meta(max_length=MAX_LISTENING)] = field(default_factory=list)
    listening_left_out: Count = 0
    controller: Annotated[list[Endpoint], Meta(max_length=16)] = field(default_factory=list)


def read_sockets(untrusted: bytes) -> SocketReport:
    """Return what a node tells. Raises Rejected `sockets.malformed`, `message.too-large`."""
    said = decode(untrusted, SocketReport, max_bytes=MAX_SOCKETS_BYTES, code="sockets.malformed")
    texts: list[str] = []
    for one in said.connections:
        texts += [one.interface, one.user, one.cgroup, one.program]
    texts += [one.program for one in said.listening]
    texts += [one.interface for one in said.controller]
    if not all(text.isprintable() for text in texts):
        raise Rejected("sockets.malformed", "text that cannot be shown")
    for address in [*(one.peer for one in said.connections), *(one.address for one in said.controller)]:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise Rejected("sockets.malformed", "an address is none") from None
    return said
