"""What of the lab holds without a guest: which rows are chosen, and what somebody outside calls open."""

from __future__ import annotations

import contextlib
import socket
import threading
from itertools import chain, repeat

from tests.lab.__main__ import chosen, courses
from tests.lab.checks import CHECKS
from tests.lab.outside import answers, is_open


def test_every_row_has_its_place_and_a_smoke_run_is_short() -> None:
    every = chosen("", smoke=False)
    assert len(every) == len(CHECKS) and {*every} == {*CHECKS}
    quick = [each.what for each in chosen("", smoke=True)]
    assert not [what for what in quick if "command line is" in what or "initrd" in what or "off" in what]
    assert any("a reboot" in what for what in quick) and any(
        "before any service listens" in what for what in quick
    )
    assert not [what for what in quick if "at rest" in what or "remove" in what]


def test_a_chosen_row_brings_those_that_it_stands_on() -> None:
    few = [each.what for each in chosen("USB stick", smoke=False)]
    assert len(few) == 3 and few[-1].startswith("a USB stick") and "installs" in few[1]


def test_each_row_is_one_guests_and_all_go_through_what_they_stand_on() -> None:
    every = chosen("", smoke=False)
    base = {each for each in every if each.always}
    tampered, resting, rebooted = courses(every, smoke=False)
    for course in (tampered, resting, rebooted):
        assert {*course} >= base and course == [each for each in every if each in course]
    own = [each for course in (tampered, resting, rebooted) for each in course if each not in base]
    assert len(own) == len({*own}) == len(every) - len(base)
    assert tampered[-1].what.startswith("Secure Boot off") and "at rest" in resting[2].what
    before = [each.what for each in tampered].index(
        next(each.what for each in every if "installs" in each.what)
    )
    assert any("without Ringfence" in each.what for each in tampered[:before])


def test_a_few_rows_take_no_more_guests_than_they_need() -> None:
    few = courses(chosen("at rest|Secure Boot off", smoke=False), smoke=False)
    assert [course[-1].what.split()[0] for course in few] == ["Secure", "the"]
    assert len(few[0]) == len(few[1]) == 3
    assert len(courses(chosen("USB", smoke=False), smoke=False)) == 1
    assert [len(course) for course in courses(chosen("no row says this", smoke=False), smoke=False)] == [2]
    quick = chosen("", smoke=True)
    assert courses(quick, smoke=True) == [quick]


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_who_only_takes_connections_is_not_open() -> None:
    with listening() as listener:
        assert not is_open(listener.getsockname()[1], 0.5) and not answers(listener.getsockname()[1], 0.5)


def test_who_answers_as_an_open_one_is_open() -> None:
    said = chain((b"", b"shut\n"), repeat(b"open\n"))

    def answer() -> None:
        with contextlib.suppress(TimeoutError):  # nobody comes any more
            while True:
                connection, _ = listener.accept()
                connection.sendall(next(said))
                connection.close()

    with listening() as listener:
        listener.settimeout(2)
        answering = threading.Thread(target=answer)
        answering.start()
        port = listener.getsockname()[1]
        opened, answered = is_open(port, 10), answers(port, 10)
        answering.join()
    assert opened and answered
