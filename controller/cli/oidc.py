"""Logging in with an issuer: authorisation code with PKCE, by the person's own browser and a loopback address (RFC 8252).

The issuer gets no secret of the controller's, and the controller no password. Refused: an answer with another `state` than was
sent (RFC 6749, clause 10.12), an endpoint without TLS, an answer larger than wanted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import http.server
import json
import secrets
import ssl
import time
import webbrowser
from collections.abc import Mapping
from urllib.parse import parse_qs, urlencode, urlsplit

import click

from contract.errors import Rejected
from controller.cli.client import Client, Unreachable
from controller.cli.show import harmless

WAIT_S = 300.0
TIMEOUT_S = 30.0
MAX_REPLY_BYTES = 256 * 1024
_CALLBACK = "/callback"


def vouched(client: Client, *, browser: bool) -> dict[str, object]:
    """Return the session that the controller begins on the issuer's word. Raises Rejected `login.issuer`, Unreachable, Refused."""
    offer = client.prove("/login/oidc/begin")
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(64)
    with _Answer(("127.0.0.1", 0), _Page) as answer:
        redirect = f"http://127.0.0.1:{answer.server_port}{_CALLBACK}"
        asked = {
            "response_type": "code",
            "client_id": offer["client_id"],
            "redirect_uri": redirect,
            "scope": offer["scope"],
            "state": state,
            "nonce": offer["nonce"],
            "code_challenge": _s256(verifier),
            "code_challenge_method": "S256",
        }
        endpoint = str(offer["authorization_endpoint"])
        where = endpoint + ("&" if urlsplit(endpoint).query else "?") + urlencode(asked)
        click.echo(f"log in here, on this machine: {harmless(where)}", err=True)
        if browser:
            webbrowser.open(where)
        code = answer.wait(state)
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect,
        "client_id": offer["client_id"],
        "code_verifier": verifier,
    }
    token = _exchange(str(offer["token_endpoint"]), str(offer["ca"]), form)
    return client.prove("/login/oidc", {"id_token": token})


def _s256(verifier: str) -> str:
    """RFC 7636, clause 4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


class _Answer(http.server.HTTPServer):
    """Waits for the browser to come back, on a loopback address and a port of its own."""

    came: Mapping[str, list[str]] | None = None

    def wait(self, state: str) -> str:
        """Return the code. Raises Rejected `login.issuer`."""
        end = time.monotonic() + WAIT_S
        while self.came is None:
            self.timeout = max(0.0, end - time.monotonic())
            self.handle_request()
            if time.monotonic() >= end:
                raise Rejected("login.issuer", f"nobody came back within {WAIT_S:g} s")
        given = {key: values[0] for key, values in self.came.items()}
        if not hmac.compare_digest(given.get("state", ""), state):
            raise Rejected("login.issuer", "the answer is to another question than was asked")
        if "code" not in given:
            said = given.get("error_description") or given.get("error") or "no code"
            raise Rejected("login.issuer", f"the issuer said: {harmless(said[:300])}")
        return given["code"]


class _Page(http.server.BaseHTTPRequestHandler):
    """The page that the browser ends on."""

    server: _Answer
    timeout = 10

    def do_GET(self) -> None:
        """Keep what came to the callback; anything else (a browser asks for an icon) is not there."""
        parts = urlsplit(self.path)
        here = parts.path == _CALLBACK
        if here:
            self.server.came = parse_qs(parts.query)
        text = b"You may close this page." if here else b""
        self.send_response(200 if here else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the request holds the code."""


def _exchange(endpoint: str, ca: str, form: Mapping[str, object]) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme != "https" or not parts.hostname:
        raise Rejected("login.issuer", f"{harmless(endpoint[:200])}: wanted https")
    context = ssl.create_default_context(cadata=ca or None)
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port or 443, timeout=TIMEOUT_S, context=context
    )
    path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    try:
        connection.request("POST", path, body=urlencode(form).encode(), headers=headers)
        reply = connection.getresponse()
        content = reply.read(MAX_REPLY_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{harmless(endpoint[:200])} does not answer ({type(error).__name__})") from None
    finally:
        connection.close()
    try:
        value = json.loads(content)
    except ValueError:
        value = {}
    token = value.get("id_token") if isinstance(value, dict) else None
    if reply.status != 200 or not isinstance(token, str):
        said = value.get("error") if isinstance(value, dict) else None
        raise Rejected(
            "login.issuer", f"the issuer gave no ID token: HTTP {reply.status} {harmless(str(said)[:100])}"
        )
    return token
