"""Answers of acts on many: each item has its own, and its own problem. One bad item does not fail the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from contract.errors import Rejected
from controller.api.problem import Problem, problem_of
from controller.records import Record

T = TypeVar("T")


class Outcome(Record, Generic[T], frozen=True, kw_only=True):
    """What became of one item: exactly one of `done` and `problem`."""

    item: str
    """Its name, or where it has none its place in the list, from 0."""
    done: T | None = None
    problem: Problem | None = None


class Outcomes(Record, Generic[T], frozen=True, kw_only=True):
    """What became of each, in the order of the request, or by name where a selector meant them."""

    items: list[Outcome[T]]
    done: int
    refused: int


def outcomes(results: Iterable[tuple[str, T | Rejected]]) -> Outcomes[T]:
    """Return results as they are sent."""
    items: list[Outcome[T]] = [
        Outcome(item=item, problem=problem_of(result))
        if isinstance(result, Rejected)
        else Outcome(item=item, done=result)
        for item, result in results
    ]
    refused = sum(each.problem is not None for each in items)
    return Outcomes(items=items, done=len(items) - refused, refused=refused)
