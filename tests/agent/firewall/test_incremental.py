"""From one set of rules to the next by what differs: same result as loading whole, and no packet in between."""

from __future__ import annotations

import itertools
import re
import socket
import statistics
import threading
import time

import pytest

from agent.firewall.nft import rules
from agent.firewall.tables import difference, mending
from agent.netfilter import NetfilterError
from tests.agent.firewall.lab import BASELINE, FencedNode, Listener, opens, section
from tests.parts.inference import Stream, infer
from tests.parts.topology import Topology

LATER = '[[inbound]]\nzone = "{zone}"\nprotocol = "{protocol}"\nports = [{ports}]\n{more}reason = "test"\n'
EXTRA = '[zones.extra]\naddresses = ["10.10.1.100", "10.77.0.0/16", "fd10:1::100"]\n'
VARIANTS = {
    "plain": BASELINE,
    "fewer ports": BASELINE.replace("[5353, ", "["),
    "other ranges": BASELINE.replace('"6000-6010"', '"5999-6005", 6008'),
    "smaller zone": BASELINE.replace("10.10.1.0/24", "10.10.1.0/25"),
    "single addresses": BASELINE.replace('"10.10.1.0/24"', '"10.10.1.100", "10.10.1.12"'),
    "IPv4 only": BASELINE.replace(', "fd10:1::/64"', ""),
    "another zone": BASELINE + EXTRA + LATER.format(zone="extra", protocol="tcp", ports=9090, more=""),
    "limits": BASELINE
    + EXTRA
    + LATER.format(zone="extra", protocol="tcp", ports=9, more="connections = 5\n"),
    "one user": BASELINE + '[[outbound]]\nzone = "uplink"\nprotocol = "icmp"\nuser = "root"\nreason = "t"\n',
    "through": BASELINE
    + '[[forward]]\nfrom = "enclave"\nto = "uplink"\nprotocol = "tcp"\nports = [8080]\nreason = "test"\n',
    "nothing": "",
}


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(VARIANTS, 2)))
def test_f02_what_a_difference_makes_is_what_a_whole_load_makes(node: FencedNode, old: str, new: str) -> None:
    around = node.probe.around
    before, after = (rules(section(VARIANTS[name]), "normal", around) for name in (old, new))
    node.namespace.nft(after.text())
    wanted = node.namespace.ruleset()
    node.namespace.nft(before.text())
    part = difference(before.tables, after.tables)
    if part is None:
        assert "zone" in new + old or "addresses" in new + old, "a set of another kind, and nothing else"
        return
    node.namespace.nft(part)
    assert _unordered(node.namespace.ruleset()) == _unordered(wanted)


def _unordered(listing: str) -> dict[str, list[str]]:
    """Return each object's lines: sets and chains may stand in another order, the rules of a chain may not."""
    blocks = re.findall(r"^\t(\S+ \S+) \{\n(.*?)^\t\}", listing, re.DOTALL | re.MULTILINE)
    return {
        name: sorted(re.split(r"[\s,]+", body)) if name.startswith("set") else body.splitlines()
        for name, body in blocks
    }


def many(count: int, change: int = 0) -> str:
    """Return a baseline whose enclave has so many single addresses, of which `change` are others than without."""
    addresses = [f"10.{100 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}" for n in range(count)]
    for number in range(change):
        addresses[number * 7] = f"10.99.{number // 250}.{number % 250 + 1}"
    listed = ", ".join(f'"{each}"' for each in ["10.10.1.100", *addresses])
    return BASELINE.replace('"10.10.1.0/24"', listed)


@pytest.mark.alone
def test_f02_of_ten_thousand_addresses_only_the_changed_ones_are_loaded(
    node: FencedNode, topology: Topology
) -> None:
    node.settle(text=many(10_000))
    handle = re.compile(r"set zone4_enclave \{ # handle \d+")
    whole_ms, part_ms = [], []
    listed = node.namespace.run("nft", "-a", "list", "table", "inet", "ringfence").stdout
    for number in range(1, 6):
        wanted = rules(section(many(10_000, number * 10)), "normal", node.probe.around)
        standing = node.netfilter.standing
        assert standing is not None
        part = difference(standing[1], wanted.tables)
        assert part is not None and len(part) < 60_000 < len(wanted.text())
        node.settle(text=many(10_000, number * 10))
        begun = time.perf_counter()
        node.do(lambda text=wanted.text(): node.netfilter.check(text + "\n"))  # type: ignore[misc]
        whole_ms.append((time.perf_counter() - begun) * 1000)
        part = difference(wanted.tables, standing[1])
        assert part is not None
        begun = time.perf_counter()
        node.do(lambda text=part: node.netfilter.load(text))  # type: ignore[misc]
        part_ms.append((time.perf_counter() - begun) * 1000)
        node.settle()
    print(f"dry run of all {statistics.median(whole_ms):.1f} ms, change {statistics.median(part_ms):.1f} ms")
    after = node.namespace.run("nft", "-a", "list", "table", "inet", "ringfence").stdout
    assert handle.findall(after) == handle.findall(listed) != [], "the set is the very same one"
    assert infer(topology.sites["fw"].the_client.namespace, node.host.enclave[0])


