"""An example of each type that the API takes or gives, made from the type: it cannot go stale, and it always fits.

What a field's name says (`site`, `reason`, `until`) decides what stands there; else its type and bounds do.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final

import msgspec
from msgspec import inspect

_BY_NAME: Final[dict[str, object]] = {
    "node": "press-1",
    "nodes": ["press-1", "press-2"],
    "site": "lyon",
    "sites": ["lyon"],
    "name": "factory",
    "user": "ann",
    "actor": "ann",
    "person": "ann",
    "created_by": "ann",
    "set_by": "ann",
    "controller": "ringfence",
    "reason": "drive replaced, ticket 4711",
    "selector": "site=lyon,line in (3,4)",
    "labels": {"line": "3"},
    "set": {"line": "3"},
    "remove": ["retired"],
    "kind": "drift",
    "who": "A. Technician",
    "company": "Press Works",
    "evidence": "work order 4711",
    "baseline": "factory",
    "zone": "Europe/Paris",
    "begins": "22:00",
    "ends": "04:00",
    "code": "node.unknown",
    "password": "correct horse battery staple",
    "new_password": "another battery staple horse",
    "setup": "rfu_0123456789",
    "token": "rfa_0123456789",
    "id_token": "eyJhbGciOiJFUzI1NiJ9.e30.c2lnbmF0dXJl",
    "next": None,
    "cursor": "press-1",
    "problem": None,
    "peers": ["198.51.100.7"],
    "title": "sysctl: net.ipv4.ip_forward",
    "document": "# no rules\n",
    "doors": ["north"],
    "values": {"kernel": ["ab" * 32]},
    "supersedes": ["cd" * 32],
}
_SHOWN: Final = frozenset({"doors"})
"""Shown although it may be left out: without one of its kind the whole says nothing."""
_TIME: Final = 1_767_225_600.0
_TIMES: Final = ("_at", "since", "until", "_from", "now", "expires", "starts")
_PATTERNS: Final = ("ab" * 32, "ab" * 34, "press-1", "drift", "3", "22:00", "A1b2C3d4E5f6G7h8", "factory/3")


def example_of(kind: object) -> object:
    """Return an example as JSON-ready values. Raises msgspec.ValidationError where what is made does not convert to `kind`."""
    made = _value(inspect.type_info(kind), "", ())
    msgspec.convert(made, kind, strict=True, str_keys=True)
    return made


def _value(kind: inspect.Type, name: str, inside: tuple[type, ...]) -> Any:
    known = _named(kind, name)
    if known is not inspect:
        return known
    match kind:
        case inspect.Metadata():
            return _value(kind.type, name, inside)
        case inspect.UnionType():
            return _value(_best(kind), name, inside)
        case inspect.StructType():
            return _struct(kind, inside)
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.CollectionType():
            deep = isinstance(kind.item_type, inspect.StructType) and kind.item_type.cls in inside
            return [] if deep else [_value(kind.item_type, name.removesuffix("s"), inside)]
        case inspect.TupleType():
            return [_value(each, name, inside) for each in kind.item_types]
        case inspect.DictType():
            key = _value(kind.key_type, "key", inside)
            return {str(key): _value(kind.value_type, "", inside)}
        case inspect.LiteralType():
            return kind.values[0]
        case _:
            return _plain(kind, name)


def _named(kind: inspect.Type, name: str) -> Any:
    """What the field's name says, where it fits the type; else the module `inspect`, which is no example of anything."""
    if name not in _BY_NAME or isinstance(kind, inspect.Metadata):
        return inspect
    value = _BY_NAME[name]
    alone = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for each in alone:
        if value is None and isinstance(each, inspect.NoneType):
            return None
        if isinstance(value, str) and isinstance(each, inspect.StrType) and _holds(each, value):
            return value
        if isinstance(value, list) and isinstance(each, inspect.ListType | inspect.VarTupleType):
            item = each.item_type
            if isinstance(item, inspect.StrType) and all(_holds(item, one) for one in value):
                return value
        if isinstance(value, dict) and isinstance(each, inspect.DictType):
            held = _value(each.value_type, "", ())
            if type(held) is type(next(iter(value.values()))):
                return value
    return inspect


def _holds(kind: inspect.StrType, value: str) -> bool:
    meta = msgspec.Meta(pattern=kind.pattern, min_length=kind.min_length, max_length=kind.max_length)
    try:
        msgspec.convert(value, Annotated[str, meta])
    except msgspec.ValidationError:
        return False
    return True


def _best(kind: inspect.UnionType) -> inspect.Type:
    return next(each for each in kind.types if not isinstance(each, inspect.NoneType))


def _struct(kind: inspect.StructType, inside: tuple[type, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in kind.fields:
        child = field.type
        deep = isinstance(child, inspect.StructType) and child.cls in inside
        left_out = not field.required and _default(field) in (None, [], ())
        if deep or (left_out and field.encode_name not in _SHOWN):
            continue
        found[field.encode_name] = _value(child, field.encode_name, (*inside, kind.cls))
    return found


def _default(field: inspect.Field) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _plain(kind: inspect.Type, name: str) -> Any:
    match kind:
        case inspect.NoneType():
            return None
        case inspect.BoolType():
            return False
        case inspect.FloatType() | inspect.IntType():
            return _number(kind, name)
        case inspect.BytesType():
            return base64.b64encode(bytes(kind.min_length or 8)).decode()
        case inspect.StrType():
            candidates = (name or "text", *_PATTERNS, "x" * (kind.min_length or 1))
            return next(each for each in candidates if _holds(kind, each))
        case _:
            return {}


def _number(kind: inspect.FloatType | inspect.IntType, name: str) -> Any:
    number: float = _TIME if any(part in name for part in _TIMES) else 1.0
    if kind.le is not None:
        number = min(number, kind.le)
    if kind.ge is not None:
        number = max(number, kind.ge)
    if kind.gt is not None and number <= kind.gt:
        number = kind.gt + 1
    return int(number) if isinstance(kind, inspect.IntType) else float(number)
