"""What HTTP receivers share: one session, a pinned or the system's trust, and which answers mean what."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import aiohttp
from msgspec import Meta

from contract.errors import Rejected
from controller.outlets import Settings, Unavailable, Unwanted

MAX_ANSWER_BYTES = 64 * 1024
_TRY_AGAIN = frozenset({401, 403, 404, 408, 425, 429})
"""A receiver that is being set up says these; nothing is thrown away for it."""


class HttpSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A receiver at an https URL."""

    url: Annotated[str, Meta(pattern=r"\Ahttps://[^\s@]+\Z", max_length=2048)]
    ca: str = ""
    """PEM file of the authority to trust; empty: the system's."""
    token_file: str = ""
    """File with a bearer token; empty: none."""


class HttpSender:
    """Posts bodies to one URL."""

    def __init__(self, settings: HttpSettings, directory: Path) -> None:
        """Reads authority and token. Raises OSError, Rejected `outlet.ca`."""
        self._settings = settings
        self._tls = trust(directory / settings.ca if settings.ca else None)
        self._headers: dict[str, str] = {}
        if settings.token_file:
            self._headers["Authorization"] = f"Bearer {read_secret(directory / settings.token_file)}"
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Post one body. Raises Unavailable, Unwanted."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        try:
            async with self._session.post(
                self._settings.url, data=body, headers=headers, ssl=self._tls, allow_redirects=False
            ) as reply:
                await reply.content.read(MAX_ANSWER_BYTES)
                status = reply.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}"[:300]) from None
        if 200 <= status < 300:
            return
        if 400 <= status < 500 and status not in _TRY_AGAIN:
            raise Unwanted(f"HTTP {status}")
        raise Unavailable(f"HTTP {status}")

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def trust(ca: Path | None) -> ssl.SSLContext:
    """Return a client's TLS context, 1.2 or newer. Raises OSError, Rejected `outlet.ca`."""
    try:
        context = ssl.create_default_context(cadata=None if ca is None else ca.read_text())
    except (ssl.SSLError, ValueError):
        raise Rejected("outlet.ca", f"{ca}: holds no PEM certificate") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def read_secret(path: Path) -> str:
    """Return a secret of one line. Raises OSError, Rejected `outlet.secret`."""
    if path.stat().st_mode & 0o077:
        raise Rejected("outlet.secret", f"{path}: others may read it; chmod 600 it")
    secret = path.read_text().strip()
    if not secret or not secret.isprintable():
        raise Rejected("outlet.secret", f"{path}: wanted one line")
    return secret
