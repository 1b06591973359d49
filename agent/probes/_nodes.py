"""What the probes of cameras, accelerators and serial ports share: who may open a device node, and who has it open. Not a probe.

Who may open is owner, group, mode and access control list of the node; `close` takes the node of an unknown device
from everybody but root. Who has it open is told by device number, so a node made elsewhere is seen too. What opens and
closes a device between two looks is not seen: the node's mode stands before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from agent import probes
from agent.devicenodes import SHUT, Access, Holder, Node
from agent.probes import Difference, Notice, could_not_look
from agent.probes._bounds import bounded
from agent.probes._gone import Departures, Removed
from agent.usbrules import Hex4, Reason
from agent.userdb import group_id, user_id
from contract.messages import Drift, never_more

MAX_TOLD = 32
NodePath = Annotated[str, Meta(max_length=255, pattern=r"\A/dev(/[A-Za-z0-9_.:-]+)*/[A-Za-z0-9_.:*-]+\Z")]
Account = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\Z")]
Opener = Annotated[
    str,
    Meta(
        max_length=255,
        pattern=r"\A(anybody|user:[A-Za-z0-9_][A-Za-z0-9_.-]*|unit:[A-Za-z0-9:_.@\\*-]+\.(service|scope)|program:/[^\x00-\x1f]+)\Z",
    ),
]


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that may be there. The first rule that names a node decides about it."""

    reason: Reason
    """Why, for the next reader."""
    nodes: Annotated[list[NodePath], Meta(min_length=1, max_length=64)]
    """Paths; `*` only in the last part."""
    driver: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    """The kernel's driver of the device."""
    vendor: Hex4 | None = None
    """Of the USB or PCI device behind it."""
    product: Hex4 | None = None
    """The same; PCI calls it device."""
    serial: Annotated[str, Meta(max_length=126)] | None = None
    """Of the USB device behind it."""
    owner: Account | None = None
    """Who must own the node, by name or number."""
    group: Account | None = None
    """Which group."""
    mode: Annotated[str, Meta(pattern=r"\A0[0-7]{3}\Z")] | None = None
    """Permission bits."""
    acl: Literal["none", "any"] = "none"
    """Whether single users and groups may be on its access control list."""
    opened_by: Annotated[list[Opener], Meta(max_length=64)]
    """Who may have it open: `user:`, `unit:`, `program:` or `anybody`. Empty: nobody."""
    required: bool = False
    """It is a drift while no such node is there."""

    def names(self, node: Node) -> bool:
        """True if the rule speaks of this node."""
        pairs = (
            (self.driver, node.driver),
            (self.vendor, node.vendor),
            (self.product, node.product),
            (self.serial, node.serial),
        )
        return any(_path_matches(each, node.path) for each in self.nodes) and all(
            wanted is None or wanted == found for wanted, found in pairs
        )

    def opens(self, holder: Holder) -> bool:
        """True if this process may have it open."""
        return any(_may_open(each, holder) for each in self.opened_by)

    def access(self, node: Node) -> Access:
        """Return who may open the node as the rule wants it. Raises OSError for a name that this machine does not know."""
        keep = node.access
        # With a list, the bits of the group are the list's mask: without it they have to be written anew.
        return Access(
            uid=keep.uid if self.owner is None else user_id(self.owner),
            gid=keep.gid if self.group is None else group_id(self.group),
            mode=keep.mode if self.mode is None else int(self.mode, 8),
            acl=keep.acl if self.acl == "any" or not keep.named() else "",
        )


class NodeSection(probes.SectionBase, frozen=True, kw_only=True):
    """What the sections share."""

    unknown: Literal["report", "close"] = "report"
    """`close`: take the node of a device that no rule names from everybody but root."""
    strangers: Literal["report", "kill"] = "report"
    """`kill`: kill a process that has a device open and may not."""
    removed: Removed = "tell"
    """Whether a device that a rule names and that went is told, and how loudly."""
    allow: Annotated[list[Allow], Meta(max_length=256)] = field(default_factory=list)
    """Devices that may be there."""


S = TypeVar("S", bound=NodeSection)


