"""TOML at the boundary: strict types, and an error that names file, line, key and what was expected.

Used for baselines and for the configuration of both programs. It reads no files: it is given bytes. It
relies on `tomllib` for the syntax (TOML 1.0.0) and on msgspec for the types; the small scanner here only finds
the line of a key in text that `tomllib` has accepted, and never decides what a text means.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import inspect

from contract.errors import Rejected

T = TypeVar("T")
Path = tuple[str | int, ...]

MAX_TOML_BYTES = 4 * 1024 * 1024
"""An allow-list of files takes some 70 bytes for each of tens of thousands."""
MAX_LINE_CHARS = 2048
MAX_KEY_PARTS = 16
"""`tomllib` takes time that grows with the square of the parts of a dotted key (20 s for 1 MiB of such keys)."""

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\.\.\.)\]")
_AT = re.compile(r"\A(?P<what>.*?)(?: - at `(?P<path>.*)`)?\Z", re.DOTALL)
_UNKNOWN = re.compile(r"\AObject contains unknown field `(?P<field>.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"\AObject missing required field `(?P<field>.*)`\Z", re.DOTALL)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KEY_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\]|\\.)*+"|'[^']*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_KEY_PART}){{{MAX_KEY_PARTS}}}")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


def parse_toml(untrusted: bytes, *, file: str, code: str) -> tuple[dict[str, object], str]:
    """Return the tables and the text.

    Raises Rejected `<code>.too-large` (more than 4 MiB, 2,048 characters in a line, 16 parts in a key) or
    `<code>.syntax` (not UTF-8, not TOML 1.0.0); the detail begins with `file:line:`.
    """
    if len(untrusted) > MAX_TOML_BYTES:
        raise Rejected(f"{code}.too-large", f"{file}: {len(untrusted)} bytes, at most {MAX_TOML_BYTES}")
    try:
        text = untrusted.decode("utf-8")
    except UnicodeDecodeError as error:
        line = untrusted.count(b"\n", 0, error.start) + 1
        raise Rejected(f"{code}.syntax", f"{file}:{line}: expected UTF-8 text") from None
    for number, content in enumerate(text.split("\n"), 1):
        if len(content) > MAX_LINE_CHARS:
            detail = f"{file}:{number}: {len(content)} characters in one line, at most {MAX_LINE_CHARS}"
            raise Rejected(f"{code}.too-large", detail)
        if content.count(".") >= MAX_KEY_PARTS and _LONG_KEY.search(content) is not None:
            raise Rejected(
                f"{code}.too-large", f"{file}:{number}: more than {MAX_KEY_PARTS} parts in one key"
            )
    try:
        return tomllib.loads(text), text
    except (ValueError, RecursionError) as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(place.group(1)) if place else text.count("\n") + 1
        what = re.sub(r" \(at (line \d+, column \d+|end of document)\)", "", str(error)) or "nested too deep"
        raise Rejected(f"{code}.syntax", f"{file}:{line}: not TOML: {what}") from None


def convert_toml(data: object, kind: type[T], *, text: str, file: str, code: str, at: Path = ()) -> T:
    """Return `data`, which stands at the key path `at` of `text`, strictly as `kind`.

    Raises Rejected `<code>.key`: "factory.toml:12: firewall.inbound[0].ports: expected `array`, got `int`".
    """
    try:
        return msgspec.convert(data, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        return _refuse(str(error), data, kind, text=text, file=file, code=code, at=at)


def refuse_key(at: Path, expected: str, *, text: str, file: str, code: str) -> Rejected:
    """Return (not raise) the Rejected `<code>.key` for a fault that only the caller can see."""
    return Rejected(f"{code}.key", f"{file}:{line_of(text, at)}: {dotted(at) or 'document'}: {expected}")


def dotted(path: Path) -> str:
    """Return a path as people write it: `firewall.inbound[0].ports`."""
    out = ""
    for step in path:
        out += f"[{step}]" if isinstance(step, int) else f".{step}" if out else step
    return out


def line_of(text: str, path: Path | str) -> int:
    """Return the line (from 1) of a key in TOML text that has parsed; of its nearest parent if it is not there.

    `path` is a tuple of names and indices, or `firewall.inbound[0].ports`. Returns 1 if nothing of it is there.
    """
    if isinstance(path, str):
        path = _path_of("." + path)
    try:
        lines = _Scanner(text).lines()
    except (IndexError, ValueError, RecursionError):  # text that tomllib would not take
        return 1
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def _refuse(message: str, data: object, kind: type[T], *, text: str, file: str, code: str, at: Path) -> T:
    """Raise the Rejected for a message of msgspec; never returns."""
    found = _AT.match(message)
    what, raw = (found.group("what"), found.group("path") or "$") if found else (message, "$")
    inner = _resolve(data, kind, _path_of(raw.rpartition("`")[2].removeprefix("$")))
    if (unknown := _UNKNOWN.match(what)) is not None:
        known = ", ".join(_known_keys(kind, inner)) or "nothing"
        inner = (*inner, unknown.group("field"))
        what = f"unknown key; expected one of: {known}"
    elif (missing := _MISSING.match(what)) is not None:
        inner = (*inner, missing.group("field"))
        what = "expected a value: this key is required"
    else:
        what = what[:1].lower() + what[1:]
    raise refuse_key(at + inner, what, text=text, file=file, code=code)


def _path_of(raw: str) -> Path:
    steps: list[str | int] = []
    for name, index, any_key in _STEP.findall(raw):
        steps.append(name or any_key if name or any_key else int(index))
    return tuple(steps)


def _resolve(data: object, kind: type[T], path: Path) -> Path:
    """Replace each `...` (msgspec's name for "some key of a mapping") by the key that does not convert."""
    while "..." in path:
        place = path.index("...")
        for key in _keys_at(data, path[:place]):
            only = _with_only(data, path[:place], key)
            try:
                msgspec.convert(only, kind, strict=True)
            except msgspec.ValidationError:
                path, data = (*path[:place], key, *path[place + 1 :]), only
                break
        else:
            return path[:place]
    return path


def _at(data: object, path: Path) -> object:
    for step in path:
        if isinstance(step, int) and isinstance(data, Sequence):
            data = data[step] if step < len(data) else None
        elif isinstance(data, Mapping):
            data = data.get(step)
        else:
            return None
    return data


def _keys_at(data: object, path: Path) -> list[str]:
    there = _at(data, path)
    return [str(key) for key in there] if isinstance(there, Mapping) else []


def _with_only(data: object, path: Path, key: str) -> object:
    """Return a copy of `data` in which the mapping at `path` has only `key`."""
    if not path:
        return {key: data[key]} if isinstance(data, Mapping) else data
    step, rest = path[0], path[1:]
    if isinstance(step, int) and isinstance(data, list):
        return [_with_only(item, rest, key) if index == step else item for index, item in enumerate(data)]
    if isinstance(data, Mapping):
        return {name: _with_only(item, rest, key) if name == step else item for name, item in data.items()}
    return data


def _known_keys(kind: type[object], path: Path) -> list[str]:
    """Return the field names that `kind` has at `path`; empty if there are none to name."""
    types: list[inspect.Type] = [inspect.type_info(kind)]
    for step in path:
        types = [inner for outer in _flat(types) for inner in _inside(outer, step)]
    return [f.encode_name for t in _flat(types) if isinstance(t, inspect.StructType) for f in t.fields]


def _flat(types: list[inspect.Type]) -> list[inspect.Type]:
    out: list[inspect.Type] = []
    for kind in types:
        out += _flat(list(kind.types)) if isinstance(kind, inspect.UnionType) else [kind]
    return out


def _inside(kind: inspect.Type, step: str | int) -> list[inspect.Type]:
    if isinstance(kind, inspect.StructType):
        return [f.type for f in kind.fields if f.encode_name == step]
    if isinstance(kind, inspect.DictType):
        return [kind.value_type]
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return [kind.item_type]
    return []


class _Scanner:
    """Finds the line of every key and array item of valid TOML text."""

    def __init__(self, text: str) -> None:
        self._text = text + "\n"
        self._pos = 0
        self._line = 1
        self._counted_to = 0
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}

    def lines(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self._skip_blank()
            if self._pos >= len(self._text):
                return self._lines
            if self._text[self._pos] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._pos)
        self._counted_to = self._pos
        return self._line

    def _skip_blank(self) -> None:
        found = _BLANK.match(self._text, self._pos)
        self._pos = found.end() if found else self._pos

    def _header(self) -> Path:
        many = self._text.startswith("[[", self._pos)
        line = self._here()
        self._pos += 2 if many else 1
        names = self._key()
        self._pos = self._text.index("]", self._pos) + (2 if many else 1)
        path: Path = ()
        for name in names:
            path = (*path, name)
            if path in self._arrays and not (many and path and path == self._real(names)):
                path = (*path, self._arrays[path])
        if many:
            self._arrays[path] = self._arrays.get(path, -1) + 1
            path = (*path, self._arrays[path])
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)
        return path

    def _real(self, names: tuple[str, ...]) -> Path:
        """Return where an array of tables of these names stands: every array before the last name indexed."""
        path: Path = ()
        for place, name in enumerate(names):
            path = (*path, name)
            if path in self._arrays and place < len(names) - 1:
                path = (*path, self._arrays[path])
        return path

    def _pair(self, table: Path) -> None:
        line = self._here()
        path: Path = table
        for name in self._key():
            path = (*path, name)
            self._lines.setdefault(path, line)
        self._pos = self._text.index("=", self._pos) + 1
        self._value(path)

    def _key(self) -> tuple[str, ...]:
        names: list[str] = []
        while True:
            self._skip_blank()
            if self._text[self._pos] in "\"'":
                start = self._pos
                self._skip_string()
                names.append(str(tomllib.loads(f"key = {self._text[start : self._pos]}")["key"]))
            else:
                bare = _BARE_KEY.match(self._text, self._pos)
                if bare is None:
                    raise ValueError("no key here")
                names.append(bare.group())
                self._pos = bare.end()
            self._skip_blank()
            if self._text[self._pos] != ".":
                return tuple(names)
            self._pos += 1

    def _value(self, path: Path) -> None:
        self._skip_blank()
        first = self._text[self._pos]
        if first in "\"'":
            self._skip_string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline(path)
        else:
            while self._text[self._pos] not in ",]}#\n":
                self._pos += 1

    def _array(self, path: Path) -> None:
        self._pos += 1
        index = 0
        while True:
            self._skip_blank()
            if self._text[self._pos] == "]":
                self._pos += 1
                return
            if self._text[self._pos] == ",":
                self._pos += 1
                continue
            self._lines[*path, index] = self._here()
            self._value((*path, index))
            index += 1

    def _inline(self, path: Path) -> None:
        self._pos += 1
        while True:
            self._skip_blank()
            if self._text[self._pos] == "}":
                self._pos += 1
                return
            if self._text[self._pos] == ",":
                self._pos += 1
                continue
            self._pair(path)

    def _skip_string(self) -> None:
        quote = self._text[self._pos]
        if self._text.startswith(quote * 3, self._pos):
            end = self._find_end(quote * 3, self._pos + 3)
            while self._text[end + 3 : end + 4] == quote:  # up to two quotes may stand before the end
                end += 1
            self._pos = end + 3
        else:
            self._pos = self._find_end(quote, self._pos + 1) + 1

    def _find_end(self, closing: str, start: int) -> int:
        while not self._text.startswith(closing, start):
            if start >= len(self._text):
                raise ValueError("no end of string")
            start += 2 if closing[0] == '"' and self._text[start] == "\\" else 1
        return start
