"""What the controller shows of inventories. As `controller.records`."""

from __future__ import annotations

from contract.inventory import Kind
from controller.records import Record


class FactView(Record, frozen=True, kw_only=True):
    """One thing that a node said of itself, by the controller's clock."""

    id: int
    kind: Kind
    name: str
    value: str
    seen_from: float
    seen_until: float | None
    """None: it is so still."""


class InventoryView(Record, frozen=True, kw_only=True):
    """What a node said that it consists of: its own word, which no verdict rests on."""

    node: str
    sha256: str
    """Of the newest inventory, as a quoted report named it; empty where there never was one."""
    since: float | None
    """When it came."""
    left_out: int
    """So many facts of the newest had no room."""
    items: list[FactView]
    next: str | None


class HolderView(Record, frozen=True, kw_only=True):
    """A node that says it has a package."""

    id: int
    node: str
    site: str
    name: str
    version: str
    since: float
