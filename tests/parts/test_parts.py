"""The parts themselves: what they promise to the tests that stand on them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import namespace, usbtree
from tests.parts.inference import Stream, connect, infer
from tests.parts.nftwatch import NftWatch
from tests.parts.topology import Topology


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with Topology({"lab": 2}) as built:
        yield built


def test_everything_reaches_everything_without_a_fence(topology: Topology) -> None:
    first, second = topology.nodes
    client = topology.sites["lab"].the_client
    for source, address in (
        (first, second.enclave[0]),
        (first, second.enclave[1]),
        (second, topology.controller.uplink[0]),
        (second, topology.controller.uplink[1]),
        (topology.outside, first.uplink[0]),
        (topology.outside, first.uplink[1]),
        (client, topology.outside.uplink[0]),
        (client, topology.outside.uplink[1]),
    ):
        source.namespace.run("ping", "-c1", "-W2", address)


def test_the_inference_service_answers_and_its_stream_dies_with_a_cut(topology: Topology) -> None:
    node, client = topology.nodes[0], topology.sites["lab"].the_client.namespace
    service = node.namespace.start(sys.executable, "-m", "tests.parts.inference")
    try:
        deadline = time.monotonic() + 10
        while not infer(client, node.enclave[0]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert infer(client, node.enclave[0])
        assert infer(client, node.enclave[1])
        stream = Stream(client, node.enclave[1])
        assert stream.alive()
        node.namespace.nft(
            "table inet cut { chain c { type filter hook output priority -310; oifname enclave0 drop; }; }"
        )
        time.sleep(0.1)
        assert not stream.alive()
        assert not infer(client, node.enclave[0], timeout_s=0.2)
        with pytest.raises(TimeoutError):
            connect(client, node.enclave[0], 8080, timeout_s=0.2)
        stream.close()
    finally:
        service.kill()
        service.wait()


def test_a_plugged_device_is_announced_by_the_kernel(topology: Topology) -> None:
    inside = topology.nodes[1].namespace
    heard = inside.inside(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15))
    with heard:
        heard.bind((0, 1))
        heard.settimeout(2)
        inside.uevent()
        assert heard.recv(4096).startswith(b"add@")


def test_what_a_killed_run_left_behind_is_removed() -> None:
    code = (
        "import sys, time; from tests.parts.namespace import Namespace; n = Namespace('left');"
        "n.start('sleep', '60'); print(n.name, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        assert name not in namespace.remove_leftovers()
        run.kill()
    assert name in namespace.remove_leftovers()
    assert not Path("/run/netns", name).exists()


def test_the_usb_tree_behaves_as_the_kernel_does(tmp_path: Path) -> None:
    tree = usbtree.UsbTree(tmp_path / "sys")
    stick = tree.plug(usbtree.STORAGE_STICK)
    assert tree.authorized(stick) and tree.interfaces(stick) == ["1-1:1.0"]
    links = tmp_path / "sys/bus/usb/devices"
    (links / stick / "authorized").write_text("0\n")
    tree.settle()
    assert not tree.authorized(stick) and tree.interfaces(stick) == []
    (links / "usb1/authorized_default").write_text("0\n")
    keyboard = tree.plug(usbtree.KNOWN_KEYBOARD, port="2")
    assert not tree.authorized(keyboard) and tree.interfaces(keyboard) == []
    assert (links / keyboard / "descriptors").read_bytes()[8:12] == bytes.fromhex("6d041cc3")
    (links / keyboard / "authorized").write_text("1")
    tree.settle()
    assert tree.interfaces(keyboard) == ["1-2:1.0", "1-2:1.1"]
    tree.unplug(keyboard)
    assert sorted(path.name for path in links.iterdir()) == ["1-0:1.0", "1-1", "usb1"]


def test_the_witness_names_who_changed_the_firewall(topology: Topology) -> None:
    inside = topology.nodes[1].namespace
    with NftWatch(inside) as watch:
        inside.nft("table inet one { chain c { counter; }; }")
        first = watch.wait(lambda change: "one" in change.added)
        assert first.process == "nft" and first.pid > 0
        inside.nft("flush ruleset")
        assert watch.wait(lambda change: "one" in change.deleted, after=first.at).messages >= 3
