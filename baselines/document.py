"""Writes docs/baselines/NAME.md from baselines/NAME.toml: every rule with its reason and reference. `python -m baselines.document`

What a clean Debian does under a baseline stands in docs/baselines/clean-debian.toml; a test applies the baseline to one and
holds the list to it, and another holds the documents to what this program writes. Refuses a rule without a reason.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
DOCUMENTS = HERE.parent / "docs/baselines"
CLEAN = DOCUMENTS / "clean-debian.toml"
_TABLE = re.compile(r"^(\[+)([A-Za-z0-9_.-]+)\]+\s*(?:#\s*(.*))?$")
_BANNER = re.compile(r"^# -{10,}.*")
_SETTING = re.compile(r"^([a-z_0-9]+) = (.*?)(?:\s{2,}#\s*(.*))?$")
_REFERENCE = re.compile(r"^(.*) \(((?:CIS|NIST|IEC) .*)\)$", re.DOTALL)
REFERENCES = """\
References: **CIS** is the CIS Debian Linux 12 Benchmark, v1.1.0; **NIST SP 800-53** is revision 5; **IEC 62443** is part 3-3 (system
requirements) or 4-2 (components, EDR). A dash: no requirement of theirs asks for it, the reason stands by itself.
"""


class Table(NamedTuple):
    """One TOML table as it is written."""

    name: str
    listed: bool
    """`[[...]]`: a rule."""
    remark: str
    """What stands behind the name, or in lines of its own above it."""
    body: str


def tables(text: str) -> Iterator[Table]:
    """Yield the tables of a shipped baseline, in order; what stands before the first is not among them."""
    name, listed, remark, body, above = "", False, "", [""], [""]
    for line in ("\n[" + text.partition("\n[")[2]).splitlines():
        if found := _TABLE.match(line):
            if name:
                yield Table(name, listed, remark, "\n".join(body))
            name, listed = found[2], found[1] == "[["
            remark, body, above = " ".join([*filter(None, above), found[3] or ""]).strip(), [], []
        elif _BANNER.match(line):
            above = []
        elif line.startswith("# "):
            above.append(line.removeprefix("# "))
        elif line:
            body.append(line)
    yield Table(name, listed, remark, "\n".join(body))


def document(name: str) -> str:
    """Return the document of one baseline. Raises ValueError for a rule without a reason."""
    text = (HERE / f"{name}.toml").read_text()
    head = tomllib.loads(text)["baseline"]
    above = [line.removeprefix("#") for line in text.partition("\n[")[0].splitlines()]
    intro = [f"-{line[2:]}" if line.startswith("   ") else line.strip() for line in above]
    parts = [
        f"# Baseline `{name}`: {head['summary'][0].lower()}{head['summary'][1:]}\n\n",
        f"<!-- Written by `python -m baselines.document` from baselines/{name}.toml: change that. -->\n\n",
        "\n".join(intro) + "\n\n",
        REFERENCES,
    ]
    section = ""
    for table in tables(text):
        top = table.name.partition(".")[0]
        if top != section:
            parts.append(f"\n## `[{top}]`\n")
            section = top
        parts.append(_shown(table))
    return _joined(parts) + _clean(name)


def _joined(parts: list[str]) -> str:
    """Join; a rule of the same table as the one before continues its rows."""
    out: list[str] = []
    header = ""
    for part in parts:
        if part.startswith("|"):
            rows = part.splitlines(keepends=True)
            out += rows[2:] if header == rows[0] else ["\n", *rows]
            header = rows[0]
        else:
            out.append(("\n" if header else "") + part)
            header = ""
    return "".join(out)


def _shown(table: Table) -> str:
    if not table.listed:
        return _settings(table)
    keys = tomllib.loads(table.body)
    found = _REFERENCE.match(keys.pop("reason", ""))
    whole = tomllib.loads(table.body).get("reason", "")
    if not whole:
        raise ValueError(f"[[{table.name}]]: a rule without a reason: {table.body!r}")
    reason, reference = (found[1], found[2]) if found else (whole, "-")
    what = "; ".join(f"{key} {_value(value)}" for key, value in keys.items())
    remarks = [m[3] for line in table.body.splitlines() if (m := _SETTING.match(line)) and m[3]]
    reason = "; ".join([reason, *remarks])
    title = f"| rule of `[[{table.name}]]` | reason | reference |\n"
    return f"{title}|---|---|---|\n| {_cell(what)} | {_cell(reason)} | {_cell(reference)} |\n"


def _settings(table: Table) -> str:
    lines = []
    for line in table.body.splitlines():
        if found := _SETTING.match(line):
            why = f": {found[3]}" if found[3] else ""
            lines.append(f"- `{found[1]} = {found[2]}`{why}\n")
    named = "" if table.name.count(".") == 0 else f"`[{table.name}]`"
    remark = f"{named}{': ' if named and table.remark else ''}{table.remark}"
    return (f"\n{remark}\n" if remark else "") + ("\n" + "".join(lines) if lines else "")


def _value(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace('`"', "`").replace('"`', "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _clean(name: str) -> str:
    """Return what a clean Debian does under it, from the list that the test holds it to."""
    kept = tomllib.loads(CLEAN.read_text())
    known = kept[name]
    out = [
        "\n## On a clean Debian 12\n\n",
        "Applied to a fresh minimal installation, twice in a row (a test does it): the second time changes nothing.\n",
    ]
    for title, listed in (
        ("It changes", known["changes"]),
        ("It reports, until you have put in your own or changed the machine", known["reports"]),
        ("It may report besides, by hardware and kernel", kept["by_machine"]),
        ("What can be reached", known["open"]),
        ("What can not", known["closed"]),
    ):
        out.append(f"\n{title}:\n\n" + ("".join(f"- `{each}`\n" for each in listed) or "- nothing\n"))
    return "".join(out)


def names() -> list[str]:
    """Return the shipped baselines."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def main() -> None:
    """Write every document."""
    for name in names():
        (DOCUMENTS / f"{name}.md").write_text(document(name))


if __name__ == "__main__":
    main()
