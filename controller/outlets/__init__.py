"""Outlets: where events go besides our own store. One file in this folder is one kind; its name is the kind.

A kind is found by listing the folder, and exposes `Settings` (its keys in `[[outlet]]` of controller.toml) and `Outlet`.
Delivery is `controller.delivery`'s: in order, at least once, with a cursor that survives restarts. An outlet only
sends what it is given. Names with a leading '_' are parts that kinds share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.messages import Name, Severity
from contract.toml import convert_toml, refuse_key
from controller.records import EventView

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every outlet has. Relative paths are relative to the folder of controller.toml."""

    name: Name
    """Names the cursor: under a new name everything that is stored is sent."""
    kind: str
    least: Severity = "info"
    """Events below it are passed over."""
    batch: Annotated[int, Meta(ge=1, le=1000)] = 100
    """At most so many events at once."""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 20.0


Settings_ = Any
"""The Settings of the same file."""


class Unavailable(Exception):
    """The receiver did not take them: all of them are to be sent again, in the same order. Says why, without secrets."""


class Unwanted(Exception):
    """The receiver understood and will never take them as they are. Says why, without secrets."""


class Outlet(Protocol):
    """One receiver."""

    async def send(self, events: Sequence[EventView]) -> None:
        """Return when the receiver has them. Raises Unavailable, Unwanted."""

    async def close(self) -> None:
        """Give up connections."""


class OutletModule(Protocol):
    """What a file in this folder exposes. `Outlet` reads its secrets; raises Rejected `outlet.*`, OSError."""

    Settings: type[Settings]
    Outlet: Callable[[Settings_, Path], Outlet]


def kinds() -> dict[str, OutletModule]:
    """Return every kind by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    return {name: cast(OutletModule, importlib.import_module(f"{__name__}.{name}")) for name in names}


def parse_outlets(tables: Sequence[object], *, text: str, file: str, code: str) -> list[Settings]:
    """Return `[[outlet]]` tables, each typed by its kind. Raises Rejected `config.*` with file, line and key."""
    known = kinds()
    parsed: list[Settings] = []
    for number, table in enumerate(tables):
        at = ("outlet", number)
        kind = table.get("kind") if isinstance(table, dict) else None
        if not isinstance(kind, str) or kind not in known:
            expected = f"expected one of: {', '.join(known)}"
            raise refuse_key((*at, "kind"), expected, text=text, file=file, code=code)
        settings = convert_toml(table, known[kind].Settings, text=text, file=file, code=code, at=at)
        if any(other.name == settings.name for other in parsed):
            raise refuse_key((*at, "name"), "expected a name of its own", text=text, file=file, code=code)
        parsed.append(settings)
    return parsed


def make(settings: Settings, directory: Path) -> Outlet:
    """Make an outlet. Raises Rejected `outlet.secret`, `outlet.ca`."""
    try:
        return kinds()[settings.kind].Outlet(settings, directory)
    except OSError as error:
        raise Rejected("outlet.file", f"{settings.name}: {error.filename}: {error.strerror}") from None
