"""Writes plain data as TOML 1.0: what `contract.toml` reads back as the same data, the same text for the same data.

Takes what `msgspec.to_builtins` gives: dicts with text keys, lists, text, numbers, yes and no. None is left out, as TOML
has no such value. Refuses everything else with TypeError, which is a fault of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SHORT_CHARS: Final = 100


def render(data: Mapping[str, object]) -> str:
    """Return the document: first the keys of the table itself, then its tables, in the order given."""
    lines: list[str] = []
    _table(data, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def literal(value: object) -> str:
    """Return one value as it stands behind `key = `."""
    return _value(value)


def _table(table: Mapping[str, object], path: tuple[str, ...], lines: list[str]) -> None:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in table.items() if key not in inner and value is not None}
    if path and (plain or not inner):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in inner.items():
        _table(value, (*path, key), lines)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        items = [_value(item) for item in value]
        line = ", ".join(items)
        if len(line) <= _SHORT_CHARS:
            return f"[{line}]"
        return "[\n" + "".join(f"    {item},\n" for item in items) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(pairs) + " }"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    """Return a basic string; everything that does not print is escaped."""
    out = ['"']
    for character in text:
        if character in '"\\':
            out.append("\\" + character)
        elif character.isprintable():
            out.append(character)
        else:
            code = ord(character)
            out.append(f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}")
    return "".join(out) + '"'
