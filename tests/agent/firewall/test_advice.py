"""What `check` refuses and what it warns of, before anybody signs: with file, line and key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.probes import parse_sections, warnings
from contract.baseline import parse_baseline
from contract.errors import Rejected
from tests.agent.probes.case import HEAD

TREE = Path(__file__).resolve().parents[3]
ZONES = """\
[firewall]
controller = { interface = "uplink0" }
[firewall.zones.enclave]
interfaces = ["enclave0"]
addresses = ["10.10.1.0/24"]
[firewall.zones.uplink]
interfaces = ["uplink0"]
addresses = ["10.20.0.0/16"]
[firewall.zones.queue]
interfaces = ["uplink0"]
names = ["queue.plant.example"]
[firewall.zones.press]
interfaces = ["enclave0"]
macs = ["02:00:00:00:00:01"]
"""
CALM = """\
[[firewall.outbound]]
zone = "uplink"
protocol = "udp"
ports = [53, 123]
reason = "names and time"
"""


def rule(kind: str, zone: str, ports: str = "[8080]", more: str = "", protocol: str = "tcp") -> str:
    listed = f"ports = {ports}\n" if ports else ""
    return f'[[firewall.{kind}]]\nzone = "{zone}"\nprotocol = "{protocol}"\n{listed}reason = "x"\n{more}'


def passing(source: str, destination: str) -> str:
    return f'[[firewall.forward]]\nfrom = "{source}"\nto = "{destination}"\nprotocol = "tcp"\nports = [1]\nreason = "x"\n'


def refused(text: str) -> str:
    with pytest.raises(Rejected) as caught:
        parse_sections(parse_baseline((HEAD + text).encode(), file="case.toml"))
    assert caught.value.code in {"baseline.key", "baseline.too-large"}
    return caught.value.detail or ""


def warned(text: str, interfaces: set[str] | None = None) -> list[str]:
    baseline = parse_baseline((HEAD + text).encode(), file="case.toml")
    return [f"{each.key}: {each.text}" for each in warnings(baseline, parse_sections(baseline), interfaces)]


LIMIT = "connections = 5\n"
TWO = {
    "limit and none": (rule("inbound", "enclave", more=LIMIT) + rule("inbound", "enclave"), "inbound[1]"),
    "two limits": (
        rule("inbound", "enclave", more=LIMIT) + rule("inbound", "enclave", more="connections = 6\n"),
        "inbound[1]",
    ),
    "a port within a range": (
        rule("inbound", "enclave", '["8000-8090"]') + rule("inbound", "enclave", "[1, 8080]", LIMIT),
        "inbound[1]",
    ),
    "in maintenance": (
        rule("inbound", "enclave", more=LIMIT) + rule("maintenance.inbound", "enclave"),
        "maintenance.inbound[0]",
    ),
    "limit under everything": (
        rule("inbound", "enclave", more=LIMIT) + rule("inbound", "enclave", "", protocol="any"),
        "inbound[0]",
    ),
    "two pings": (
        rule("inbound", "enclave", "", protocol="icmp")
        + rule("inbound", "enclave", "", 'rate = "1/second"\n', "icmp"),
        "inbound[1]",
    ),
    "one user and everybody": (
        rule("outbound", "uplink", more='user = "a"\n') + rule("outbound", "uplink"),
        "outbound[1]",
    ),
    "one unit and everything": (
        rule("outbound", "uplink", "", protocol="any")
        + rule("outbound", "uplink", more='unit = "a.service"\n'),
        "outbound[1]",
    ),
    "names inwards": (rule("inbound", "queue"), "inbound[0].zone"),
    "from names": (passing("queue", "uplink"), "forward[0].from"),
    "macs outwards": (rule("outbound", "press"), "outbound[0].zone"),
    "to macs": (passing("enclave", "press"), "forward[0].to"),
    "names in isolation": (rule("isolated.outbound", "queue"), "isolated.outbound[0].zone"),
    "our own table": (
        '[[firewall.known]]\nfamily = "inet"\ntable = "ringfence"\nreason = "x"\n',
        "known[0].table",
    ),
}


@pytest.mark.parametrize("case", TWO)
def test_f10_rules_that_contradict_each_other_are_refused_with_line_and_key(case: str) -> None:
    text, where = TWO[case]
    detail = refused(ZONES + text)
    assert re.match(rf"case\.toml:\d+: firewall\.{re.escape(where)}: expected", detail), detail
    line = int(detail.split(":")[1])
    assert (
        (HEAD + ZONES + text)
        .splitlines()[line - 1]
        .startswith((f"[[firewall.{where.split('[')[0]}", where.rpartition(".")[2]))
    ), detail


def test_rules_that_only_look_alike_are_taken() -> None:
    text = rule("inbound", "enclave", more=LIMIT) + rule("inbound", "enclave", more=LIMIT)
    text += rule("inbound", "uplink") + rule("inbound", "enclave", protocol="udp")
    text += rule("outbound", "uplink", more='user = "a"\n') + rule("outbound", "uplink", more='user = "b"\n')
    text += rule("inbound", "enclave", '["9000-9010"]') + rule("inbound", "press", more=LIMIT)
    parse_sections(parse_baseline((HEAD + ZONES + text).encode(), file="case.toml"))


def test_f08_a_baseline_that_lets_neither_names_nor_time_out_is_warned_of() -> None:
    used = rule("inbound", "enclave") + rule("outbound", "queue") + rule("inbound", "press")
    said = warned(ZONES + used + rule("inbound", "uplink"))
    assert any(
        re.match(r"firewall\.outbound: no rule lets name service .*'queue' lead nowhere", s) for s in said
    )
    assert any(re.match(r"firewall\.outbound: no rule lets time \(udp 123\) out", s) for s in said)
    calm = warned(ZONES + used + CALM)
    assert [each.partition(":")[0] for each in calm] == ["firewall.zones.queue.names"]


def test_f08_a_way_to_the_controller_through_an_interface_that_is_not_here_is_warned_of() -> None:
    text = ZONES.replace('controller = { interface = "uplink0" }', 'controller = { interface = "uplink9" }')
    text += CALM + rule("inbound", "enclave") + rule("inbound", "press") + rule("outbound", "queue")
    said = warned(text, {"lo", "enclave0"})
    assert any("firewall.controller.interface: 'uplink9' is not here (yet)" in each for each in said)
    assert not any("not here" in each for each in warned(text, {"enclave0", "uplink0", "uplink9"}))
    assert not any("not here" in each for each in warned(text)), "the author's machine is no node"


def test_f09_an_interface_that_is_not_here_yet_is_a_warning_and_no_refusal() -> None:
    said = warned(ZONES + rule("inbound", "enclave") + CALM, {"lo"})
    assert "firewall.zones.enclave.interfaces[0]: 'enclave0' is not here (yet)" in said


def test_overlapping_addresses_are_named_and_merged() -> None:
    text = ZONES.replace(
        '["10.10.1.0/24"]', '["10.10.1.0/24", "10.10.1.7", "fd10::/64", "10.10.1.0/25", "fd10::1"]'
    )
    said = [each for each in warned(text + rule("inbound", "enclave") + CALM) if "enclave.addresses" in each]
    assert [re.sub(r"firewall.zones.enclave.", "", each) for each in said] == [
        "addresses[1]: 10.10.1.7 lies in 10.10.1.0/24: merged into one",
        "addresses[3]: 10.10.1.0/25 lies in 10.10.1.0/24: merged into one",
        "addresses[4]: fd10::1 lies in fd10::/64: merged into one",
    ]
    twice = ZONES.replace('["10.10.1.0/24"]', json.dumps(["10.10.1.7"] * 20))
    said = [each for each in warned(twice + rule("inbound", "enclave") + CALM) if "enclave.addresses" in each]
    assert len(said) == 9
    assert any("11 more that overlap" in each for each in said)


def test_everybody_without_a_limit_and_a_zone_of_no_use_are_warned_of() -> None:
    text = ZONES.replace("10.20.0.0/16", "0.0.0.0/0") + rule("inbound", "uplink") + CALM
    said = warned(text)
    assert any(re.match(r"firewall\.inbound\[0\]\.zone: lets in everybody \(0\.0\.0\.0/0\)", s) for s in said)
    assert "firewall.zones.enclave: no rule names this zone" in said
    assert not any(
        "everybody" in each for each in warned(text.replace('reason = "x"\n', 'reason = "x"\n' + LIMIT))
    )


def agent_check(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.main", "check", str(path), *more],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "addresses"), [("million", 1_000_000), ("too many for a zone", 131_073), ("ten megabytes", 0)]
)
def test_f10_what_is_too_much_is_refused_soon_and_clearly(tmp_path: Path, name: str, addresses: int) -> None:
    path = tmp_path / "big.toml"
    # Many short lines: what is refused is the number, not the length of a line.
    listed = "".join(f'"{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}.9",\n' for n in range(addresses))
    text = ZONES.replace('"10.10.1.0/24"', f"\n{listed}") if addresses else ZONES + "# x\n" * 2_600_000
    path.write_text(HEAD + text + rule("inbound", "enclave") + CALM)
    begun = time.monotonic()
    done = agent_check(path)
    assert done.returncode == 2
    assert time.monotonic() - begun < 20
    assert len(done.stderr) < 500
    if name == "too many for a zone":
        assert re.search(r"big\.toml:\d+: firewall\.zones.*131072", done.stderr), done.stderr
    else:
        assert re.search(r"big\.toml: \d+ bytes, at most 4194304", done.stderr), done.stderr


def test_check_prints_warnings_apart_and_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "case.toml"
    path.write_text(HEAD + ZONES + rule("inbound", "enclave"))
    done = agent_check(path)
    assert done.returncode == 0
    listed = done.stderr.splitlines()
    assert listed and all(re.match(r"warning: case\.toml:\d+: firewall\.", line) for line in listed)
    assert f"{len(listed)} warnings" in done.stdout
    shown = json.loads(agent_check(path, "--json").stdout)
    assert len(shown["warnings"]) == len(listed)
    assert {"line", "key", "text"} == set(shown["warnings"][0])
    path.write_text(HEAD + ZONES + rule("inbound", "nobody"))
    done = agent_check(path, "--json")
    assert done.returncode == 2
    assert "nobody" in json.loads(done.stdout)["refused"]


def test_a_hundred_thousand_addresses_are_checked_in_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    listed = "".join(f'"10.{n // 62500}.{n // 250 % 250}.{n % 250 + 1}",\n' for n in range(100_000))
    path.write_text(HEAD + ZONES.replace('"10.10.1.0/24"', f"\n{listed}") + rule("inbound", "enclave") + CALM)
    begun = time.monotonic()
    done = agent_check(path)
    print(f"{time.monotonic() - begun:.1f} s")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("more", ["", 'kind = ""\n'])
def test_an_interface_known_by_its_name_alone_is_warned_of(more: str) -> None:
    (told,) = warned(f'[netdevs]\n[[netdevs.allow]]\nnames = ["eth*"]\n{more}reason = "why"\n')
    assert told.startswith("netdevs.allow[0].names: ") and "can be renamed" in told


@pytest.mark.parametrize(
    "more", ['place = "0000:01:00.0"', 'mac = "02:00:00:00:00:01"', 'driver = "igb"', 'kind = "veth"']
)
def test_an_interface_known_by_more_is_not_warned_of(more: str) -> None:
    assert warned(f'[netdevs]\n[[netdevs.allow]]\nnames = ["eth*"]\n{more}\nreason = "why"\n') == []


USB = '[usb]\n[[usb.allow]]\ninterfaces = [{}]\nreason = "why"\n[[usb.block]]\ninterfaces = ["08:*:*"]\n{}reason = "why"\n'


def test_a_usb_rule_that_a_block_makes_empty_is_warned_of() -> None:
    (told,) = warned(USB.format('"08:06:50", "08:*:*@1"', ""))
    assert told.startswith("usb.allow[0].interfaces: nothing gets in")
    assert warned(USB.format('"08:06:50", "03:*:*"', "")) == []
    assert warned(USB.format('"*:*:*"', "")) == []
    assert warned(USB.format('"08:06:50"', 'vendor = "1234"\n')) == []


def test_an_open_port_whose_listener_is_killed_is_warned_of() -> None:
    listeners = (
        '[listeners]\nkill = true\n[[listeners.allow]]\nprotocol = "tcp"\nport = 8080\nreason = "why"\n'
    )
    opened = ZONES + CALM + rule("inbound", "enclave", ports='[8080, "8079-8081", 9]') + listeners
    told = [each for each in warned(opened) if "kills" in each]
    assert [each.partition(":")[0] for each in told] == ["firewall.inbound[0].ports"] and "tcp 9:" in told[0]
    inside = listeners.replace("port = 8080", 'port = 8080\naddress = "loopback"')
    assert sum("kills" in each for each in warned(opened.replace(listeners, inside))) == 3
    assert not [each for each in warned(opened.replace("kill = true", "kill = false")) if "kills" in each]


def test_offloading_where_nothing_passes_through_is_told(tmp_path: Path) -> None:
    offload = '[firewall.offload]\ninterfaces = ["enclave0", "docker*"]\nreason = "test it"\n'
    path = tmp_path / "draft.toml"
    path.write_text(f"{HEAD}{ZONES}{CALM}{offload}")
    done = agent_check(path)
    assert done.returncode == 0, done.stderr
    assert "firewall.offload: nothing passes through this node" in done.stderr
