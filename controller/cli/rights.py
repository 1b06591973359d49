"""Rights as people write them: `operator@lyon,paris`, `viewer@all`, `operator@lyon[line in (3,4)]`.

Sites are always said: nothing never means everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar, get_args

import click

from controller.cli.show import at, items
from controller.permissions import Role

_WRITTEN = re.compile(r"([a-z]+)@([^\[\]]*)(?:\[([^\[\]]+)\])?")
F = TypeVar("F", bound=Callable[..., object])


def read_right(text: str) -> dict[str, object]:
    """Return a right as the API takes it. Raises ValueError, which says what was wanted."""
    found = _WRITTEN.fullmatch(text)
    role, sites, labels = found.groups() if found else (text, "", None)
    if role not in get_args(Role):
        raise ValueError(f"{role!r}: wanted one of {', '.join(get_args(Role))}")
    named = sites.split(",")
    if not all(named):
        raise ValueError(f"{text!r}: wanted ROLE@all or ROLE@SITE,SITE or ROLE@SITE[LABELS]")
    right: dict[str, object] = {"role": role, "sites": "all" if named == ["all"] else named}
    return right if labels is None else {**right, "labels": labels}


class _Right(click.ParamType[dict[str, object]]):
    name = "role@sites"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, object]:
        try:
            return read_right(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def rights_option(command: F) -> F:
    """Add `--right`, at least once; it comes as `rights`."""
    return click.option(
        "--right",
        "rights",
        type=_Right(),
        multiple=True,
        required=True,
        help="What it may do and where: viewer@all, operator@lyon,paris, 'operator@lyon[line=3]'. Several times for several.",
    )(command)


def shown(rights: object) -> str:
    """Return rights of decoded JSON as people write them."""
    parts: list[str] = []
    for right in items(rights):
        sites = at(right, "sites")
        where = ",".join(str(site) for site in items(sites)) if isinstance(sites, list) else str(sites)
        labels = at(right, "labels")
        parts.append(f"{at(right, 'role')}@{where}" + (f"[{labels}]" if labels else ""))
    return " ".join(parts)
