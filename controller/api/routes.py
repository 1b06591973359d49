"""The table of all routes of the admin API: what is served and what is documented."""

from __future__ import annotations

from controller.api import (
    audit,
    baselines,
    enrolments,
    escrow,
    events,
    evidence,
    grants,
    health,
    incidents,
    inventory,
    login,
    nodes,
    outlets,
    references,
    responses,
    restores,
    rollouts,
    sites,
    tokens,
    users,
)
from controller.api.route import AnyRoute

_RESOURCES = (
    health,
    nodes,
    inventory,
    sites,
    enrolments,
    baselines,
    rollouts,
    incidents,
    responses,
    references,
    evidence,
    escrow,
    grants,
    events,
    outlets,
    restores,
    audit,
    login,
    tokens,
    users,
)

ROUTES: tuple[AnyRoute, ...] = tuple(route for resource in _RESOURCES for route in resource.ROUTES)
