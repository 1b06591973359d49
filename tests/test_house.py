"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.guards import guards

TREE = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "contract", "controller")
DEMANDED = (
    [f"q{n:02}" for n in range(1, 22)]
    + [f"b{n:02}" for n in range(1, 13)]
    + [f"l{n:02}" for n in range(1, 18)]
    + [f"m{n:02}" for n in range(1, 15)]
    + [f"f{n:02}" for n in range(1, 14)]
    + [f"d{n:02}" for n in range(1, 13)]
    + [f"a{n:02}" for n in range(1, 10)]
    + [f"c{n:02}" for n in range(1, 21)]
)
"""Of what Ringfence must withstand: quote, identity, boot log, IMA, firewall, devices and host, agent, controller."""


def sources(*folders: str) -> list[Path]:
    """Return our Python files under the folders."""
    return [path for folder in folders for path in sorted((TREE / folder).rglob("*.py"))]


def test_every_guard_can_be_taken_out() -> None:
    """Its text stands exactly once in its file: else whoever takes it out takes out nothing."""
    texts: dict[str, str] = {}
    stale = []
    for guard in guards():
        text = texts.setdefault(guard.file, (TREE / guard.file).read_text())
        if text.count(guard.find) != 1 or guard.find == guard.replace:
            stale.append(
                f"{guard.number} {guard.file}: {guard.find!r} stands there {text.count(guard.find)} times"
            )
        stale += [each for each in guard.tests if each.endswith(".py") and not (TREE / each).is_file()]
    assert stale == []


def test_every_demanded_attack_has_a_test_and_a_guard() -> None:
    seen: set[str] = set()
    for path in sources("tests"):
        seen |= set(re.findall(r"\bdef test_([a-z]\d\d)_", path.read_text()))
    guarded = {guard.number for guard in guards()}
    assert [number for number in DEMANDED if number not in seen] == []
    assert [number for number in DEMANDED if number not in guarded] == []


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(TREE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    if "versions" not in path.parts:
        assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False)
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            assert length <= 60, f"{node.name} has {length} lines"


def test_no_index_host_and_no_foreign_path_in_any_committed_file() -> None:
    listed = subprocess.run(["git", "-C", str(TREE), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile(
        "|".join(
            ("pypi" + r"\.org", "python" + r"hosted", "deb" + r"\.debian\.org", "npm" + r"js\.(org|com)")
        )
    )
    bad = []
    for name in listed.stdout.split():
        path = TREE / name
        if path.is_file() and path.suffix not in {".bin", ".der"}:
            text = path.read_bytes().decode("utf-8", "replace")
            if hosts.search(text) or "/work" + "/main" in text:
                bad.append(name)
    assert bad == []
