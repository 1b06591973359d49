"""Pages of lists: one row more than asked for says whether there is a next page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from contract.errors import Rejected
from controller.records import Page

T = TypeVar("T")


def cut(rows: list[T], limit: int, cursor: Callable[[T], str]) -> Page[T]:
    """Return at most `limit` of the `limit + 1` rows that were asked for, and the cursor of the next page."""
    if len(rows) <= limit:
        return Page(items=rows, next=None)
    return Page(items=rows[:limit], next=cursor(rows[limit - 1]))


def number(cursor: str | None) -> int | None:
    """Return a cursor that is a row's number. Raises Rejected `cursor.invalid`."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise Rejected("cursor.invalid", "wanted the `next` of the page before")
    return int(cursor)
