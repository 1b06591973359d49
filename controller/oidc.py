"""An OpenID Connect issuer that vouches for people: where it is, its keys, and logging in by its word.

The command speaks with the issuer (authorisation code with PKCE); the controller fetches two public documents over TLS, with caps
and without following redirects, keeps them for an hour, and believes a token that `controller.idtoken` has verified and whose nonce
the controller has given out and nobody has used. An unknown key makes it look again, once a minute at most.
What groups may do is the configuration's, and is asked with every request.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from contract.errors import Rejected
from controller.config import OidcConfig
from controller.fleet import logins
from controller.idtoken import Jwk, KeyUnknown, Rule, Vouched, parse_keys, verified
from controller.logins import digest_of, new_session_token
from controller.people_records import LoggedIn, OidcOffer
from controller.permissions import Right
from controller.store import Store

PREFIX: Final = "oidc:"
"""Before the name, so that it is never a local user's."""
KEEP_S: Final = 3600.0
LOOK_AGAIN_S: Final = 60.0
REST_S: Final = 5.0
"""After a failure nobody is asked for so long."""
NONCE_S: Final = 600.0
TIMEOUT_S: Final = 10.0
MAX_DOCUMENT_BYTES: Final = 256 * 1024


class Discovery(Struct, frozen=True):
    """OpenID Connect Discovery 1.0, clause 3, as far as it is looked at."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class Oidc:
    """One issuer."""

    def __init__(self, store: Store, config: OidcConfig, directory: Path, *, session_s: float) -> None:
        """Reads the authority's file. Raises Rejected `oidc.ca`."""
        self._store = store
        self._config = config
        self._session_s = session_s
        self._rule = Rule(
            issuer=config.issuer,
            client_id=config.client_id,
            algorithms=config.algorithms,
            name_claim=config.name_claim,
            groups_claim=config.groups_claim,
        )
        self._authority, self._tls = _trust(directory / config.ca if config.ca else None)
        self._lock = asyncio.Lock()
        self._discovery: Discovery | None = None
        self._keys: list[Jwk] = []
        self._fetched_at = self._failed_at = -KEEP_S

    async def begin(self, *, now: float) -> OidcOffer:
        """Say where to go, with a nonce that is good once. Raises Rejected `oidc.unreachable`, `oidc.discovery`, `oidc.keys`,
        `login.busy`."""
        found, _ = await self._known(within_s=KEEP_S)
        nonce = secrets.token_urlsafe(32)
        await self._store.run(lambda tx: logins.ask(tx, digest_of(nonce), expires_at=now + NONCE_S, now=now))
        return OidcOffer(
            issuer=found.issuer,
            client_id=self._config.client_id,
            authorization_endpoint=found.authorization_endpoint,
            token_endpoint=found.token_endpoint,
            scope=self._config.scope,
            nonce=nonce,
            ca=self._authority,
        )

    async def log_in(self, untrusted_token: str, *, now: float) -> LoggedIn:
        """Begin a session on the issuer's word. Raises Rejected `oidc.*`, `login.no-rights`."""
        vouched = await self._vouched(untrusted_token, now)
        groups = [group for group in vouched.groups if group in {r.group for r in self._config.rights}]
        rights = self.rights_of(groups)
        name, token = PREFIX + vouched.name, new_session_token()
        await self._store.run(
            lambda tx: logins.let_in_vouched(
                tx,
                name,
                groups,
                digest_of(vouched.nonce),
                digest_of(token),
                rights=rights,
                expires_at=now + self._session_s,
                now=now,
            )
        )
        return LoggedIn(token=token, name=name, rights=rights, expires_at=now + self._session_s)

    def rights_of(self, groups: Sequence[str]) -> tuple[Right, ...]:
        """Return what the configuration gives to these groups, each right once."""
        given = [
            Right(role=right.role, sites=right.sites, labels=right.labels)
            for right in self._config.rights
            if right.group in groups
        ]
        return tuple(dict.fromkeys(given))

    async def _vouched(self, untrusted_token: str, now: float) -> Vouched:
        _, keys = await self._known(within_s=KEEP_S)
        try:
            return verified(untrusted_token, keys, self._rule, now=now)
        except KeyUnknown:
            _, keys = await self._known(within_s=LOOK_AGAIN_S)
        try:
            return verified(untrusted_token, keys, self._rule, now=now)
        except KeyUnknown:
            raise Rejected("oidc.key", "the issuer publishes no such key") from None

    async def _known(self, *, within_s: float) -> tuple[Discovery, list[Jwk]]:
        """Return what the issuer publishes, as it was not longer ago than that; fetched by one for all that wait."""
        async with self._lock:
            clock = asyncio.get_running_loop().time()
            if self._discovery is None or clock - self._fetched_at > within_s:
                if clock - self._failed_at < REST_S:
                    raise Rejected("oidc.unreachable", "the issuer did not answer a moment ago")
                try:
                    self._discovery, self._keys = await self._fetch()
                except Rejected:
                    self._failed_at = clock
                    raise
                self._fetched_at = clock
            return self._discovery, self._keys

    async def _fetch(self) -> tuple[Discovery, list[Jwk]]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as http:
            url = self._config.issuer.rstrip("/") + "/.well-known/openid-configuration"
            try:
                found = msgspec.json.decode(await self._get(http, url), type=Discovery)
            except msgspec.DecodeError as error:
                raise Rejected("oidc.discovery", f"{url}: {error}") from None
            if found.issuer != self._config.issuer:
                raise Rejected("oidc.discovery", f"{url} is of {found.issuer[:200]!r}")
            for endpoint in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
                if not _is_https(endpoint):
                    raise Rejected("oidc.discovery", f"{url}: {endpoint[:200]!r}: wanted https")
            return found, parse_keys(await self._get(http, found.jwks_uri))

    async def _get(self, http: aiohttp.ClientSession, url: str) -> bytes:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        content = bytearray()
        try:
            async with http.get(url, ssl=self._tls, headers=headers, allow_redirects=False) as reply:
                if reply.status != 200:
                    raise Rejected("oidc.unreachable", f"{url}: HTTP {reply.status}")
                async for part in reply.content.iter_any():
                    content += part
                    if len(content) > MAX_DOCUMENT_BYTES:
                        raise Rejected("oidc.unreachable", f"{url}: more than {MAX_DOCUMENT_BYTES} bytes")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Rejected("oidc.unreachable", f"{url}: {type(error).__name__}") from None
        return bytes(content)


def _trust(ca: Path | None) -> tuple[str, ssl.SSLContext]:
    """Return the authority's PEM (empty: the system's) and a context that trusts it alone."""
    try:
        pem = "" if ca is None else ca.read_text()
        context = ssl.create_default_context(cadata=pem or None)
    except (OSError, UnicodeDecodeError, ssl.SSLError, ValueError) as error:
        raise Rejected("oidc.ca", f"{ca}: no readable PEM certificate ({type(error).__name__})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return pem, context


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and not parts.username
    except ValueError:
        return False
