"""The gate in front of every handler: has this person the permission, and does it hold where the request goes?

1. a right with the permission that the route needs, anywhere: else 403 `role.insufficient`
2. a route about the whole fleet: for the whole fleet, else 403 `scope.insufficient`
3. what the path names: in scope, else the answer is that of a thing that does not exist
4. what the body names, once it is read: the same

A handler that lists is given the scope instead (`call.scope`), which the use cases demand of it by type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

from contract.errors import Rejected
from controller.api.route import AnyRoute, InPath, named_in
from controller.fleet.subjects import Subject
from controller.permissions import NOWHERE, Permission, Person, Scope, roles_with, scope_of
from controller.services import Services


async def admit(services: Services, route: AnyRoute, person: Person, path: Mapping[str, str]) -> Scope:
    """Return where `person` may use `route`. Raises Rejected `role.insufficient`, `scope.insufficient`, `*.unknown`."""
    scope = _allowed(route, person)
    if route.about == "fleet" and not scope.everywhere:  # 2
        raise Rejected(
            "scope.insufficient", f"this is about the whole fleet, your right to it is for {scope}"
        )
    if route.about in get_args(InPath):  # 3
        await _check(services, route, [named_in(path, cast(InPath, route.about))], scope)
    return scope


async def admit_body(services: Services, route: AnyRoute, body: object, scope: Scope) -> None:
    """Hold what a body names against the scope. Raises Rejected as `admit`."""
    if route.names is not None:  # 4
        await _check(services, route, route.names(body), scope)


def _allowed(route: AnyRoute, person: Person) -> Scope:
    if route.needs in ("public", "token"):
        return NOWHERE
    needs = cast(Permission, route.needs)
    scope = scope_of(person.rights, needs)
    if scope is None:  # 1
        roles = " or ".join(roles_with(needs))
        has = ", ".join(sorted({right.role for right in person.rights}))
        raise Rejected("role.insufficient", f"{needs} is for {roles}; yours is {has}")
    return scope


async def _check(services: Services, route: AnyRoute, subjects: Sequence[Subject], scope: Scope) -> None:
    if not scope.everywhere:  # a thing that does not exist is told by the handler
        await services.fleet.check_scope(subjects, scope, act=route.method != "GET")
