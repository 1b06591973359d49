"""The OpenAPI 3.1 document, made from the table of routes and the types it names; so it cannot differ from them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from controller.api import PREFIX
from controller.api.problem import CONTENT_TYPE, Problem
from controller.api.route import PARAMETER, AnyRoute, Nothing
from controller.permissions import roles_with

_REF = "#/components/schemas/{name}"
_TEXT = {"type": "string"}
_WHERE = {
    "nothing": "at any site",
    "fleet": "for the whole fleet",
    "listed": "and shows no more than the sites that it is for",
    "named": "where everything is that the body names",
    "given": "wherever the body gives rights, and each of them",
}
_OPERATION_PART = re.compile(r"[^a-z]+")


def document(routes: Sequence[AnyRoute], version: str) -> dict[str, object]:
    """Return the document (OpenAPI Specification 3.1.0) as JSON-ready values."""
    types: list[object] = [Problem]
    for route in routes:
        types += [
            kind for kind in (route.query, route.body, route.reply) if kind not in (None, bytes, Nothing)
        ]
    unique = list({repr(kind): kind for kind in types}.values())
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_type = {repr(kind): schema for kind, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(
            route, by_type, components
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ringfence controller", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    route: AnyRoute, by_type: dict[str, dict[str, object]], components: dict[str, dict[str, object]]
) -> dict[str, object]:
    operation: dict[str, object] = {
        "operationId": _OPERATION_PART.sub("-", f"{route.method} {route.path}".lower()).strip("-"),
        "summary": route.summary,
        "description": rule_of(route),
        "security": [] if route.needs == "public" else [{"token": []}],
        "parameters": _path_parameters(route) + _query_parameters(route, by_type, components),
        "responses": {
            str(204 if route.reply is None else route.status): _reply(route, by_type),
            "default": {
                "description": "Refused (RFC 9457)",
                "content": {CONTENT_TYPE: {"schema": by_type[repr(Problem)]}},
            },
        },
    }
    if route.body is not Nothing:
        binary = route.body is bytes
        schema = {"type": "string", "format": "binary"} if binary else by_type[repr(route.body)]
        content_type = "application/octet-stream" if binary else "application/json"
        operation["requestBody"] = {"required": True, "content": {content_type: {"schema": schema}}}
    return operation


def rule_of(route: AnyRoute) -> str:
    """Return who may use a route, as people read it."""
    if route.needs == "public":
        return "No token is needed."
    if route.needs == "token":
        return "Any valid token will do."
    where = _WHERE.get(route.about, f"where the {route.about} is")
    return f"Needs `{route.needs}` ({', '.join(roles_with(route.needs))}) {where}."


def _reply(route: AnyRoute, by_type: dict[str, dict[str, object]]) -> dict[str, object]:
    if route.reply is None:
        return {"description": "Done"}
    return {"description": "Done", "content": {"application/json": {"schema": by_type[repr(route.reply)]}}}


def _path_parameters(route: AnyRoute) -> list[dict[str, object]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in PARAMETER.findall(route.path)
    ]


def _query_parameters(
    route: AnyRoute, by_type: dict[str, dict[str, object]], components: dict[str, dict[str, object]]
) -> list[dict[str, object]]:
    if route.query is Nothing:
        return []
    reference = str(by_type[repr(route.query)]["$ref"])
    schema = components[reference.rpartition("/")[2]]
    properties = schema["properties"]
    assert isinstance(properties, dict)  # noqa: S101  (JSON Schema of an object)
    return [
        {"name": name, "in": "query", "required": False, "schema": property_}
        for name, property_ in properties.items()
    ]
