"""The little of netlink that the firewall needs besides libnftables: frames, attributes, questions and answers.

Refuses lengths that do not fit, by stopping there: the kernel is the only writer. Relies on: `man 7 netlink`,
uapi/linux/netlink.h, uapi/linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
DIAG_BY_FAMILY = 20
NETLINK_NETFILTER = 12
SUBSYSTEM_CONNTRACK = 1
SUBSYSTEM_NFTABLES = 10
NFGENMSG_BYTES = 4
NLM_REQUEST = 1
NLM_ACK = 4
NLM_DUMP = 0x300
NLM_CREATE = 0x400

_DIAG_REQUEST = struct.Struct("=BBBxI48x")
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
HEADER_BYTES = _HEADER.size
_ERROR = 2
_DONE = 3
_ORDERS_AT_ONCE = 64
_SO_SNDBUFFORCE = 32
_USUAL_SEND_BYTES = 64 * 1024
_GETTABLE, _DELTABLE = 1, 2
_GETCHAIN = 4
_DELRULE = 8
_GETGEN = 16
_GETOBJECT = 19
_COUNTER = 1
_BATCH_BEGIN, _BATCH_END = 16, 17
_BATCH_GENERATION = 1
_TYPE_MASK = 0x3FFF
"""Upper bits: nested, network byte order."""


class Message(NamedTuple):
    """One netlink message without its header."""

    kind: int
    payload: bytes
    sequence: int
    """Of the question that it answers; 0 for an announcement."""


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield Message(kind, data[at + _HEADER.size : at + length], sequence)
        at += (length + 3) & ~3


def attributes(payload: bytes) -> dict[int, bytes]:
    """Return attribute values by type; the last of a kind wins."""
    return dict(attribute_list(payload))


def attribute_list(payload: bytes) -> list[tuple[int, bytes]]:
    """Return every attribute in its order, (type, value); also many of one type."""
    out = []
    at = 0
    while at + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, at)
        if length < _ATTRIBUTE.size or at + length > len(payload):
            break
        out.append((kind & _TYPE_MASK, payload[at + _ATTRIBUTE.size : at + length]))
        at += (length + 3) & ~3
    return out


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def frame(kind: int, flags: int, payload: bytes, sequence: int) -> bytes:
    """Return one message with its header."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags | NLM_REQUEST, sequence, 0) + payload


class Talk:
    """A netlink socket for questions; bound to the network namespace of the thread that makes it."""

    def __init__(self, protocol: int = NETLINK_NETFILTER) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.settimeout(2.0)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()

    def ask(self, kind: int, payload: bytes) -> Message:
        """Return the one answer to a question. Raises OSError as the kernel says, TimeoutError after 2 s."""
        self._send([(kind, payload)], 0)
        while True:
            for answer in self._answers(self._sequence):
                _raise_error(answer)
                return answer

    def tell(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """Give one order. Raises OSError as the kernel says."""
        self._send([(kind, payload)], NLM_ACK | flags)
        while not (answers := self._answers(self._sequence)):
            pass
        for answer in answers:
            _raise_error(answer)

    def dump(self, kind: int, payload: bytes) -> Iterator[Message]:
        """Yield every object of a dump. Raises OSError as `ask`."""
        self._send([(kind, payload)], NLM_DUMP)
        while True:
            for answer in self._answers(self._sequence):
                if answer.kind == _DONE:
                    return
                _raise_error(answer)
                yield answer

    def order(self, orders: list[tuple[int, bytes]]) -> int:
        """Send orders in bulk; return how many the kernel carried out (the rest were gone already, or refused)."""
        done = 0
        for start in range(0, len(orders), _ORDERS_AT_ONCE):
            part = orders[start : start + _ORDERS_AT_ONCE]
            first = self._sequence + 1
            self._send(part, NLM_ACK)
            answered = 0
            while answered < len(part):
                for answer in self._answers(first):
                    answered += 1
                    done += answer.kind == _ERROR and answer.payload[:4] == b"\0\0\0\0"
        return done

    def commit(
        self, orders: Sequence[tuple[int, bytes]], generation: int | None = None, *, create: bool = False
    ) -> None:
        """Carry out orders to nftables in one commit, all or none; payloads with their nfgenmsg. Raises OSError.

        With a `generation`, ERESTART where somebody has committed since it was read. `create`: what is not there is made.
        """
        start = struct.pack("!BBH", 0, 0, SUBSYSTEM_NFTABLES)
        known = b"" if generation is None else attribute(_BATCH_GENERATION, struct.pack("!I", generation))
        parts = [(_BATCH_BEGIN, start + known, 0)]
        flags = NLM_ACK | (NLM_CREATE if create else 0)
        parts += [(SUBSYSTEM_NFTABLES << 8 | kind, payload, flags) for kind, payload in orders]
        first = self._sequence + 1
        self._put([*parts, (_BATCH_END, start, 0)])
        answered = 0
        while answered < len(orders):
            for answer in self._answers(first):
                _raise_error(answer)
                answered += 1

    def _answers(self, first: int) -> list[Message]:
        """Return the messages of the next datagram, without late answers to what was asked before `first`."""
        return [each for each in messages(self._socket.recv(1 << 20)) if each.sequence >= first]

    def _send(self, parts: list[tuple[int, bytes]], flags: int) -> None:
        self._put([(kind, payload, flags) for kind, payload in parts])

    def _put(self, parts: Sequence[tuple[int, bytes, int]]) -> None:
        frames = []
        for kind, payload, flags in parts:
            self._sequence += 1
            one = frame(kind, flags, payload, self._sequence)
            frames.append(one + b"\0" * (-len(one) % 4))
        out = b"".join(frames)
        if len(out) > _USUAL_SEND_BYTES:  # a batch is one datagram, whatever its size
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(out))
        self._socket.send(out)


