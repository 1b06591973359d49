"""The admin command's side of the API: TLS with the pinned authority, a token, JSON; and errors with a cure."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from contract.errors import Rejected
from controller.api import PREFIX
from controller.cli.profile import Profile

TIMEOUT_S = 60.0
PAGE = 500
MAX_REPLY_BYTES = 64 * 1024 * 1024

_CURES = {
    401: "log in again: ringfence login",
    403: "ask somebody who manages people for the right",
    429: "wait a minute",
    503: "is the database up? ringfence-controller's log says more",
}


class Unreachable(Exception):
    """The controller could not be spoken to."""


class Refused(Exception):
    """The controller said no."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        """`code` and `detail` as in the problem details."""
        cure = _CURES.get(status)
        text = f"{code}: {detail}" if detail else code
        super().__init__(f"{text} ({cure})" if cure else text)
        self.status = status
        self.code = code


class Client:
    """One connection to one controller."""

    def __init__(self, profile: Profile) -> None:
        """Raises Rejected `login.url`, `login.ca`."""
        parts = urlsplit(profile.url)
        if parts.scheme != "https" or not parts.hostname:
            raise Rejected("login.url", f"{profile.url!r}: wanted https://host:port")
        try:
            context = ssl.create_default_context(cadata=profile.ca)
        except (ssl.SSLError, ValueError):
            raise Rejected("login.ca", "the authority's file holds no PEM certificate") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._url = profile.url
        self._token = profile.token
        self._connection = http.client.HTTPSConnection(
            parts.hostname, parts.port or 443, timeout=TIMEOUT_S, context=context
        )

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str, query: Mapping[str, object] | None = None) -> dict[str, object]:
        """GET a resource. Raises Unreachable, Refused."""
        wanted = {name: _text(value) for name, value in (query or {}).items() if value is not None}
        return self._call("GET", path + ("?" + urlencode(wanted) if wanted else ""), None, "")

    def pages(self, path: str, query: Mapping[str, object] | None = None) -> Iterator[dict[str, object]]:
        """GET every item of a list, page by page."""
        cursor: object = None
        while True:
            page = self.get(path, {**(query or {}), "limit": PAGE, "cursor": cursor})
            items = page["items"]
            if isinstance(items, list):
                yield from items
            cursor = page["next"]
            if cursor is None:
                return

    def send(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Send JSON. Raises Unreachable, Refused."""
        return self._call(method, path, json.dumps(body or {}).encode(), "application/json")

    def upload(self, path: str, content: bytes) -> dict[str, object]:
        """POST bytes. Raises Unreachable, Refused."""
        return self._call("POST", path, content, "application/octet-stream")

    def _call(self, method: str, path: str, body: bytes | None, content_type: str) -> dict[str, object]:
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if content_type:
            headers["Content-Type"] = content_type
        try:
            self._connection.request(method, PREFIX + path, body=body, headers=headers)
            reply = self._connection.getresponse()
            content = reply.read(MAX_REPLY_BYTES)
        except ssl.SSLCertVerificationError as error:
            self._connection.close()
            raise Unreachable(
                f"{self._url} shows a certificate that the pinned authority did not issue for this name "
                f"({error.verify_message}); use the controller's controller-ca.pem and a name it carries"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unreachable(
                f"{self._url} does not answer ({error}); is it running, is the port open?"
            ) from None
        return _result(reply.status, content)


def segment(name: str) -> str:
    """Return one path segment, whatever the text. Raises Rejected `name.invalid` for an empty one: never "all"."""
    if not name:
        raise Rejected("name.invalid", "an empty name names nothing")
    return quote(name, safe="")


def _result(status: int, content: bytes) -> dict[str, object]:
    try:
        value = msgspec.json.decode(content) if content else {}
    except msgspec.DecodeError:
        value = {}
    if not isinstance(value, dict):
        value = {}
    if status >= 400:
        code, detail = str(value.get("code", f"http {status}")), str(value.get("detail", ""))
        raise Refused(status, code, detail)
    return value


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
