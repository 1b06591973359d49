"""What of the lab holds without a guest: which rows are chosen, and what somebody outside calls open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.lab.__main__ import chosen
from tests.lab.checks import CHECKS
from tests.lab.outside import is_open


def test_every_row_has_its_place_and_a_smoke_run_changes_no_boot() -> None:
    every = chosen("", smoke=False)
    assert len(every) == len(CHECKS) and every[-1].what.startswith("Secure Boot off")
    quick = [each.what for each in chosen("", smoke=True)]
    assert not [what for what in quick if "command line is" in what or "initrd" in what or "off" in what]
    assert any("a reboot" in what for what in quick) and any("at rest" in what for what in quick)


def test_a_chosen_row_brings_those_that_it_stands_on() -> None:
    few = [each.what for each in chosen("USB stick", smoke=False)]
    assert len(few) == 3 and few[-1].startswith("a USB stick") and "installs" in few[1]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_open_is_who_answers_and_not_who_takes_a_connection(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert not is_open(port, 0.5)

    def answer() -> None:
        for said in (b"", b"shut\n", b"open\n"):
            connection, _ = listener.accept()
            connection.sendall(said)
            connection.close()

    answering = threading.Thread(target=answer)
    answering.start()
    opened = is_open(port, 10)
    answering.join()
    assert opened
