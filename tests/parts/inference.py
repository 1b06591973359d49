"""A small inference service and its client: what the fence must never disturb.

`python -m tests.parts.inference --port 8080` serves on all addresses, IPv4 and IPv6:
GET /v1/infer answers one JSON document; GET /v1/stream sends a line every 20 ms for as long as the reader reads.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import select
import socket
import time

from tests.parts.namespace import Namespace

PORT = 8080
_STREAM_GAP_S = 0.02


class _Service(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/stream":
            self._stream()
        elif self.path == "/v1/infer":
            scores = [round(1 / (k + 1), 3) for k in range(8)]
            self._answer(200, json.dumps({"model": "vision-7", "scores": scores}).encode())
        else:
            self._answer(404, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        count = 0
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"%d\n" % count)
                count += 1
                time.sleep(_STREAM_GAP_S)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a request is not news."""


def connect(
    namespace: Namespace, address: str, port: int, *, kind: int = socket.SOCK_STREAM, timeout_s: float = 1.0
) -> socket.socket:
    """Return a connected socket in the namespace; raises OSError (TimeoutError when packets die silently)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = namespace.socket(family, kind)
    made.settimeout(timeout_s)
    try:
        made.connect((address, port))
    except BaseException:
        made.close()
        raise
    return made


def infer(namespace: Namespace, address: str, *, port: int = PORT, timeout_s: float = 1.0) -> bool:
    """Ask once; True when the whole answer came."""
    try:
        with connect(namespace, address, port, timeout_s=timeout_s) as made:
            made.sendall(b"GET /v1/infer HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := made.recv(4096):
                answer += part
    except OSError:
        return False
    return answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"]}")


class Stream:
    """An open TCP stream from a client to the service, kept to see when it dies."""

    def __init__(self, namespace: Namespace, address: str, *, port: int = PORT) -> None:
        """Open it and wait for the first line; raises OSError when that does not come in a second."""
        self._socket = connect(namespace, address, port)
        self._socket.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: node\r\n\r\n")
        if not self._socket.recv(4096):
            raise ConnectionError("closed at once")

    def alive(self, within_s: float = 0.3) -> bool:
        """Say whether anything new arrives within the time. What is already buffered does not count."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(65536):
                pass
            return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        readable, _, _ = select.select([self._socket], [], [], within_s)
        if not readable:
            return False
        try:
            return bool(self._socket.recv(65536))
        except OSError:
            return False

    def close(self) -> None:
        """Close our end."""
        self._socket.close()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=PORT)
    _Service(("::", parser.parse_args().port), _Request).serve_forever()


if __name__ == "__main__":
    main()
