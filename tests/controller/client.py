"""The generated Python client: `python -m tests.controller.client` writes `clients/python/ringfence_client.py` anew."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from controller import openapi
from controller.api import PREFIX
from controller.api.routes import ROUTES

CLIENT = Path(__file__).resolve().parents[2] / "clients" / "python" / "ringfence_client.py"
HEAD = Path(__file__).with_name("client_head.py.txt")
_KINDS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}


def source() -> str:
    """Return the client, formatted."""
    document = msgspec.json.decode(msgspec.json.encode(openapi.document(ROUTES, "1")))
    methods = [
        _method(document, path.removeprefix(PREFIX), verb.upper(), operation)
        for path, operations in document["paths"].items()
        for verb, operation in operations.items()
    ]
    before, class_, after = HEAD.read_text().partition("def _answer(")
    text = f"{before.rstrip()}\n\n{''.join(methods)}\n\n{class_}{after}"
    text = text.replace("TIMEOUT_S = 60.0\n", f'PREFIX = "{PREFIX}"\nTIMEOUT_S = 60.0\n', 1)
    command = [sys.executable, "-m", "ruff", "format", "-", "--stdin-filename", str(CLIENT)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _method(document: dict[str, Any], path: str, verb: str, operation: dict[str, Any]) -> str:
    inside = [each for each in operation["parameters"] if each["in"] == "path"]
    asked = [each for each in operation["parameters"] if each["in"] == "query"]
    heads = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
    body = operation.get("requestBody", {}).get("content", {})
    arguments = [f"{each['name']}: {_kind(document, each['schema'])}" for each in inside]
    if body:
        arguments.append(
            "body: bytes" if "application/octet-stream" in body else "body: Mapping[str, object]"
        )
    named = [
        f"{each['name']}: {_kind(document, each['schema'])}" + ("" if each["required"] else " | None = None")
        for each in asked
    ]
    headers = []
    if "If-Match" in heads:
        named.append("if_match: str | None = None")
        headers.append('"If-Match": if_match')
    if "If-None-Match" in heads:
        named.append("if_none_match: str | None = None")
        headers.append('"If-None-Match": if_none_match')
    if "Idempotency-Key" in heads:
        named.append("key: str | None = None")
        headers.append('"Idempotency-Key": _key(key)')
    url = re.sub(r"{(\w+)}", r"{_segment(\1)}", path)
    parts = [f'"{verb}"', f'f"{url}"' if inside else f'"{url}"']
    if asked:
        parts.append("query={" + ", ".join(f'"{each["name"]}": {each["name"]}' for each in asked) + "}")
    parts += ["body=body"] if body else []
    parts += ["headers={" + ", ".join(headers) + "}"] if headers else []
    signature = ", ".join(["self", *arguments, *(["*", *named] if named else [])])
    name = operation["operationId"].replace("-", "_")
    return (
        f"    def {name}({signature}) -> Answer:\n"
        f'        """{operation["summary"]}. {operation["description"]}"""\n'
        f"        return self.call({', '.join(parts)})\n\n"
    )


def _kind(document: dict[str, Any], schema: dict[str, Any]) -> str:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = [_kind(document, each) for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return " | ".join(dict.fromkeys(kinds)) or _KINDS.get(schema.get("type", "string"), "str")


if __name__ == "__main__":
    CLIENT.write_text(source())
