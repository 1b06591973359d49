"""Kernel settings: in a tree of files for the faults, in a network namespace for the truth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Surroundings
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.namespace import Namespace

TOML = """\
[sysctl]
[[sysctl.set]]
key = "net.ipv4.ip_forward"
value = "0"
reason = "no router"
[[sysctl.set]]
key = "net/ipv4/conf/eth0.1/rp_filter"
value = "1"
reason = "no spoofed senders"
[[sysctl.set]]
key = "net.ipv4.tcp_rmem"
value = "4096 131072 33554432"
reason = "three numbers"
"""


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    net = folder / "sys/net/ipv4"
    (net / "conf/eth0.1").mkdir(parents=True)
    (net / "ip_forward").write_text("0\n")
    (net / "conf/eth0.1/rp_filter").write_text("1\n")
    (net / "tcp_rmem").write_text("4096\t131072\t33554432\n")

    def spoil() -> None:
        (net / "ip_forward").write_text("1\n")
        (net / "conf/eth0.1/rp_filter").write_text("0\n")

    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(proc_root=folder)),
        spoil=spoil,
        blind=(net / "ip_forward").unlink,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        heirs=(
            TOML.replace('"net/ipv4/conf/eth0.1/rp_filter"', '"net.ipv4.conf.*.rp_filter"'),
            TOML.replace('value = "1"', 'value = "2"'),
        ),
    )


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a",
        "net..x",
        "../etc/passwd",
        "net/../x",
        "net.ipv4.x y",
        "/etc/x",
        "a/./b",
        "net.\n",
        "*.x",
        "net.a*.x",
    ],
)
def test_a_key_that_is_no_setting_is_refused(key: str) -> None:
    escaped = key.replace("\n", "\\n")
    with pytest.raises(Rejected, match=r"case.toml:8: sysctl.set\[0\]"):
        section_of("sysctl", f'[sysctl]\n\n[[sysctl.set]]\nkey = "{escaped}"\nvalue = "1"\nreason = "why"\n')


def test_the_same_setting_twice_is_refused() -> None:
    twice = '[[sysctl.set]]\nkey = "net.ipv4.ip_forward"\nvalue = "{}"\nreason = "why"\n'
    slashes = twice.format("1").replace("net.ipv4.ip_forward", "net/ipv4/ip_forward")
    with pytest.raises(Rejected, match="expected each setting once"):
        section_of("sysctl", "[sysctl]\n" + twice.format("0") + slashes)


def test_a_value_that_the_kernel_does_not_take_stays_a_drift() -> None:
    toml = (
        '[sysctl]\n[[sysctl.set]]\nkey = "net.ipv4.conf.lo.rp_filter"\nvalue = "many"\nreason = "a mistake"\n'
    )
    with_kernel = Namespace("sysctl-bad")
    try:
        probe = probe_of("sysctl", toml, Surroundings(host=Host()))
        drifts = with_kernel.inside(lambda: probe.observe(1.0))
        with_kernel.inside(lambda: probe.repair(drifts, 1.0))
        assert [drift.found for drift in with_kernel.inside(lambda: probe.observe(2.0))] == ["0"]
    finally:
        with_kernel.remove()


def test_the_kernel_itself_takes_and_gives_back_the_value() -> None:
    toml = (
        '[sysctl]\n[[sysctl.set]]\nkey = "net.ipv6.conf.all.forwarding"\nvalue = "0"\nreason = "no router"\n'
    )
    kernel = Namespace("sysctl")
    try:
        kernel.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        probe = probe_of("sysctl", toml, Surroundings(host=Host()))
        drifts = kernel.inside(lambda: probe.observe(1.0))
        assert [(drift.key, drift.wanted, drift.found) for drift in drifts] == [
            ("net.ipv6.conf.all.forwarding", "0", "1")
        ]
        kernel.inside(lambda: probe.repair(drifts, 1.0))
        assert kernel.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").stdout == "0\n"
        assert kernel.inside(lambda: probe.observe(2.0)) == []
        kernel.inside(probe.undo)
        assert kernel.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").stdout == "1\n"
    finally:
        kernel.remove()


WILD = (
    '[sysctl]\n[[sysctl.set]]\nkey = "net.ipv4.conf.*.rp_filter"\nvalue = "1"\nreason = "no spoofed senders"\n'
    '[[sysctl.set]]\nkey = "net.ipv4.conf.lo.rp_filter"\nvalue = "0"\nreason = "the node itself"\n'
)


def test_an_interface_that_appears_later_is_held_and_a_named_one_goes_first() -> None:
    kernel = Namespace("sysctl-wild")
    try:
        probe = probe_of("sysctl", WILD, Surroundings(host=Host()))

        def shown(name: str) -> str:
            return kernel.run("sysctl", "-n", f"net/ipv4/conf/{name}/rp_filter").stdout.strip()

        def mend() -> list[str]:
            drifts = kernel.inside(lambda: probe.observe(1.0))
            kernel.inside(lambda: probe.repair(drifts, 1.0))
            assert kernel.inside(lambda: probe.observe(2.0)) == []
            return [drift.key for drift in drifts]

        kernel.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        kernel.run("sysctl", "-qw", "net.ipv4.conf.lo.rp_filter=0")
        mend()
        assert (shown("all"), shown("default"), shown("lo")) == ("1", "1", "0")
        kernel.run("ip", "link", "add", "late0.7", "type", "veth", "peer", "name", "far0")
        kernel.run("sysctl", "-qw", "net/ipv4/conf/late0.7/rp_filter=2")
        assert "net/ipv4/conf/late0.7/rp_filter" in mend()
        assert shown("late0.7") == "1"
        kernel.run("ip", "link", "del", "late0.7")
        assert kernel.inside(lambda: probe.observe(3.0)) == []
        kernel.inside(probe.undo)
        assert shown("all") == "0"
    finally:
        kernel.remove()


def test_an_interface_with_a_name_that_is_no_key_is_told_and_stops_nothing() -> None:
    kernel = Namespace("sysctl-odd")
    try:
        probe = probe_of("sysctl", WILD, Surroundings(host=Host()))
        kernel.run("ip", "link", "add", "e$x", "type", "veth", "peer", "name", "far0")
        drifts = kernel.inside(lambda: probe.observe(1.0))
        assert [drift.key for drift in drifts if drift.found == "?"] == ["net.ipv4.conf.e$x.rp_filter"]
        kernel.inside(lambda: probe.repair(drifts, 1.0))
        assert [drift.found for drift in kernel.inside(lambda: probe.observe(2.0))] == ["?"]
    finally:
        kernel.remove()


def test_a_star_in_a_folder_that_is_not_there_is_a_failed_look(tmp_path: Path) -> None:
    toml = '[sysctl]\n[[sysctl.set]]\nkey = "net.ipv9.conf.*.rp_filter"\nvalue = "1"\nreason = "a mistake"\n'
    (drift,) = probe_of("sysctl", toml, Surroundings(host=Host())).observe(1.0)
    assert drift.found == "?"
