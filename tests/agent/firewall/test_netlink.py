"""Netlink frames: whatever the bytes, nothing but an early end."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.firewall import netlink
from agent.firewall.events import described
from agent.firewall.flows import _tuple

FRAMES = st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=64)), max_size=5)


@given(st.binary(max_size=512))
def test_no_bytes_make_the_frames_raise(data: bytes) -> None:
    for message in netlink.messages(data):
        assert len(message.payload) <= len(data)
    assert all(len(value) <= len(data) for value in netlink.attributes(data).values())


@given(st.binary(max_size=128))
def test_no_tuple_makes_the_tracking_parser_raise(data: bytes) -> None:
    source, destination, protocol, from_port, to_port = _tuple(data)
    assert (
        0 <= protocol <= 255 and min(from_port, to_port) >= 0 and len(source) + len(destination) <= len(data)
    )


@given(FRAMES)
def test_frames_come_back_as_they_were_made(frames: list[tuple[int, bytes]]) -> None:
    data = b""
    for number, (kind, payload) in enumerate(frames):
        data += netlink.frame(kind, 0, payload, number)
        data += b"\0" * (-len(data) % 4)
    assert [(each.kind, each.payload, each.sequence) for each in netlink.messages(data)] == [
        (kind, payload, number) for number, (kind, payload) in enumerate(frames)
    ]


def test_a_process_is_described_from_proc_only_while_it_is_the_one_that_the_kernel_named(
    tmp_path: Path,
) -> None:
    own = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    found = described(os.getpid(), own, frozenset())
    assert found.uid == os.getuid() and found.command and f"(pid {os.getppid()})" in found.parent
    other = described(os.getpid(), "nft", frozenset())
    assert (other.name, other.uid, other.command, other.parent) == ("nft", None, "", "")
    assert described(4242, "gone", frozenset(), tmp_path).describe() == "gone (pid 4242)"


def test_what_proc_says_is_cut_and_cleaned(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "comm").write_bytes(b"evil\x1b[31m\n")
    (folder / "cmdline").write_bytes(b"a\0" * 4000 + b"\n\xff")
    (folder / "status").write_text("Name:\tevil\nPPid:\t0\nUid:\t1000\t1000\t1000\t1000\n")
    name = "evil\N{REPLACEMENT CHARACTER}[31m"
    found = described(7, name, frozenset(), tmp_path)
    assert found.uid == 1000 and len(found.command) == 300 and found.describe().isprintable()