def test_f04_a_flow_from_an_address_that_left_a_list_ends_although_only_elements_changed(
    node: FencedNode, topology: Topology
) -> None:
    node.settle(text=many(20))
    stream = Stream(topology.sites["fw"].the_client.namespace, node.host.enclave[0])
    assert stream.alive()
    node.settle(text=many(20, 2))
    assert stream.alive(), "it is still on the list"
    node.settle(text=many(20).replace('"10.10.1.100", ', ""))
    assert not stream.alive(1.0)
    stream.close()


@pytest.mark.parametrize(
    "change",
    [
        "insert rule inet ringfence input accept",
        "flush set inet ringfence zone4_enclave",
        "add element inet ringfence in_enclave_tcp { 22 }",
        "flush chain inet ringfence allow",
        "add chain inet ringfence mine { type filter hook input priority -5; }",
        "add chain inet ringfence mine; add rule inet ringfence mine accept;"
        " insert rule inet ringfence input jump mine",
        "add set inet ringfence mine { type ipv4_addr; }; insert rule inet ringfence input ip saddr @mine accept",
    ],
)
def test_f02_one_object_that_was_changed_is_mended_and_the_others_are_not_touched(
    node: FencedNode, change: str
) -> None:
    before = node.namespace.ruleset()
    listed = node.namespace.run("nft", "-a", "list", "sets").stdout
    node.namespace.run("nft", change)
    node.repair(node.observe())
    assert node.observe() == []
    assert node.namespace.ruleset() == before
    handles = re.compile(r"set \S+ \{ # handle \d+")
    assert handles.findall(node.namespace.run("nft", "-a", "list", "sets").stdout) == handles.findall(listed)


def test_f02_what_mending_cannot_do_a_whole_load_does_in_the_same_pass(node: FencedNode) -> None:
    before = node.namespace.ruleset()
    wanted = node.probe.rules()
    assert mending(wanted.tables, ["inet ringfence table ringfence"]) is None
    assert mending(wanted.tables, ["inet ringfence counter drop_input"]) is None
    assert mending(wanted.tables, ["inet ringfence chain a;flush ruleset"]) is None
    assert mending(wanted.tables, ["inet other chain nobody"]) is None
    node.namespace.run("nft", "add chain inet ringfence output { policy accept; }")
    node.namespace.run("nft", "insert rule inet ringfence input accept")
    assert mending(wanted.tables, ["inet ringfence chain output"]) is not None, "which does not heal a policy"
    node.repair(node.observe())
    assert node.observe() == []
    assert node.namespace.ruleset() == before


def test_f02_a_difference_that_does_not_fit_leaves_the_old_rules_whole(node: FencedNode) -> None:
    before = node.namespace.ruleset()
    other = rules(section(VARIANTS["another zone"]), "normal", node.probe.around)
    part = difference(other.tables, node.probe.rules().tables)
    assert part
    with pytest.raises(NetfilterError):
        node.do(lambda: node.netfilter.load(part))
    assert node.namespace.ruleset() == before


def test_f03_not_one_denied_packet_passes_a_flood_while_baselines_are_swapped_200_times(
    node: FencedNode, topology: Topology
) -> None:
    """By differences and whole, in turns; the port is denied by every one of them, in both families."""
    client = topology.sites["fw"].the_client.namespace
    listener = Listener(node.namespace, 7001)
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    stop = threading.Event()
    sent = [0, 0]

    def flood(number: int, family: socket.AddressFamily) -> None:
        with client.socket(family, socket.SOCK_DGRAM) as sending:
            sending.connect((node.host.enclave[number], 7001))
            while not stop.is_set():
                for _ in range(64):
                    sending.send(b"x")
                sent[number] += 64

    threads = [
        threading.Thread(target=flood, args=each) for each in enumerate((socket.AF_INET, socket.AF_INET6))
    ]
    for thread in threads:
        thread.start()
    names = ("plain", "another zone", "limits", "single addresses", "through")
    made = [rules(section(VARIANTS[name]), "normal", node.probe.around) for name in names]
    parts = 0
    try:
        standing = node.probe.rules()
        for number in range(200):
            wanted = made[number % len(made)]
            part = difference(standing.tables, wanted.tables) if number % 4 else None
            parts += part is not None
            node.do(lambda text=part or wanted.text(): node.netfilter.load(text))  # type: ignore[misc]
            standing = wanted
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert parts > 50
    assert min(sent) > 2000
    assert listener.drain() == 0
    listener.close()
    assert opens(client, node.host.enclave[0], 8080)
