"""Network interfaces: real ones in a namespace of the test's own; `ip` is the witness."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Probe, Surroundings
from contract.errors import Rejected
from contract.messages import Drift
from tests.agent.probes.case import Case, probe_of, section_of
from tests.parts.namespace import Namespace

MAC = "02:00:00:00:00:07"
TOML = f"""\
[netdevs]
unknown = "down"
[[netdevs.allow]]
names = ["line*"]
mac = "{MAC}"
kind = "ifb"
driver = "ifb"
promiscuous = false
reason = "to the line"
"""


def _up(kernel: Namespace) -> dict[str, bool]:
    return {each["ifname"]: "UP" in each["flags"] for each in json.loads(kernel.ip("-j", "link"))}


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    kernel = Namespace("netdevs")
    blinded = threading.Event()
    host = Host()
    real = host.links.all

    def all_or_nothing() -> list:  # type: ignore[type-arg]
        if blinded.is_set():
            raise OSError(1, "the kernel says no")
        return real()

    host.links.all = all_or_nothing  # type: ignore[method-assign]
    try:
        kernel.ip("link", "add", "line0", "address", MAC, "type", "ifb")
        kernel.ip("link", "set", "line0", "up")

        def spoil() -> None:
            kernel.ip("link", "add", "tun7", "type", "ifb")
            kernel.ip("link", "set", "tun7", "up")

        yield Case(
            toml=TOML,
            around=Surroundings(host=host),
            spoil=spoil,
            blind=blinded.set,
            state=lambda: _up(kernel),
            trace=lambda: _up(kernel),
            heirs=('[netdevs]\nunknown = "down"\n', TOML.replace('"line*"', '"line*", "tun8"')),
            run=kernel.inside,
        )
    finally:
        kernel.remove()


@pytest.fixture
def kernel() -> Iterator[Namespace]:
    made = Namespace("netdevs")
    yield made
    made.remove()


def _probe(toml: str = TOML) -> Probe:  # type: ignore[type-arg]
    return probe_of("netdevs", toml, Surroundings(host=Host()))


def _look(kernel: Namespace, probe: Probe) -> dict[str, str]:  # type: ignore[type-arg]
    return {drift.key: drift.found for drift in kernel.inside(lambda: probe.observe(1.0))}


def _mend(kernel: Namespace, probe: Probe) -> None:  # type: ignore[type-arg]
    def work() -> list[Drift]:
        drifts = probe.observe(1.0)
        probe.repair(drifts, 1.0)
        return drifts

    kernel.inside(work)


@pytest.mark.parametrize("kind", ["ifb", "bridge", "veth"])
def test_d05_an_unknown_interface_is_set_down_and_again_when_it_comes_up(
    kernel: Namespace, kind: str
) -> None:
    kernel.ip("link", "add", "line0", "address", MAC, "type", "ifb")
    peer = ["peer", "name", "line7"] if kind == "veth" else []
    kernel.ip("link", "add", "evil", "type", kind, *peer)
    probe = _probe(TOML + '[[netdevs.allow]]\nnames = ["line*"]\nreason = "the other end"\n')
    kernel.ip("link", "set", "line0", "up")
    for _ in range(2):
        kernel.ip("link", "set", "evil", "up")
        assert list(_look(kernel, probe)) == ["evil"]
        _mend(kernel, probe)
        assert _up(kernel)["evil"] is False and _up(kernel)["line0"] is True
        assert _look(kernel, probe) == {}
    assert [each.kind for each in probe.notices(1.0)] == ["netdevs.down"]
    kernel.inside(probe.undo)
    assert _up(kernel)["evil"] is True


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["link", "set", "line0", "address", "02:00:00:00:00:08"], "line0"),
        (["link", "set", "line0", "promisc", "on"], "line0 promiscuous"),
    ],
)
def test_d05_a_changed_address_and_a_listening_interface_are_drifts(
    kernel: Namespace, argv: list[str], key: str
) -> None:
    kernel.ip("link", "add", "line0", "address", MAC, "type", "bridge")
    probe = _probe(TOML.replace('unknown = "down"', 'unknown = "report"').replace('"ifb"', '"bridge"'))
    assert _look(kernel, probe) == {}
    kernel.ip(*argv)
    assert list(_look(kernel, probe)) == [key]


def test_d05_a_known_name_of_another_kind_is_unknown(kernel: Namespace) -> None:
    kernel.ip("link", "add", "line0", "address", MAC, "type", "bridge")
    kernel.ip("link", "set", "line0", "up")
    assert "bridge" in _look(kernel, _probe())["line0"]


def test_a_required_interface_that_is_not_there_is_a_drift(kernel: Namespace) -> None:
    assert _look(kernel, _probe(TOML + "required = true\n")) == {"allow 0": "not there"}


def test_d05_an_interface_that_is_set_up_wakes_the_section(kernel: Namespace) -> None:
    kernel.ip("link", "add", "line0", "type", "ifb")
    seen: list[str] = []
    events = kernel.inside(lambda: Host().watch_devices({"net": ["netdevs"]}, seen.append))
    try:
        time.sleep(0.2)
        seen.clear()
        kernel.ip("link", "set", "line0", "up")
        deadline = time.monotonic() + 2
        while not seen and time.monotonic() < deadline:
            time.sleep(0.005)
        assert seen and set(seen) == {"netdevs"}
    finally:
        events.stop()


@pytest.mark.parametrize(
    "rule", ["", "names = []", 'names = ["a b"]', 'names = ["eth[0-9]"]', 'names = ["e"]\nmac = "02:00"']
)
def test_rules_that_could_mean_more_than_they_say_are_refused(rule: str) -> None:
    with pytest.raises(Rejected):
        section_of("netdevs", f'[netdevs]\n[[netdevs.allow]]\n{rule}\nreason = "why not"\n')
