"""A name server (RFC 1035, UDP) whose answers a test changes while it runs.

`python -m tests.parts.nameserver ADDRESS FILE`: FILE is JSON, name to list of addresses, to "silent" or to "refused"; it is
read for each question. What is not in it does not exist. Questions are appended to FILE.asked, one name a line.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys
from pathlib import Path

_HEADER = struct.Struct("!6H")
_TYPES = {1: 4, 28: 6}
_ANSWER, _NO_SUCH_NAME, _REFUSED = 0x8580, 0x8583, 0x8585


class Zonefile:
    """What the server says, as a test writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.say()

    def say(self, **answers: list[str] | str) -> None:
        """Answer so from now on; "_" in a name stands for "."."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({name.replace("_", "."): each for name, each in answers.items()}))
        fresh.replace(self.path)

    def asked(self) -> set[str]:
        """Return every name that was asked for."""
        path = self.path.with_suffix(".asked")
        return set(path.read_text().split()) if path.exists() else set()


def answered(question: bytes, answers: dict[str, list[str] | str]) -> tuple[str, bytes]:
    """Return the name that was asked for and the answer; b"" for silence."""
    number = question[:2]
    at, labels = _HEADER.size, []
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    name = ".".join(labels).lower()
    asked = question[_HEADER.size : at + 5]
    (kind,) = struct.unpack_from("!H", question, at + 1)
    wanted = answers.get(name)
    if wanted == "silent":
        return name, b""
    found = [ipaddress.ip_address(each) for each in wanted] if isinstance(wanted, list) else []
    records = [each.packed for each in found if each.version == _TYPES.get(kind)]
    flags = _REFUSED if wanted == "refused" else _NO_SUCH_NAME if wanted is None else _ANSWER
    body = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(each)) + each for each in records)
    return name, number + _HEADER.pack(0, flags, 1, len(records), 0, 0)[2:] + asked + body


def main() -> None:
    """Serve for ever."""
    address, path = sys.argv[1], Path(sys.argv[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as serving:
        serving.bind((address, 53))
        while True:
            question, sender = serving.recvfrom(2048)
            name, answer = answered(question, json.loads(path.read_text()))
            with path.with_suffix(".asked").open("a") as asked:
                asked.write(f"{name}\n")
            if answer:
                serving.sendto(answer, sender)


if __name__ == "__main__":
    main()
