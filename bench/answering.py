"""The server of `bench.datapath`: answers every request with so many bytes.

A request that begins with `b` is bulk: from there on the server only reads. One that begins with `i` costs a millisecond of
work first, about what the smallest model takes.

python -m bench.answering PORT ANSWER_BYTES
"""

from __future__ import annotations

import socket
import sys
import threading
import time

_REQUEST_BYTES = 512
_WORK_S = 0.001


def _work() -> None:
    ends = time.perf_counter() + _WORK_S
    while time.perf_counter() < ends:
        pass


def _serve(connection: socket.socket, answer: bytes) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                request = connection.recv(_REQUEST_BYTES, socket.MSG_WAITALL)
                if not request:
                    return
                if request.startswith(b"b"):
                    room = bytearray(1 << 18)
                    while connection.recv_into(room):
                        pass
                    return
                if request.startswith(b"i"):
                    _work()
                connection.sendall(answer)
        except OSError:  # the client has gone
            return


def main() -> None:
    """Serve until killed."""
    answer = bytes(int(sys.argv[2]))
    # Nobody reads: what datagrams cost on their way is measured, and no refusal is sent for them.
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("", int(sys.argv[1])))
    with sink, socket.create_server(("", int(sys.argv[1])), backlog=4096) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_serve, args=(connection, answer), daemon=True).start()


if __name__ == "__main__":
    main()
