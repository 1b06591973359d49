"""TOML at the boundary: where the error is, what was expected, and nothing but Rejected."""

from __future__ import annotations

import tomllib
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.toml import (
    MAX_KEY_PARTS,
    MAX_LINE_CHARS,
    MAX_TOML_BYTES,
    convert_toml,
    dotted,
    line_of,
    parse_toml,
)

TEXT = '''\
# line 1
[head]
name = "x"
text = """
fake = 1
[fake]
"""
deep.er.value = 1

[[rule]]
ports = [
  1,
  # a comment with ] in it
  "two",
]
[[rule]]
ports = []
[rule.inner]
x = { a = 1, "b.c" = [
  { d = 1 },
  { d = 2 } ] }

[zones."a b"]
items = "it's"
[zones.second]
items = 3
'''


class Zone(Struct, forbid_unknown_fields=True):
    items: list[str]


class Rule(Struct, forbid_unknown_fields=True):
    ports: list[int]
    kind: Literal["a", "b"] = "a"


class Document(Struct, forbid_unknown_fields=True):
    zones: dict[str, Zone] = {}
    rule: Annotated[list[Rule], Meta(max_length=2)] = []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("head", 2),
        ("head.name", 3),
        ("head.text", 4),
        ("head.deep.er.value", 8),
        ("head.deep", 8),
        ("rule", 10),
        ("rule[0].ports", 11),
        ("rule[0].ports[0]", 12),
        ("rule[0].ports[1]", 14),
        ("rule[1]", 16),
        ("rule[1].ports", 17),
        ("rule[1].inner", 18),
        (("rule", 1, "inner", "x", "b.c", 0, "d"), 20),
        (("rule", 1, "inner", "x", "b.c", 1, "d"), 21),
        (("zones", "a b", "items"), 24),
        ("zones.second.items", 26),
        ("zones.second.items.not.there", 26),
        ("nowhere", 1),
        ((), 1),
    ],
)
def test_line_of_a_key(path: str | tuple[str | int, ...], line: int) -> None:
    tomllib.loads(TEXT)
    assert line_of(TEXT, path) == line


def _refused(text: str, kind: type[object] = Document) -> str:
    with pytest.raises(Rejected) as refused:
        data, decoded = parse_toml(text.encode(), file="f.toml", code="test")
        convert_toml(data, kind, text=decoded, file="f.toml", code="test")
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "test.key: f.toml:1: x: unknown key; expected one of: zones, rule"),
        ("\n[[rule]]\n", "test.key: f.toml:2: rule[0].ports: expected a value: this key is required"),
        (
            "[[rule]]\nports = []\nportz = 1\n",
            "test.key: f.toml:3: rule[0].portz: unknown key; expected one of: ports, kind",
        ),
        ("[[rule]]\nports = [1,\n'2']", "test.key: f.toml:3: rule[0].ports[1]: expected `int`, got `str`"),
        ("[[rule]]\nports = [1]\nkind = 'c'", "test.key: f.toml:3: rule[0].kind: invalid enum value 'c'"),
        (
            "[zones.a]\nitems = []\n[zones.b]\nitems = 1",
            "test.key: f.toml:4: zones.b.items: expected `array`, got `int`",
        ),
        (
            "[zones.a]\nitems = []\n[zones.b]\nitemz = 1",
            "test.key: f.toml:4: zones.b.itemz: unknown key; expected one of: items",
        ),
        ("rule = 1979-05-27", "test.key: f.toml:1: rule: expected `array`, got `date`"),
        ("[[rule]]\nports=[]\n" * 3, "test.key: f.toml:1: rule: expected `array` of length <= 2"),
        ("a = 1\na = 2", "test.syntax: f.toml:2: not TOML: Cannot overwrite a value"),
        ("[x\n", "test.syntax: f.toml:1: not TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_a09_a_refusal_names_file_line_key_and_what_was_expected(text: str, message: str) -> None:
    assert _refused(text) == message


def test_a09_bytes_that_are_no_text_are_refused_with_their_line() -> None:
    with pytest.raises(Rejected, match=r"test.syntax: f:2: expected UTF-8 text"):
        parse_toml(b"a = 1\nb = '\xff'", file="f", code="test")


@pytest.mark.parametrize(
    "text",
    [
        "a = 1\n" + "#" * MAX_TOML_BYTES,
        "a = '" + "x" * MAX_LINE_CHARS + "'",
        "a." * MAX_KEY_PARTS + "b = 1",
        "[" + "a . " * MAX_KEY_PARTS + "b]",
        "[" + '"a\\"".' * MAX_KEY_PARTS + "b]",
        "x = {" + "'a'." * MAX_KEY_PARTS + "b = 1}",
    ],
)
def test_what_would_take_long_is_refused_at_once(text: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse_toml(text.encode(), file="f", code="test")
    assert refused.value.code == "test.too-large"


@pytest.mark.parametrize(
    "text", ["a=" + "[" * 1000, "a={b=" * 300, ("a=" + "[\n" * 100_000), "x = " + "9" * 2000]
)
def test_deep_or_huge_values_are_refused_and_not_a_crash(text: str) -> None:
    assert _refused(text).startswith(("test.syntax: f.toml:", "test.key: f.toml:"))


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_rejected(untrusted: bytes) -> None:
    try:
        data, text = parse_toml(untrusted, file="f", code="test")
        convert_toml(data, Document, text=text, file="f", code="test")
    except Rejected as refused:
        assert refused.detail.startswith("f:")


_WORD = st.sampled_from(["a", "b", '"q.q"', "'r'", "zones", "rule", "items", "ports", "kind"])
_VALUE = st.recursive(
    st.sampled_from(
        ["1", '"s"', "'l'", '"""m\nm"""', "'''n\n'''", "true", "1.5", "1979-05-27", "'#'", '"]"', '"\\""']
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ",\n".join(items) + " # c\n]"),
        st.lists(st.tuples(_WORD, inner), max_size=2, unique_by=lambda pair: pair[0]).map(
            lambda pairs: "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=6,
)
_LINE = st.one_of(
    st.tuples(st.lists(_WORD, min_size=1, max_size=3).map(".".join), _VALUE).map(" = ".join),
    st.lists(_WORD, min_size=1, max_size=3).map(lambda words: f"[{'.'.join(words)}]"),
    st.lists(_WORD, min_size=1, max_size=2).map(lambda words: f"[[{' . '.join(words)}]]"),
    st.just('# comment = [ " '),
)


@settings(max_examples=300)
@given(st.lists(_LINE, max_size=8).map("\n".join))
def test_every_key_of_every_document_is_found_on_a_line_that_has_it(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = text.splitlines()

    def check(value: object, path: tuple[str | int, ...]) -> None:
        if path and isinstance(path[-1], str):
            assert path[-1] in lines[line_of(text, path) - 1], dotted(path)
        if isinstance(value, dict):
            for key, inner in value.items():
                check(inner, (*path, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                check(inner, (*path, index))

    check(data, ())
    try:
        convert_toml(data, Document, text=text, file="f", code="test")
    except Rejected as refused:
        assert refused.code == "test.key"