def _raise_error(answer: Message) -> None:
    if answer.kind == _ERROR:
        (code,) = struct.unpack_from("=i", answer.payload)
        if code:
            raise OSError(-code, os.strerror(-code))


def sockets(talk: Talk, family: int, protocol: int, states: int) -> Iterator[bytes]:
    """Yield the sockets of an address family and protocol in some states (a bit each), as inet_diag_msg (sock_diag(7)).

    `talk` speaks NETLINK_SOCK_DIAG. Raises OSError: ENOENT or EOPNOTSUPP from a kernel without this diagnosis.
    """
    for message in talk.dump(DIAG_BY_FAMILY, _DIAG_REQUEST.pack(family, protocol, 0, states)):
        yield message.payload


def generation(talk: Talk) -> int:
    """Return the number of the last nftables commit in the socket's network namespace (13 microseconds)."""
    answer = talk.ask(SUBSYSTEM_NFTABLES << 8 | _GETGEN, struct.pack("!BBH", 0, 0, 0))
    return int.from_bytes(attributes(answer.payload[NFGENMSG_BYTES:]).get(1, b""), "big")


class Table(NamedTuple):
    """One nftables table as the kernel lists it. The name may hold anything: other programs chose it."""

    family: str
    name: str
    flags: int
    """1 dormant, 2 owner, 4 persist."""
    handle: int = 0
    owner: int = 0
    """The port of the netlink socket that owns it; 0 where nobody does."""


OWNED = 2
"""Flag of a table that only its owner can change, for as long as that has its socket open (kernel 5.12)."""
_NETDEV = 5
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS = {name: number for number, name in FAMILIES.items()}


def tables(talk: Talk) -> list[Table]:
    """Return every table of the socket's network namespace."""
    out = []
    for message in talk.dump(SUBSYSTEM_NFTABLES << 8 | _GETTABLE, struct.pack("!BBH", 0, 0, 0)):
        found = attributes(message.payload[NFGENMSG_BYTES:])
        family = FAMILIES.get(message.payload[0], str(message.payload[0]))
        name = found.get(1, b"").rstrip(b"\0").decode("utf-8", "replace")
        flags, handle, owner = (int.from_bytes(found.get(kind, b""), "big") for kind in (2, 4, 7))
        out.append(Table(family, name, flags, handle, owner if flags & OWNED else 0))
    return out


def delete_tables(talk: Talk, listed: Iterable[Table]) -> None:
    """Delete tables in one commit, all or none, whatever their names are made of. Raises OSError.

    They are named by handle, so one of the same name that was made since stays.
    """
    orders = [
        (_DELTABLE, head(each.family) + attribute(4, struct.pack("!Q", each.handle))) for each in listed
    ]
    if orders:
        talk.commit(orders)


