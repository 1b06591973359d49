"""docs/baseline.md against the schema, and the shipped baselines against the code that enforces them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import inspect

from agent import probes
from baselines import document
from contract.baseline import Head, parse_baseline
from contract.errors import Rejected

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/baseline.md").read_text()
SHIPPED = sorted((ROOT / "baselines").glob("*.toml"))
WITHOUT = {
    "factory": {"ima"},
    "retail": {"ima"},
    "legacy": {"access", "accelerators", "boot", "ima", "netdevs", "pci", "thunderbolt"},
}
"""A list of files comes from the very machine; nothing proves the boot of a machine without a TPM; access by grants, and limits of
buses and interfaces that nobody has listed for an old machine, come with another profile."""
NOWHERE = {"agent", "chassis"}
"""Sensors are of the very machine, and many machines have none: `ringfence-agent learn chassis` writes the section. A release of the agent
is named when there is one to go to."""
_ROW = re.compile(r"^\| `([a-z_0-9]+)` \| (.*?) \| (.*?) \| (.*) \|$")


class Key(NamedTuple):
    """One key as the document has to show it."""

    table: str
    name: str
    default: str


def _structs(kind: inspect.Type) -> list[inspect.StructType]:
    if isinstance(kind, inspect.UnionType):
        return [found for each in kind.types for found in _structs(each)]
    return [kind] if isinstance(kind, inspect.StructType) else []


def schema() -> list[Key]:
    """Return every key that a baseline may have: table as it is written in TOML, key, and default."""
    keys = list(_keys("baseline", inspect.type_info(Head), many=False))
    for name, module in probes.sections().items():
        keys += _keys(name, inspect.type_info(module.Section), many=False)
    return keys


def _keys(path: str, kind: inspect.Type, *, many: bool) -> Iterator[Key]:
    table = f"[[{path}]]" if many else f"[{path}]"
    for struct in _structs(kind):
        below: list[tuple[str, inspect.Type, bool]] = []
        for field in struct.fields:
            inner = f"{path}.{field.encode_name}"
            if isinstance(field.type, inspect.ListType) and _structs(field.type.item_type):
                below.append((inner, field.type.item_type, True))
            elif isinstance(field.type, inspect.DictType) and _structs(field.type.value_type):
                below.append((f"{inner}.NAME", field.type.value_type, False))
            elif _structs(field.type):
                below.append((inner, field.type, False))
            else:
                yield Key(table, field.encode_name, _default(field))
        for inner, inner_kind, is_list in below:
            yield from _keys(inner, inner_kind, many=is_list)


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    return "absent" if value is None else f"`{msgspec.json.encode(value).decode()}`"


def documented() -> list[Key]:
    """Return every key that the document shows, in its tables."""
    found: list[Key] = []
    tables: list[str] = []
    for line in DOCUMENT.splitlines():
        if line.startswith("#"):
            tables = re.findall(r"`(\[.*?\]+)`", line)
        elif row := _ROW.match(line):
            assert tables and len(row.group(4)) > 10, line
            found += [Key(table, row.group(1), row.group(3)) for table in tables]
    return found


def test_the_document_shows_every_key_once_with_its_default_and_no_other() -> None:
    assert sorted(documented()) == sorted(schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_baselines_are_taken_by_every_probe(path: Path) -> None:
    baseline = parse_baseline(path.read_bytes(), file=path.name)
    assert baseline.head.name == path.stem
    assert set(probes.parse_sections(baseline)) == set(probes.sections()) - NOWHERE - WITHOUT.get(
        path.stem, set()
    )
    assert baseline.head.offline.isolate_after_s is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_rules_have_reasons_that_say_something(path: Path) -> None:
    rules = len(re.findall(r"^\[\[", path.read_text(), flags=re.MULTILINE))
    reasons = re.findall(r'^reason = "(.+)"$', path.read_text(), flags=re.MULTILINE)
    assert len(reasons) == rules
    assert all(" " in reason for reason in reasons)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_rule_stands_in_the_document_with_its_reason_and_reference(path: Path) -> None:
    shown = (ROOT / f"docs/baselines/{path.stem}.md").read_text()
    assert shown == document.document(path.stem), "run: python -m baselines.document"
    for reason in re.findall(r'^reason = "(.+)"$', path.read_text(), flags=re.MULTILINE):
        why, _, reference = reason.replace("|", "\\|").rpartition(" (")
        assert f"| {why}" in shown, reason
        assert f"| {reference.removesuffix(')')} |" in shown, reason
        assert re.match(
            r"(CIS |NIST SP 800-53 [A-Z]{2}-\d|IEC 62443-[34]-[23] |no reference applies)", reference
        ), reason


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_rule_without_a_reason_has_no_document(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    text = re.sub(r'^reason = ".*"\n', "", path.read_text(), count=1, flags=re.MULTILINE)
    (tmp_path / path.name).write_text(text)
    monkeypatch.setattr(document, "HERE", tmp_path)
    with pytest.raises(ValueError, match="a rule without a reason"):
        document.document(path.stem)


def _reasons_of(path: Path) -> list[tuple[int, int]]:
    """Return where each setting that is no rule's, or each zone, has its reason: the first line of the comments, and its own."""
    found, in_rule, zone, comments = [], False, False, 0
    for number, line in enumerate(path.read_text().splitlines()):
        if line.startswith("["):
            in_rule, zone = line.startswith("[["), ".zones." in line
            if zone:
                found.append((number - comments, number))
        elif re.match(r"[a-z_0-9]+ = ", line) and not in_rule and not zone:
            found.append((number - comments, number))
        comments = comments + 1 if line.startswith("# ") else 0
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_setting_without_a_reason_or_a_reference_has_no_document(
    path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(document, "HERE", tmp_path)
    lines, reasons = path.read_text().splitlines(), _reasons_of(path)
    assert len(reasons) > 30
    for first, number in reasons:
        for message, comment in (("without a reason", ""), ("expected a reference", "  # because")):
            bare = lines[number].partition("  #")[0].rstrip() + comment
            (tmp_path / path.name).write_text("\n".join([*lines[:first], bare, *lines[number + 1 :], ""]))
            with pytest.raises(ValueError, match=message):
                document.document(path.stem)


_CONTROLS = {"AC": 25, "AU": 16, "CM": 14, "CP": 13, "IA": 12, "MA": 7, "MP": 8, "PE": 23, "SC": 51, "SI": 23}
_REQUIREMENTS = {1: 13, 2: 12, 3: 9, 4: 3, 5: 4, 6: 2, 7: 8}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_references_are_such_as_there_are(path: Path) -> None:
    """The last control of each family of NIST SP 800-53 revision 5, and the last requirement of each part of IEC 62443-3-3, 5 to 11."""
    shown = (ROOT / f"docs/baselines/{path.stem}.md").read_text()
    rows = [
        line.rpartition(" | ")[2].removesuffix(" |") for line in shown.splitlines() if line.startswith("| ")
    ]
    references = [row for row in rows if row not in ("reference", document.NONE)]
    assert len(references) > 60
    for part in (part for row in references for part in row.split("; ")):
        if found := re.fullmatch(r"NIST SP 800-53 (.*)", part):
            for control in found[1].split(", "):
                one = re.fullmatch(r"([A-Z]{2})-(\d+)(\(\d+\))?", control)
                assert one and int(one[2]) <= _CONTROLS[one[1]], part
        elif found := re.fullmatch(r"IEC 62443-3-3 (.*)", part):
            for requirement in found[1].split(", "):
                one = re.fullmatch(r"SR (\d)\.(\d+)( RE \d)?", requirement)
                assert one and int(one[2]) <= _REQUIREMENTS[int(one[1])], part
        else:
            numbers = r"\d+(\.\d+)*(, \d+(\.\d+)*)*"
            assert re.fullmatch(
                rf"CIS (Controls )?{numbers}|IEC 62443-4-2 EDR \d\.\d+(, EDR \d\.\d+)*", part
            ), part


def test_legacy_observes_everything_and_each_stage_enforces_more() -> None:
    text = (ROOT / "baselines/legacy.toml").read_text()

    def enforced(taken_out: str) -> set[str]:
        left = re.sub(rf'^mode = "observe" *# stage [{taken_out}] .*\n', "", text, flags=re.MULTILINE)
        baseline = parse_baseline(left.encode())
        parsed = probes.parse_sections(baseline)
        return {n for n, section in parsed.items() if probes.mode_of(section, baseline.head) == "enforce"}

    assert enforced("0") == set()
    assert enforced("2") == {"sysctl", "files", "modules", "mounts"}
    assert enforced("23") == enforced("2") | {"usb"}
    assert enforced("2-4") == enforced("23") | {"firewall"}
    assert enforced("2-5") == enforced("2-4") | {"listeners"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_key_of_a_shipped_baseline_can_be_misspelt_only_loudly(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-z_0-9]+ = ", line):
            changed = "\n".join([*lines[:number], "x" + line, *lines[number + 1 :]])
            with pytest.raises(Rejected) as refused:
                probes.parse_sections(parse_baseline(changed.encode(), file=path.name))
            assert re.match(rf"{path.name}:\d+: [a-z_.\[\]0-9]+: ", refused.value.detail), line


def test_examples_in_the_document_are_taken() -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    assert examples
    head = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n'
    for example in examples:
        text = example if "[baseline]" in example else head + example
        probes.parse_sections(parse_baseline(text.encode(), file="example"))
