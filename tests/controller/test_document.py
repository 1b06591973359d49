"""The OpenAPI document is whole: an example of every body and answer that fits it, every refusal, and bounds for all that is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest

from controller import openapi
from controller.api.problem import TITLES, status_of
from controller.api.route import AnyRoute, Nothing
from controller.api.routes import ROUTES
from controller.store.selecting import SortKey

DOCUMENT: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.document(ROUTES, "1")))
IDS = [f"{route.method} {route.path}" for route in ROUTES]
ENDS = ("maxLength", "pattern", "enum", "const", "maximum")


def operation(route: AnyRoute) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][f"/api/v1{route.path}"][route.method.lower()]
    return found


def followed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, or the one that it names."""
    while "$ref" in schema:
        _, *path = schema["$ref"].split("/")
        found: Any = DOCUMENT
        for part in path:
            found = found[part]
        schema = found
    return schema


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_bodies_and_answers_have_examples_that_fit(route: AnyRoute) -> None:
    told = operation(route)
    if route.body not in (Nothing, bytes):
        [content] = told["requestBody"]["content"].values()
        msgspec.convert(content["example"], route.body, strict=True)
        assert content["example"] or route.body.__struct_fields__ != ()
    if route.body is bytes:
        assert told["requestBody"]["content"]["application/octet-stream"]["example"]
    if route.reply is not None:
        example = told["responses"][str(route.status)]["content"]["application/json"]["example"]
        msgspec.convert(example, route.reply, strict=True, str_keys=True)


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_every_refusal_is_named_with_problem_details(route: AnyRoute) -> None:
    answers = operation(route)["responses"]
    assert "default" not in answers
    refusals = {int(status): followed(answer) for status, answer in answers.items() if int(status) >= 400}
    assert {400, 500, 503} <= refusals.keys() <= TITLES.keys()
    if route.needs != "public":
        assert {401, 403, 429} <= refusals.keys()
    for status, answer in refusals.items():
        example = answer["content"]["application/problem+json"]["example"]
        assert example["status"] == status == status_of(example["code"]), example
        assert ("Retry-After" in answer.get("headers", {})) == (status in (429, 503))


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_all_that_is_asked_has_bounds(route: AnyRoute) -> None:
    for parameter in operation(route)["parameters"]:
        for schema in _alternatives(parameter["schema"]):
            kind = schema.get("type")
            if kind in ("boolean", "null"):
                continue
            assert any(end in schema for end in ENDS), parameter
            if kind in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & schema.keys(), parameter
    names = {parameter["name"] for parameter in operation(route)["parameters"]}
    assert set(re.findall(r"{(\w+)}", route.path)) <= names
    assert ("dry_run" in names) == ("Idempotency-Key" in names) == route.acts
    assert ("If-Match" in names) == bool(route.match)
    reply = str(route.reply)
    if "Page[" in reply:
        assert {"cursor", "limit"} <= names


def _alternatives(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    schema = followed(schema)
    if "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from _alternatives(each)
    else:
        yield schema


def test_c11_what_nodes_are_sorted_by_is_a_closed_list() -> None:
    [sort] = [p for p in DOCUMENT["paths"]["/api/v1/nodes"]["get"]["parameters"] if p["name"] == "sort"]
    assert set(followed(sort["schema"])["enum"]) == set(get_args(SortKey))


def test_patterns_are_in_the_dialect_of_json_schema() -> None:
    patterns = re.findall(r'"pattern":"((?:[^"\\]|\\.)*)"', msgspec.json.encode(DOCUMENT).decode())
    assert patterns and not [each for each in patterns if r"\\A" in each or r"\\Z" in each]
