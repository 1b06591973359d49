"""The OpenAPI 3.1 document, made from the table of routes and the types it names; so it cannot differ from them.

Patterns are rewritten from Python's dialect to that of JSON Schema (ECMA-262), which has no `\\A` and no `\\Z`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import msgspec

from contract.errors import Rejected
from controller.api import PREFIX
from controller.api.examples import example_of
from controller.api.problem import CONTENT_TYPE, RETRY_S, STATUS_BY_CODE, TITLES, Problem, problem_of
from controller.api.route import PARAMETER, PATH_TYPES, AnyRoute, Nothing
from controller.fleet.editing import MAX_MATCH_CHARS
from controller.permissions import roles_with

_REF = "#/components/schemas/{name}"
_WHERE = {
    "nothing": "at any site",
    "fleet": "for the whole fleet",
    "listed": "and shows no more than the sites that it is for",
    "named": "where everything is that the body names",
    "given": "wherever the body gives rights, and each of them",
}
_DRY_RUN: dict[str, object] = {
    "name": "dry_run",
    "in": "query",
    "required": False,
    "description": "The same checks and the same answer; nothing is changed, recorded or sent.",
    "schema": {"type": "boolean", "default": False},
}
_KEY: dict[str, object] = {
    "description": "New for every act; with the same key the same request is carried out once, and answered the same for a day.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{16,128}$"},
}
_MATCH: dict[str, object] = {
    "description": "The ETag of what you have seen, or * to overwrite whatever it is.",
    "schema": {"type": "string", "maxLength": MAX_MATCH_CHARS},
}
_NONE_MATCH: dict[str, object] = {
    "description": "Make it, where there is none; If-Match is for replacing one.",
    "schema": {"type": "string", "enum": ["*"]},
}
_ETAG = {"ETag": {"description": "What If-Match wants.", "schema": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
_CODES = {404: "node.unknown", 409: "hold.exists", 422: "selector.malformed"}
"""One of a status that no code has alone."""
_BUNDLE = "the file that `ringfence baseline push` makes"
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
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
    made = {
        "openapi": "3.1.0",
        "info": {"title": "Ringfence controller", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {f"Refused{status}": _refusal(status, by_type[repr(Problem)]) for status in TITLES},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    return cast(dict[str, object], _ecma(made))


def _ecma(value: object) -> object:
    """Return a schema with its patterns in the dialect that the specification wants."""
    if isinstance(value, dict):
        if value.get("contentEncoding") == "base64":
            value = {"pattern": _BASE64, **value}
        return {
            key: each.replace("\\A", "^").replace("\\Z", "$")
            if key == "pattern" and isinstance(each, str)
            else _ecma(each)
            for key, each in value.items()
        }
    return [_ecma(each) for each in value] if isinstance(value, list | tuple) else value


def refusals(route: AnyRoute) -> list[int]:
    """Return every status of a refusal that a route may answer with."""
    found = {400, 500, 503}
    if route.needs != "public":
        found |= {401, 403, 429}
    else:
        found |= {401, 403, 429} if route.method == "POST" else set()
    if route.body is not Nothing:
        found |= {408, 413, 415}
    if route.method != "GET" or "{" in route.path:
        found |= {404, 409, 422}
    if route.query is not Nothing:
        found |= {404, 422}
    if route.match:
        found |= {412, 428} if route.match == "must" else {412}
    return sorted(found)


def _operation(
    route: AnyRoute, by_type: dict[str, dict[str, object]], components: dict[str, dict[str, object]]
) -> dict[str, object]:
    operation: dict[str, object] = {
        "operationId": _OPERATION_PART.sub("-", f"{route.method} {route.path}".lower()).strip("-"),
        "summary": route.summary,
        "description": rule_of(route),
        "security": [] if route.needs == "public" else [{"token": []}],
        "parameters": _path_parameters(route)
        + _query_parameters(route, by_type, components)
        + _header_parameters(route),
        "responses": {
            str(204 if route.reply is None else route.status): _reply(route, by_type),
            **{
                str(status): {"$ref": f"#/components/responses/Refused{status}"} for status in refusals(route)
            },
        },
    }
    if route.deprecated is not None:
        end = f"It may be gone from {route.deprecated.sunset} on: use `{route.deprecated.instead}`."
        operation |= {"deprecated": True, "description": f"{rule_of(route)} {end}"}
    if route.body is not Nothing:
        binary = route.body is bytes
        schema = {"type": "string", "format": "binary"} if binary else by_type[repr(route.body)]
        content_type = "application/octet-stream" if binary else "application/json"
        example = _BUNDLE if binary else example_of(route.body)
        content = {content_type: {"schema": schema, "example": example}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _refusal(status: int, schema: dict[str, object]) -> dict[str, object]:
    content = {CONTENT_TYPE: {"schema": schema, "example": _problem_example(status)}}
    headers = {"headers": _RETRY} if status in RETRY_S else {}
    return {"description": TITLES[status], **headers, "content": content}


def _problem_example(status: int) -> object:
    code = next((code for code, its in STATUS_BY_CODE.items() if its == status), _CODES.get(status, ""))
    return msgspec.to_builtins(problem_of(Rejected(code, "what was wanted, and what was found")))


def rule_of(route: AnyRoute) -> str:
    """Return who may use a route, as people read it."""
    if route.needs == "public":
        return "No token is needed."
    if route.needs == "token":
        return "Any valid token will do."
    where = _WHERE.get(route.about, f"where the {route.about} is")
    return f"Needs `{route.needs}` ({', '.join(roles_with(route.needs))}) {where}."


def _reply(route: AnyRoute, by_type: dict[str, dict[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {"description": "Done"}
    if route.whole is not None and not route.mutates:
        found["headers"] = _ETAG
    if route.reply is not None:
        content = {"schema": by_type[repr(route.reply)], "example": example_of(route.reply)}
        found["content"] = {"application/json": content}
    return found


def _header_parameters(route: AnyRoute) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    if route.acts:
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, **_KEY})
    if route.match:
        must = route.match == "must" and not route.makes
        found.append({"name": "If-Match", "in": "header", "required": must, **_MATCH})
    if route.makes:
        found.append({"name": "If-None-Match", "in": "header", "required": False, **_NONE_MATCH})
    return found


def _path_parameters(route: AnyRoute) -> list[dict[str, object]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(PATH_TYPES[name])}
        for name in PARAMETER.findall(route.path)
    ]


def _query_parameters(
    route: AnyRoute, by_type: dict[str, dict[str, object]], components: dict[str, dict[str, object]]
) -> list[dict[str, object]]:
    also = [_DRY_RUN] if route.acts else []
    if route.query is Nothing:
        return also
    reference = str(by_type[repr(route.query)]["$ref"])
    schema = components[reference.rpartition("/")[2]]
    properties = schema["properties"]
    required = schema.get("required", ())
    assert isinstance(properties, dict) and isinstance(required, list | tuple)  # noqa: S101  (JSON Schema of an object)
    return [
        {"name": name, "in": "query", "required": name in required, "schema": property_}
        for name, property_ in properties.items()
    ] + also
