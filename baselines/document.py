"""Writes docs/baselines/NAME.md from baselines/NAME.toml: every rule and every setting with reason and reference.

`python -m baselines.document`. A setting's reason is the comment behind it or in lines above it, or the one of its table's name; it ends
with the reference in brackets, or with `(no reference applies)`. Refuses a rule or a setting that has neither.

What a clean Debian does under a baseline stands in docs/baselines/clean-debian.toml; a test applies the baseline to one and
holds the list to it, and another holds the documents to what this program writes.
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
NONE = "no reference applies"
_TABLE = re.compile(r"^(\[+)([A-Za-z0-9_.-]+)\]+\s*(?:#\s*(.*))?$")
_BANNER = re.compile(r"^# -{10,}.*")
_SETTING = re.compile(r"^([a-z_0-9]+) = (.*?)(?:\s{2,}#\s*(.*))?$")
_REFERENCE = re.compile(rf"^(.*) \(((?:CIS|NIST|IEC) .*|{NONE})\)$", re.DOTALL)
REFERENCES = """\
References: **CIS** is the CIS Debian Linux 12 Benchmark, v1.1.0, and **CIS Controls** are those of version 8; **NIST SP 800-53** is
revision 5; **IEC 62443** is part 3-3 (system requirements) or 4-2 (components, EDR). Where none of them asks for something, that is
said, and the reason stands by itself.
"""


class Table(NamedTuple):
    """One TOML table as it is written."""

    name: str
    listed: bool
    """`[[...]]`: a rule."""
    above: str
    """What stands in lines of its own before it, for people."""
    remark: str
    """The reason for all its settings: what stands behind the name, or before it with a reference at its end."""
    body: str
    """Settings, with the comments in lines above each."""


def tables(text: str) -> Iterator[Table]:
    """Yield the tables of a shipped baseline, in order; what stands before the first is not among them."""
    made = Table("", False, "", "", "")
    comments: list[str] = []
    for line in ("\n[" + text.partition("\n[")[2]).splitlines():
        if found := _TABLE.match(line):
            if made.name:
                yield made
            above, remark = " ".join(each.removeprefix("# ") for each in comments), found[3] or ""
            if not remark and _REFERENCE.match(above):
                above, remark = "", above
            made, comments = Table(found[2], found[1] == "[[", above, remark, ""), []
        elif _BANNER.match(line):
            comments = []
        elif line.startswith("# "):
            comments.append(line)
        elif line:
            made = made._replace(body="\n".join([*filter(None, [made.body]), *comments, line]))
            comments = []
    yield made


def settings(table: Table) -> Iterator[tuple[str, str]]:
    """Yield each `key = value` of a table, with the comments above and behind it; empty where it has none."""
    comments: list[str] = []
    for line in table.body.splitlines():
        if line.startswith("# "):
            comments.append(line.removeprefix("# "))
        elif found := _SETTING.match(line):
            yield f"{found[1]} = {found[2]}", " ".join([*comments, *filter(None, [found[3]])])
            comments = []


def document(name: str) -> str:
    """Return the document of one baseline. Raises ValueError for a rule or a setting without a reason, or a reference."""
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
        parts += [f"\n{table.above}\n"] if table.above else []
        parts.append(_rule(table) if table.listed else _settings(table))
    return _joined(parts) + _clean(name)


def _joined(parts: list[str]) -> str:
    """Join; a rule of the same table as the one before continues its rows."""
    out: list[str] = []
    header = ""
    for part in filter(None, parts):
        if part.startswith("|"):
            rows = part.splitlines(keepends=True)
            out += rows[2:] if header == rows[0] else ["\n", *rows]
            header = rows[0]
        else:
            out.append(("\n" if header else "") + part)
            header = ""
    return "".join(out)


def _rule(table: Table) -> str:
    keys = tomllib.loads(table.body)
    where = f"[[{table.name}]]"
    whole = keys.pop("reason", "")
    if not whole:
        raise ValueError(f"{where}: a rule without a reason: {table.body!r}")
    reason, reference = _parted(whole, where)
    what = "; ".join(f"{key} {_value(value)}" for key, value in keys.items())
    reason = "; ".join([reason, *(remark for _, remark in settings(table) if remark)])
    return _row(f"rule of `{where}`", what, reason, reference)


def _settings(table: Table) -> str:
    inner = f"`[{table.name}]` " if "." in table.name else ""
    found = [([setting], remark) for setting, remark in settings(table)]
    if found and not any(remark for _, remark in found):
        # One reason for all, behind the name of the table: a zone.
        found = [([setting for together, _ in found for setting in together], "")]
    rows = []
    for together, remark in found:
        reason, reference = _parted(remark or table.remark, f"[{table.name}] {together[0]}")
        what = inner + "; ".join(f"`{each}`" for each in together)
        rows.append(_row("setting", what, reason, reference))
    return "".join([*rows[:1], *(row.splitlines(keepends=True)[2] for row in rows[1:])])


def _parted(remark: str, where: str) -> tuple[str, str]:
    """Return reason and reference."""
    if not remark:
        raise ValueError(f"{where}: a setting without a reason")
    found = _REFERENCE.match(remark)
    if found is None:
        raise ValueError(f"{where}: expected a reference at the end of the reason, or `({NONE})`")
    return found[1], found[2]


def _row(what: str, first: str, reason: str, reference: str) -> str:
    title = f"| {what} | reason | reference |\n|---|---|---|\n"
    return f"{title}| {_cell(first)} | {_cell(reason)} | {_cell(reference)} |\n"


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
