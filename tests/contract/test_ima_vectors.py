"""Every vector of `tests/vectors/ima` gives the findings that its header names."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.baseline import parse_baseline, section
from contract.errors import Rejected
from contract.ima import follow
from contract.imapolicy import ImaPolicy
from tests.contract.imaforge import codes
from tests.contract.imavectors import FOLDER, VECTORS, read_vector

POLICIES = sorted(FOLDER.glob("m12-*.toml"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vector(path: Path) -> None:
    vector = read_vector(path)
    result = follow(
        vector.rules,
        vector.state,
        vector.lines,
        vector.pcr10,
        vector.pcrs,
        offset=vector.offset,
        more=vector.more,
        changes=vector.changes,
    )
    assert codes(result) == vector.expect


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_m12_exclude_rules_that_match_too_much(path: Path) -> None:
    raw = path.read_bytes()
    expect = raw.decode().partition("\n")[0].removeprefix("# expect: ")
    with pytest.raises(Rejected) as refused:
        section(parse_baseline(raw), "ima", ImaPolicy)
    assert refused.value.code == expect
    assert "ima.exclude" in refused.value.detail or "ima:" in refused.value.detail


def test_every_attack_has_a_vector() -> None:
    numbers = {path.stem[:3] for path in (*VECTORS, *POLICIES)}
    assert numbers >= {f"m{number:02}" for number in range(1, 15)}
