"""The admin command's side of the API: TLS with the pinned authority, a token, JSON; and errors with a cure.

Every act has an Idempotency-Key of its own, so that after a broken connection it is sent again and still done once. What is edited
whole is read with its tag first, and sent back with it.
"""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import click
import msgspec

from contract.errors import Rejected
from controller.api import PREFIX
from controller.cli.profile import Profile

TIMEOUT_S = 60.0
PAGE = 500
MAX_REPLY_BYTES = 64 * 1024 * 1024
PAUSES_S: Final = (0.2, 1.0, 3.0)
"""Before what broke off is sent again."""
PENDING: Final = "idempotency.pending"
OVER_BUDGET: Final = "limit.requests"
"""Nothing was done: a command that asks a great deal waits for its next minute."""
MAX_WAITS: Final = 100
MAX_WAIT_S: Final = 60
REHEARSED: Final = "ringfence-dry-run"
_DRY: Final = "ringfence.dry-run"
F = TypeVar("F", bound=Callable[..., object])

_CURES = {
    401: "log in again: ringfence login",
    403: "ask somebody who manages people for the right",
    412: "look at it again, then say again what you want",
    429: "wait a minute",
    503: "is the database up? ringfence-controller's log says more",
}


class Unreachable(Exception):
    """The controller could not be spoken to."""


class Refused(Exception):
    """The controller said no."""

    def __init__(self, status: int, code: str, detail: str, wait_s: int = 1) -> None:
        """`code` and `detail` as in the problem details; `wait_s` as Retry-After says."""
        cure = _CURES.get(status)
        text = f"{code}: {detail}" if detail else code
        super().__init__(f"{text} ({cure})" if cure else text)
        self.status = status
        self.code = code
        self.wait_s = wait_s


class Seen(NamedTuple):
    """What is edited whole, and the tag that says so."""

    value: dict[str, object]
    tag: str


class _Reply(NamedTuple):
    value: dict[str, object]
    headers: Mapping[str, str]
    """By name in lower case."""


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
        self._spoken = False
        """The controller was there once in this command."""
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
        return self._call("GET", path + ("?" + urlencode(wanted) if wanted else ""), None).value

    def whole(self, path: str) -> Seen:
        """GET what a PUT at the same path replaces. Raises Unreachable, Refused."""
        found = self._call("GET", path, None)
        return Seen(found.value, found.headers.get("etag", ""))

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

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        match: str = "",
        new: bool = False,
        rehearse: bool = False,
    ) -> dict[str, object]:
        """Send JSON, once whatever happens on the way; under `--dry-run`, or with `rehearse`, nothing comes of it. `match`: the tag
        of what was seen; `new`: there must be none. Raises Unreachable, Refused."""
        headers = {"If-Match": match} if match else {"If-None-Match": "*"} if new else {}
        return self._act(method, path, json.dumps(body or {}).encode(), headers, rehearse)

    def prove(self, path: str, body: object = None, *, method: str = "POST") -> dict[str, object]:
        """Send what proves who one is: it is tried once. Raises Unreachable, Refused."""
        return self._call(method, path, json.dumps(body or {}).encode()).value

    def upload(self, path: str, content: bytes) -> dict[str, object]:
        """POST bytes, as `send`. Raises Unreachable, Refused."""
        return self._act("POST", path, content, {"Content-Type": "application/octet-stream"}, False)

    def _act(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], rehearse: bool
    ) -> dict[str, object]:
        dry = _is_dry()
        if not (dry or rehearse):
            headers = {**headers, "Idempotency-Key": secrets.token_urlsafe(24)}
            return self._call(method, path, body, headers).value
        found = self._call(method, f"{path}?dry_run=true", body, headers)
        if found.headers.get(REHEARSED) != "true":
            raise Unreachable(f"{self._url} did not say that this was a dry run: look at what it has done")
        if dry:
            click.echo("dry run: it would be so; nothing was changed", err=True)
        return found.value

    def _call(
        self, method: str, path: str, body: bytes | None, more: Mapping[str, str] | None = None
    ) -> _Reply:
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        headers |= more or {}
        again = method == "GET" or "Idempotency-Key" in headers
        pauses, waits = list(PAUSES_S) if again else [], 0
        while True:
            try:
                return self._once(method, path, body, headers)
            except _Broken as broken:
                if not pauses:
                    raise Unreachable(
                        f"{self._url} broke off ({broken}), and it is not known whether it was done"
                        if method != "GET"
                        else f"{self._url} breaks off ({broken})"
                    ) from None
            except Refused as refused:
                if refused.code == OVER_BUDGET and waits < MAX_WAITS:
                    waits += 1
                    time.sleep(refused.wait_s)
                    continue
                if refused.code != PENDING or not pauses:
                    raise
            time.sleep(pauses.pop(0))

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> _Reply:
        fresh = self._connection.sock is None
        try:
            if fresh:
                self._connection.connect()
        except ssl.SSLCertVerificationError as error:
            self._connection.close()
            raise Unreachable(
                f"{self._url} shows a certificate that the pinned authority did not issue for this name "
                f"({error.verify_message}); use the controller's controller-ca.pem and a name it carries"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if self._spoken:  # it was there a moment ago, and may come back
                raise _Broken(str(error)) from None
            raise Unreachable(
                f"{self._url} does not answer ({error}); is it running, is the port open?"
            ) from None
        self._spoken = True
        try:
            self._connection.request(method, PREFIX + path, body=body, headers=dict(headers))
            reply = self._connection.getresponse()
            content = reply.read(MAX_REPLY_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise _Broken(str(error) or type(error).__name__) from None
        told = {name.lower(): value for name, value in reply.headers.items()}
        return _Reply(_result(reply.status, content, told.get("retry-after", "")), told)


class _Broken(Exception):
    """The connection broke off after something may have been sent."""


def dry_run_option(command: F) -> F:
    """Add `--dry-run`: whatever the command sends is rehearsed by the controller and changes nothing."""

    def note(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_DRY] = value

    return click.option(
        "--dry-run",
        is_flag=True,
        expose_value=False,
        callback=note,
        help="Let the controller check it, and say what would come of it; nothing is changed.",
    )(command)


def _is_dry() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_DRY))


def segment(name: str) -> str:
    """Return one path segment, whatever the text. Raises Rejected `name.invalid` for an empty one: never "all"."""
    if not name:
        raise Rejected("name.invalid", "an empty name names nothing")
    return quote(name, safe="")


def _result(status: int, content: bytes, retry_after: str) -> dict[str, object]:
    try:
        value = msgspec.json.decode(content) if content else {}
    except msgspec.DecodeError:
        value = {}
    if not isinstance(value, dict):
        value = {}
    if status >= 400:
        code, detail = str(value.get("code", f"http {status}")), str(value.get("detail", ""))
        wait_s = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else 1
        raise Refused(status, code, detail, min(wait_s, MAX_WAIT_S))
    return value


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