class NodeProbe(probes.Probe[S]):
    """Compares nodes and the processes that have them open with the rules."""

    rationed = False

    PATTERNS: ClassVar[tuple[str, ...]] = ()
    """Where such nodes stand."""
    LIKELY: ClassVar[str] = "device"
    """What such a device is called."""

    def __init__(self, section: S, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._closed: dict[tuple[str, str], Notice] = {}
        self._told: set[tuple[str, str]] = set()
        self._strangers: dict[str, Holder] = {}
        self._gone = Departures(self.name, section.removed)

    def nodes(self) -> tuple[list[Node], list[str]]:
        """Return the nodes to judge, and paths of what is no device. Raises OSError."""
        return self.around.host.nodes.find(self.PATTERNS)

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each unknown node, each that others may open, and each process that may not have it open."""
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Set owner, mode and list of nodes; close unknown ones and kill strangers where the section says so."""
        wrong = {drift.key for drift in drifts}
        try:
            nodes, _ = self.nodes()
        except OSError:
            return  # the next observation reports it
        for node in nodes:
            try:
                wanted = self._wanted(node)
                if wanted is not None and wanted != node.access and wrong & _keys(node):
                    self.remember_first(node.path, _kept(node))
                    self.around.host.nodes.set_access(node, wanted)
            except OSError:
                continue
        if self.section.strangers == "kill":
            for key, holder in self._strangers.items():
                if key in wrong:
                    try:
                        self.around.host.nodes.end(holder, "char")
                    except OSError:
                        continue

    def recall(self, now: float) -> None:
        """Look: what may be taken away is known from that."""
        self.observe(now)

    def undo(self) -> None:
        """Put owner, mode and list back where the same device still has the node."""
        for path, value in self.remembered():
            number, _, text = value.partition(" ")
            try:
                node = self.around.host.nodes.node(path)
                if node is not None and _number(node) == number:
                    self.around.host.nodes.set_access(node, msgspec.json.decode(text, type=Access))
            except OSError:
                pass
            self.forget(path)

    def governs(self, key: str) -> bool:
        """True if the section says itself who may open the node."""
        try:
            node = self.around.host.nodes.node(key)
        except OSError:  # it has gone
            return False
        return node is not None and self._wanted(node) is not None

    def notices(self, now: float) -> list[Notice]:
        """Return `<section>.closed` once for each node that is kept shut, `<section>.gone` for each that went."""
        fresh = [notice for key, notice in self._closed.items() if key not in self._told]
        self._told = set(self._closed)
        return fresh + self._gone.take()

    def _rule(self, node: Node) -> Allow | None:
        return next((rule for rule in self.section.allow if rule.names(node)), None)

    def _wanted(self, node: Node) -> Access | None:
        rule = self._rule(node)
        if rule is not None:
            return rule.access(node)
        return SHUT if self.section.unknown == "close" else None

    def _differences(self) -> Iterator[Difference]:
        self._closed, self._strangers = {}, {}
        try:
            nodes, others = self.nodes()
        except OSError as error:
            yield could_not_look("nodes", f"a list of {self.LIKELY} nodes", error)
            return
        named = [node for node in nodes if self._rule(node) is not None]
        self._gone.look({f"{n.path} {n.serial}": f"{self.LIKELY} {n.path} ({n.describe()})" for n in named})
        yield from bounded("nodes", self._node_differences(nodes, others), MAX_TOLD)
        for number, rule in enumerate(self.section.allow):
            if rule.required and not any(self._rule(node) is rule for node in nodes):
                yield Difference(f"allow {number}", f"there ({rule.reason})", "not there")
        yield from bounded("processes", self._holder_differences(nodes), MAX_TOLD)

    def _node_differences(self, nodes: Sequence[Node], others: Sequence[str]) -> Iterator[Difference]:
        for path in others:
            yield Difference(path, "a device", "something else")
        for node in nodes:
            rule = self._rule(node)
            if rule is None and self.section.unknown == "close" and node.access == SHUT:
                self._closed[(node.path, _number(node))] = self._closed_notice(node)
            elif rule is None:
                yield Difference(node.path, "a device that a rule names", node.describe())
            else:
                try:
                    yield from _access_differences(node, rule.access(node))
                except OSError as error:
                    yield could_not_look(
                        f"{node.path} owner", f"{rule.owner or '-'}:{rule.group or '-'}", error
                    )

    def _holder_differences(self, nodes: Sequence[Node]) -> Iterator[Difference]:
        known = {node.number: node for node in reversed(nodes) if node.kind == "char"}
        try:
            holders = self.around.host.nodes.holders("char", known)
        except OSError as error:
            yield could_not_look("processes", "who has the devices open", error)
            return
        for holder in holders:
            node = known[holder.number]
            rule = self._rule(node)
            if rule is not None and rule.opens(holder):
                continue
            wanted = ", ".join(rule.opened_by) if rule is not None and rule.opened_by else "nobody"
            key = f"{node.path} pid {holder.pid}"
            self._strangers[key] = holder
            by = holder.unit or f"uid {holder.uid}"
            yield Difference(
                key,
                f"opened by {wanted} only",
                f"open by {holder.program or 'a program that cannot be seen'} ({by})",
                self.around.host.describe_process(holder.pid),
            )

    def _closed_notice(self, node: Node) -> Notice:
        detail = {
            "node": node.path,
            "driver": node.driver,
            "vendor": node.vendor,
            "product": node.product,
            "serial": node.serial,
        }
        cut = {key: never_more(value, 2048) for key, value in detail.items()}
        summary = f"{self.LIKELY} {node.path} ({node.describe()}) is kept shut: no rule names it"
        return Notice(f"{self.name}.closed", "warning", never_more(summary, 2048), cut)


def _access_differences(node: Node, wanted: Access) -> Iterator[Difference]:
    found = node.access
    if found.uid != wanted.uid:
        yield Difference(f"{node.path} owner", str(wanted.uid), str(found.uid))
    if found.gid != wanted.gid:
        yield Difference(f"{node.path} group", str(wanted.gid), str(found.gid))
    if found.mode != wanted.mode:
        yield Difference(f"{node.path} mode", f"{wanted.mode:04o}", f"{found.mode:04o}")
    if found.acl != wanted.acl:
        yield Difference(f"{node.path} acl", "nobody named", ", ".join(found.named()) or "another list")


def _keys(node: Node) -> set[str]:
    return {node.path, *(f"{node.path} {what}" for what in ("owner", "group", "mode", "acl")), "nodes"}


def _number(node: Node) -> str:
    return f"{node.kind[0]}{node.number[0]}:{node.number[1]}"


def _kept(node: Node) -> str:
    return f"{_number(node)} {msgspec.json.encode(node.access).decode()}"


def _path_matches(pattern: str, path: str) -> bool:
    return pattern.rpartition("/")[0] == path.rpartition("/")[0] and fnmatchcase(
        path.rpartition("/")[2], pattern.rpartition("/")[2]
    )


def _may_open(opener: str, holder: Holder) -> bool:
    kind, _, name = opener.partition(":")
    if kind == "user":
        try:
            return user_id(name) == holder.uid
        except OSError:
            return False
    if kind == "unit":
        return fnmatchcase(holder.unit, name)
    return kind == "anybody" or (kind == "program" and holder.program == name)