class Rule(NamedTuple):
    """Where one rule stands."""

    family: str
    table: str
    chain: str
    handle: int


def delete_rules(talk: Talk, listed: Iterable[Rule], generation: int) -> None:
    """Delete rules in one commit, all or none. Raises OSError: ERESTART where somebody has committed since `generation`."""
    orders = []
    for each in listed:
        names = [attribute(kind, name.encode() + b"\0") for kind, name in ((1, each.table), (2, each.chain))]
        body = b"".join([head(each.family), *names, attribute(3, struct.pack("!Q", each.handle))])
        orders.append((_DELRULE, body))
    if orders:
        talk.commit(orders, generation)


def head(family: str) -> bytes:
    """Return the beginning (nfgenmsg) of an order or question about a table of a family."""
    return struct.pack("!BBH", _NUMBERS[family] if family in _NUMBERS else int(family), 0, 0)


_SPELT = {4: (3, 12), 7: (2, 7), 10: (2, 0), 19: (2, 0), 23: (2, 0)}
"""By question (chains, rules, sets, objects, flowtables): the attribute that names one, and that of its user data."""


def spelt(talk: Talk, place: tuple[str, str]) -> Iterator[bytes]:
    """Yield how what stands in a table, (family, name), is called, and the comments of its chains and rules."""
    question = head(place[0]) + attribute(1, place[1].encode() + b"\0")
    for kind, (name, user_data) in _SPELT.items():
        # To its end, whoever stops listening: a dump that is left open refuses the next.
        for message in list(talk.dump(SUBSYSTEM_NFTABLES << 8 | kind, question)):
            found = attributes(message.payload[NFGENMSG_BYTES:])
            if found.get(1, b"").rstrip(b"\0") == place[1].encode():
                yield found.get(name, b"")
                said = found.get(user_data, b"")
                if said[:1] == b"\0":  # NFTNL_UDATA_RULE_COMMENT: type, length, text
                    yield said[2 : 2 + said[1]]


def chains(talk: Talk, table: Table) -> list[str]:
    """Return the names of a table's chains."""
    out = []
    for message in talk.dump(SUBSYSTEM_NFTABLES << 8 | _GETCHAIN, head(table.family)):
        found = attributes(message.payload[NFGENMSG_BYTES:])
        if found.get(1, b"").rstrip(b"\0") == table.name.encode():
            out.append(found.get(3, b"").rstrip(b"\0").decode("utf-8", "replace"))
    return out


def counters(talk: Talk, place: tuple[str, str]) -> list[tuple[str, int, int]]:
    """Return (name, packets, bytes) of each named counter of a table. libnftables would read every set of it for that."""
    out = []
    question = head(place[0]) + attribute(1, place[1].encode() + b"\0")
    for message in talk.dump(SUBSYSTEM_NFTABLES << 8 | _GETOBJECT, question):
        found = attributes(message.payload[NFGENMSG_BYTES:])
        kind = int.from_bytes(found.get(3, b""), "big")
        if kind == _COUNTER and found.get(1, b"").rstrip(b"\0") == place[1].encode():
            said = attributes(found.get(4, b""))
            count, packets = (int.from_bytes(said.get(each, b""), "big") for each in (1, 2))
            name = found.get(2, b"").rstrip(b"\0").decode("utf-8", "replace")
            out.append((name, packets, count))
    return out


def chain_devices(talk: Talk, table: str) -> list[set[str]]:
    """Return the interfaces that the base chains of a netdev table hold, one set for each hook (ingress, egress)."""
    out: dict[int, set[str]] = {}
    for message in talk.dump(SUBSYSTEM_NFTABLES << 8 | _GETCHAIN, struct.pack("!BBH", _NETDEV, 0, 0)):
        found = attributes(message.payload[NFGENMSG_BYTES:])
        if found.get(1, b"").rstrip(b"\0") != table.encode() or 4 not in found:
            continue
        hook = attributes(found[4])
        names = [hook[3]] if 3 in hook else []
        names += [name for kind, name in attribute_list(hook.get(4, b"")) if kind == 1]
        held = out.setdefault(int.from_bytes(hook.get(1, b""), "big"), set())
        held.update(name.rstrip(b"\0").decode("utf-8", "replace") for name in names)
    return list(out.values())
