"""What may be written under `[firewall]`, how it is rendered, and how listings are compared. No kernel needed."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.firewall import compare
from agent.firewall.foreign import foreign_chains
from agent.firewall.nft import render, render_cut, render_lockdown
from agent.firewall.section import Section, Zone, merged_ports, port_range
from agent.probes import ControllerEndpoint
from contract.errors import Rejected
from contract.messages import Posture
from tests.agent.probes.case import section_of

AROUND = SimpleNamespace(
    controller=(ControllerEndpoint("192.0.2.1", 8443), ControllerEndpoint("2001:db8::1", 8443)),
    fenced=("10.10.1.2", "10.10.1.3", "2001:DB8:0::7"),
    grants=(),
)
POSTURES: tuple[Posture, ...] = ("normal", "isolated", "maintenance")
TOML = """\
[firewall]
[firewall.controller]
interface = "uplink0"
[firewall.zones.enclave]
interfaces = ["enclave0"]
addresses = ["10.10.1.0/24", "fd10:1::/64"]
[firewall.zones.cameras]
addresses = ["10.10.1.130", "10.10.1.131"]
[[firewall.inbound]]
zone = "enclave"
protocol = "tcp"
ports = [8080, "9000-9010", 9005]
reason = "inference API"
[[firewall.outbound]]
zone = "cameras"
protocol = "any"
reason = "pictures"
[[firewall.forward]]
from = "cameras"
to = "enclave"
protocol = "udp"
ports = [5000]
reason = "pictures, to the line"
[[firewall.isolated.inbound]]
zone = "enclave"
protocol = "icmp"
reason = "the line still sees that it is there"
[[firewall.maintenance.inbound]]
zone = "enclave"
protocol = "tcp"
ports = [22]
reason = "technicians"
"""
SYNTAX = ['x" accept; flush ruleset; #', "x*", "*", "", "-x", "a b", "a\nb", "a;b", "a}b", "{a", "a\0", "ä"]
SYNTAX += ["$x", "@x", "\\", "a\t", "eth0\n", '"', "a" * 64]
NO_ADDRESS = ["10.0.0.1/24", "10.0.0.0/33", "10.0.0.1-10.0.0.9", "fe80::1%eth0", "example.com", "010.0.0.1"]
NO_ADDRESS += ["10.0.0.1 }", "0x0a000001", "1", "10.0.0.1, 0.0.0.0/0"]
NO_PORT: list[object] = [0, 65536, -1, "1-0", "0-5", "5", "5-65536", "a-b", "1-2-3", "1 - 2", "-5", "5-"]
NO_PORT += ["٣-٤", "22 }", "", True, 1.0]


def parsed(text: str = TOML) -> Section:
    section = section_of("firewall", text)
    assert isinstance(section, Section)
    return section


def with_interface(name: str) -> Section:
    rule = {"zone": "z", "protocol": "any", "reason": "r"}
    return msgspec.convert({"zones": {"z": {"interfaces": [name]}}, "inbound": [rule]}, Section, strict=True)


@pytest.mark.parametrize("text", SYNTAX)
def test_f10_a_name_that_tries_to_be_syntax_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        with_interface(text)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"zones": {text: {"interfaces": ["eth0"]}}}, Section, strict=True)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"controller": {"interface": text}}, Section, strict=True)


@pytest.mark.parametrize("text", [*SYNTAX, *NO_ADDRESS])
def test_f10_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"addresses": [text]}, Zone, strict=True)


@pytest.mark.parametrize("port", NO_PORT)
def test_f10_a_port_that_is_none_is_refused(port: object) -> None:
    rule = {"zone": "z", "protocol": "tcp", "ports": [port], "reason": "r"}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"zones": {"z": {"interfaces": ["e"]}}, "inbound": [rule]}, Section, strict=True)


@given(text=st.text(max_size=20))
def test_f10_no_interface_name_leaves_its_quotes(text: str) -> None:
    try:
        section = with_interface(text)
    except msgspec.ValidationError:
        return
    number = re.compile(r"0x[0-9a-f]{8}\b")
    plain = number.sub("N", render(with_interface("placeholder"), "normal", AROUND))
    assert number.sub("N", render(section, "normal", AROUND)) == plain.replace("placeholder", text)


def test_f10_reasons_never_reach_the_rules() -> None:
    hostile = parsed(TOML.replace("inference API", "} flush ruleset ;#"))
    for posture in POSTURES:
        assert render(hostile, posture, AROUND) == render(parsed(), posture, AROUND)


@pytest.mark.parametrize(
    ("find", "replace", "where"),
    [
        ('zone = "cameras"', 'zone = "camera"', "firewall"),
        ('reason = "pictures"', 'reason = ""', "firewall.outbound[0].reason"),
        ('reason = "pictures"', "", "firewall.outbound[0]"),
        ('protocol = "any"', 'protocol = "sctp"', "firewall.outbound[0].protocol"),
        ("ports = [5000]", "ports = []", "firewall.forward[0]"),
        ("ports = [5000]", "ports = [true]", "firewall.forward[0].ports[0]"),
        ('protocol = "any"', 'protocol = "any"\nports = [1]', "firewall.outbound[0]"),
        ('addresses = ["10.10.1.130", "10.10.1.131"]', "addresses = []", "firewall.zones"),
        ('interface = "uplink0"', 'interfaces = "uplink0"', "firewall.controller.interfaces"),
        ("[firewall]\n", '[firewall]\nforeign = "delete"\n', "firewall.foreign"),
    ],
)
def test_a_wrong_value_is_refused_with_file_line_and_key(find: str, replace: str, where: str) -> None:
    assert find in TOML
    with pytest.raises(Rejected) as refused:
        parsed(TOML.replace(find, replace, 1))
    assert refused.value.code == "baseline.key"
    assert re.match(rf"case\.toml:\d+: {re.escape(where)}", refused.value.detail), refused.value.detail


@pytest.mark.parametrize("posture", POSTURES)
def test_f03_every_base_chain_ends_in_an_explicit_drop(posture: Posture) -> None:
    """`policy drop` alone lets packets through while a table is replaced under load."""
    chains = re.findall(r"\tchain (\S+) \{\n(.*?)\n\t\}", render(parsed(), posture, AROUND), re.DOTALL)
    filters = {name: body.splitlines()[-1].strip() for name, body in chains if "policy drop" in body}
    assert {"input", "output", "forward"} <= filters.keys()
    assert ("cut_output" in filters) == (posture == "isolated")
    assert all(re.fullmatch(r'counter (name "drop_[a-z]+" )?drop', rule) for rule in filters.values())


def test_postures_differ_as_the_baseline_says() -> None:
    normal, isolated, maintenance = (render(parsed(), posture, AROUND) for posture in POSTURES)
    assert "elements = { 8080, 9000-9010 }" in normal
    assert "elements = { 22, 8080, 9000-9010 }" in maintenance
    assert "8080" not in isolated and "fwd_" not in isolated
    cut = render_cut(parsed(), AROUND).partition("delete table inet ringfence_cut\n")[2]
    assert isolated.endswith(cut) and cut not in normal and cut not in maintenance


def test_adjoining_fenced_addresses_are_all_fenced_and_the_controller_never_is() -> None:
    text = render(parsed(), "normal", AROUND)
    assert "elements = { 10.10.1.2, 10.10.1.3 }" in text
    assert "elements = { 2001:db8::7 }" in text
    around = SimpleNamespace(controller=AROUND.controller, fenced=("192.0.2.1", "2001:0db8::1"), grants=())
    fence = render(parsed(), "normal", around).partition("set controller4")[0]
    assert "192.0.2.1" not in fence and "2001:db8" not in fence


def test_flows_are_judged_again_when_rules_change_and_not_when_a_neighbour_is_fenced() -> None:
    def number(text: str) -> str:
        return str(re.findall(r"== (0x[0-9a-f]{4}0000) accept", text)[0])

    plain = number(render(parsed(), "normal", AROUND))
    unfenced = SimpleNamespace(controller=AROUND.controller, fenced=(), grants=())
    assert number(render(parsed(), "normal", unfenced)) == plain
    assert number(render(parsed(), "maintenance", AROUND)) != plain
    assert number(render(parsed(TOML.replace("5000", "5001")), "normal", AROUND)) != plain


def test_lockdown_names_the_controller_and_nobody_else() -> None:
    text = render_lockdown(AROUND)
    assert "192.0.2.1 . 8443" in text and "zone4_" not in text and "jump in_" not in text


PORTS = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(PORTS))
def test_merged_ports_cover_the_same_ports_without_touching(ports: list[tuple[int, int]]) -> None:
    merged = merged_ports(ports)
    assert all(one[1] + 1 < two[0] for one, two in itertools.pairwise(merged))
    for port in {edge + by for pair in ports for edge in pair for by in (-1, 0, 1)}:
        assert any(a <= port <= b for a, b in ports) == any(a <= port <= b for a, b in merged)


def test_ports_and_ranges() -> None:
    assert port_range(1) == (1, 1)
    assert port_range("1-65535") == (1, 65535)


@pytest.mark.parametrize(
    ("statement", "effects"),
    [
        ({"masquerade": None}, {"rewrites"}),
        ({"xt": {"type": "target", "name": "DNAT"}}, {"rewrites"}),
        ({"flow": {"op": "add", "flowtable": "@f"}}, {"rewrites"}),
        ({"made-up": 1}, {"rewrites"}),
        ({"vmap": {}}, {"accepts", "drops"}),
        ({"reject": None}, {"drops"}),
        ({"jump": {"target": "x"}}, set()),
        ({"counter": {"packets": 1, "bytes": 1}}, set()),
    ],
)
def test_f03_a_statement_that_nobody_knows_counts_as_rewriting(
    statement: compare.Object, effects: set[str]
) -> None:
    rule: compare.Object = {"family": "ip", "table": "nat", "chain": "post", "expr": [statement]}
    found = foreign_chains([{"rule": rule}], (("inet", "ringfence"),))
    assert [set(each.effects) for each in found] == ([effects] if effects else [])


def test_f03_our_name_in_another_family_is_not_ours() -> None:
    rule: compare.Object = {"family": "inet", "table": "ringfence", "chain": "c", "expr": [{"xt": None}]}
    assert foreign_chains([{"rule": rule}], (("inet", "ringfence"),)) == []
    assert len(foreign_chains([{"rule": rule | {"family": "ip"}}], (("inet", "ringfence"),))) == 1


def test_a_listing_with_other_handles_counters_and_order_is_the_same() -> None:
    def listing(handle: int, packets: int, elements: list[str]) -> list[compare.Object]:
        place: compare.Object = {"family": "inet", "table": "ringfence", "handle": handle}
        return [
            {"table": {"family": "inet", "name": "ringfence", "handle": handle}},
            {"set": place | {"name": "s", "type": "ipv4_addr", "elem": elements}},
            {"rule": place | {"chain": "c", "expr": [{"counter": {"packets": packets, "bytes": 1}}]}},
        ]

    first = compare.canonical(listing(1, 5, ["a", "b"]))
    assert first == compare.canonical(listing(9, 6, ["b", "a"]))
    fewer = compare.canonical(listing(1, 5, ["a"]))
    assert [change.key for change in compare.changes(first, fewer)] == ["inet ringfence set s"]
    assert [change.key for change in compare.changes(first, {})] == ["inet ringfence table ringfence"]
