"""A real OpenID Connect issuer over real TLS: discovery, keys, authorisation code with PKCE, ID tokens signed with real keys."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import jwt
import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from controller.authority import Authority

CLIENT = "ringfence"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def jwk_of(key: Private, kid: str, **members: str) -> dict[str, object]:
    """The public half as issuers publish it."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        members_ = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        members_ = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        members_ = OKPAlgorithm.to_jwk(public, as_dict=True)
    return {**members_, "kid": kid, "use": "sig", **members}


class Issuer:
    """One issuer. What it publishes and says may be changed at any time."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: dict[str, Private] = {
            "rsa-1": rsa.generate_private_key(65537, 2048),
            "ec-1": ec.generate_private_key(ec.SECP256R1()),
            "ed-1": ed25519.Ed25519PrivateKey.generate(),
        }
        self.published: list[dict[str, object]] = [jwk_of(key, kid) for kid, key in self.keys.items()]
        self.discovery: dict[str, object] = {}
        """What differs from the truth."""
        self.answers: dict[str, web.Response] = {}
        """By path: given instead."""
        self.asked: list[str] = []
        """Paths that were fetched."""
        self.person: dict[str, object] = {"sub": "248289761001", "groups": ["operators-factory"]}
        """Who is logged in, for whoever comes."""
        self._codes: dict[str, dict[str, str]] = {}

    def claims(self, nonce_: str, **changes: object) -> dict[str, object]:
        """Claims as they should be; None takes one out."""
        now = time.time()
        claims = {
            "iss": self.url,
            "aud": CLIENT,
            "exp": int(now) + 300,
            "iat": int(now),
            "nonce": nonce_,
            **self.person,
            **changes,
        }
        return {key: value for key, value in claims.items() if value is not None}

    def token(self, claims: object, *, kid: str = "rsa-1", algorithm: str = "RS256", **header: object) -> str:
        """Sign claims as they are."""
        content = claims if isinstance(claims, bytes) else msgspec.json.encode(claims)
        return jwt.PyJWS().encode(
            content, self.keys[kid], algorithm=algorithm, headers={"kid": kid, **header}
        )

    def app(self) -> web.Application:
        """The endpoints."""
        app = web.Application(middlewares=[self._changed])
        app.router.add_get("/realm/.well-known/openid-configuration", self._discover)
        app.router.add_get("/realm/keys", self._keys)
        app.router.add_get("/realm/authorize", self._authorize)
        app.router.add_post("/realm/token", self._token)
        return app

    @web.middleware
    async def _changed(self, request: web.Request, handler: object) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path in self.answers:
            return self._again(self.answers[request.path])
        return await handler(request)  # type: ignore[operator,no-any-return]

    def _again(self, answer: web.Response) -> web.Response:
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async def _discover(self, request: web.Request) -> web.Response:
        told = {
            "issuer": self.url,
            "authorization_endpoint": self.url + "/authorize",
            "token_endpoint": self.url + "/token",
            "jwks_uri": self.url + "/keys",
            "response_types_supported": ["code"],
            **self.discovery,
        }
        return web.json_response(told)

    async def _keys(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": self.published})

    async def _authorize(self, request: web.Request) -> web.Response:
        """Whoever comes is logged in as `person` already."""
        asked = dict(request.query)
        good = asked["response_type"] == "code" and asked["client_id"] == CLIENT
        assert good and asked["code_challenge_method"] == "S256" and "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        back = asked["redirect_uri"] + "?" + urlencode({"code": code, "state": asked["state"]})
        raise web.HTTPFound(back)

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self._codes.pop(str(form["code"]), None)
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        proved = (
            asked is not None
            and asked["code_challenge"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        )
        if asked is None or not proved or asked["redirect_uri"] != form["redirect_uri"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response(
            {"access_token": "x", "token_type": "Bearer", "id_token": self.token(self.claims(asked["nonce"]))}
        )


@contextlib.asynccontextmanager
async def running_issuer(folder: Path) -> AsyncIterator[Issuer]:
    """Run one on a free port of loopback; `folder/issuer-ca.pem` is its authority."""
    issuer = Issuer()
    authority = Authority.new("issuer authority", time.time(), 86400.0)
    certificate, key = authority.issue_server(["localhost"], time.time())
    (folder / "issuer-ca.pem").write_bytes(authority.pem)
    (folder / "issuer.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "issuer.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "issuer.pem", folder / "issuer.key")
    runner = web.AppRunner(issuer.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    issuer.url = f"https://localhost:{port}/realm"
    try:
        yield issuer
    finally:
        await runner.cleanup()
