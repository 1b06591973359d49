"""The admin API as a program uses it: one kept connection, JSON in and out."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TIMEOUT_S = 20.0


class ApiError(AssertionError):
    """The API answered with another status than wanted."""

    def __init__(self, what: str, status: int, body: str) -> None:
        super().__init__(f"{what}: {status} {body}")
        self.status = status


class AdminApi:
    """Requests to one controller; safe to use from several threads, one request at a time."""

    def __init__(
        self,
        address: str,
        port: int,
        ca: Path,
        token: str,
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        """`connect` opens the TCP connection where it must begin in another namespace."""
        self.token = token
        self._address, self._port = address, port
        self._context = ssl.create_default_context(cafile=str(ca))
        self._connect = connect or self._plain
        self._connection: http.client.HTTPSConnection | None = None
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str, body: object = None, *, status: int | None = None) -> Any:
        """Ask below /api/v1 and return the parsed answer; raises ApiError, OSError, HTTPException.

        `body` of bytes goes as it is, anything else as JSON. Without `status` anything below 300 is fine.
        """
        return self._json(method, "/api/v1" + path, body, status)

    def text(self, path: str) -> str:
        """Return what GET answers for a path outside the API, such as /metrics."""
        return self._answer("GET", path, None, None).decode()

    def close(self) -> None:
        """Close the kept connection."""
        with self._lock:
            self._drop()

    def _json(self, method: str, path: str, body: object, status: int | None) -> Any:
        answer = self._answer(method, path, body, status)
        return json.loads(answer) if answer else None

    def _answer(self, method: str, path: str, body: object, status: int | None) -> bytes:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        with self._lock:
            kept = self._connection is not None
            try:
                found, answer = self._ask(method, path, data, headers)
            except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLError):
                self._drop()
                if not kept:
                    raise
                # An idle connection was closed by the other side before it saw the request.
                found, answer = self._ask(method, path, data, headers)
            except BaseException:
                self._drop()
                raise
        if found != status and (status or found >= 300):
            raise ApiError(f"{method} {path}", found, answer.decode(errors="replace"))
        return answer

    def _ask(self, method: str, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._connection is None:
            connection = http.client.HTTPSConnection(self._address, self._port, timeout=_TIMEOUT_S)
            raw = self._connect()
            raw.settimeout(_TIMEOUT_S)
            # Head and body are two writes: without this the second waits 40 ms for a delayed acknowledgement.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock = self._context.wrap_socket(raw, server_hostname=self._address)
            self._connection = connection
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _plain(self) -> socket.socket:
        return socket.create_connection((self._address, self._port), _TIMEOUT_S)
