"""How the command shows things: tables for people, JSON for programs.

Text that came from a node is data: control characters are made visible and no markup in it is obeyed, so a
node cannot paint on an admin's terminal.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

F = TypeVar("F", bound=Callable[..., object])
PLAIN_WIDTH = 200
MAX_CELL_CHARS = 400

_COLOURS = {
    "healthy": "green",
    "affirming": "green",
    "overdue": "yellow",
    "unreachable": "yellow",
    "warning": "yellow",
    "untrusted": "red",
    "isolated": "red",
    "contraindicated": "red",
    "critical": "red",
    "needs-person": "red",
}


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="JSON for programs.")(command)


def show_json(value: object) -> None:
    """Print JSON."""
    click.echo(json.dumps(value, indent=None if not sys.stdout.isatty() else 2, ensure_ascii=True))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console().print(table)


def show_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print comma-separated values (RFC 4180). What a spreadsheet would take for a formula is text there (c12)."""
    out = csv.writer(sys.stdout, lineterminator="\r\n")
    out.writerow(columns)
    for row in rows:
        out.writerow([_as_text(harmless("" if value is None else str(value))) for value in row])


def _as_text(text: str) -> str:
    """A leading quote makes a spreadsheet show a cell as it stands; a blank before the sign does not hide it."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def show_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), _cell(value))
    console().print(table)


def console() -> Console:
    """Return stdout: coloured and fitted on a terminal, plain and wide elsewhere."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(highlight=False, markup=False, width=PLAIN_WIDTH, color_system=None)


def when(value: object) -> str:
    """Return a moment in local time."""
    if not isinstance(value, int | float):
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


def ago(value: object, now: float) -> str:
    """Return how long ago a moment was."""
    if not isinstance(value, int | float):
        return "never"
    seconds = max(0, int(now - value))
    if seconds < 120:
        return f"{seconds} s ago"
    return f"{seconds // 60} min ago" if seconds < 7200 else f"{seconds // 3600} h ago"


def at(value: object, *path: str) -> object:
    """Return what stands at a path of keys in decoded JSON, None where nothing does."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def items(value: object) -> list[object]:
    """Return a list of decoded JSON, empty where it is none."""
    return value if isinstance(value, list) else []


def harmless(text: str) -> str:
    """Return text whose control and direction characters are visible escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def baseline_of(value: object) -> str:
    """Return a baseline reference as people write it."""
    name, version = at(value, "name"), at(value, "version")
    return "-" if name is None else f"{name}/{version}"


def labels_of(value: object) -> list[str]:
    """Return labels as people write them."""
    return [f"{key}={text}" for key, text in value.items()] if isinstance(value, dict) else []


def tpm_of(value: object) -> str:
    """Return what is known of a TPM as people write it: "hardware: Infineon SLB9670"."""
    named = " ".join(str(at(value, key) or "") for key in ("manufacturer", "model", "firmware")).strip()
    return f"{at(value, 'kind') or 'unknown'}{': ' if named else ''}{named}"


def _cell(value: object) -> Text:
    if value is None or value == "":
        return Text("-")
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(str(part) for part in value)
    text = harmless(str(value))
    shown = text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
    return Text(shown, style=_COLOURS.get(text, ""))
