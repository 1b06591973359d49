"""What is written as TOML is read back the same, by the standard library's reader."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.tomltext import render

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = (
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_what_is_written_is_read_back(data: dict[str, object]) -> None:
    assert tomllib.loads(render(data)) == data


def test_long_lists_are_broken_and_nothing_stands_for_none() -> None:
    text = render({"boot": {"pinned": {"0": ["a" * 64, "b" * 64]}, "mode": None, "pcrs": [0, 1]}})
    assert text == f'[boot]\npcrs = [0, 1]\n\n[boot.pinned]\n0 = [\n    "{"a" * 64}",\n    "{"b" * 64}",\n]\n'


def test_what_is_no_toml_is_a_fault() -> None:
    with pytest.raises(TypeError):
        render({"key": b"bytes"})
