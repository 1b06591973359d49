"""The gate to the machine, on the real machine and in namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host import Host, Wanted, printable
from agent.sysctls import sysctl_path
from agent.userdb import group_id, user_id
from tests.parts.namespace import Namespace


def test_boot_id_and_uptime_are_the_kernels() -> None:
    assert Host().boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert abs(Host().uptime_s() - float(Path("/proc/uptime").read_text().split()[0])) < 5


def test_addresses_are_those_of_the_namespace_without_loopback_and_link_local() -> None:
    node = Namespace("host-addr")
    try:
        node.batch(
            [
                "link add uplink0 type bridge",
                "link set uplink0 up",
                "address add 10.20.1.9/24 dev uplink0",
                "address add 10.3.0.1/24 dev uplink0",
                "address add fd20:1::9/64 dev uplink0 nodad",
                "address add 169.254.7.7/16 dev uplink0",
            ]
        )
        assert node.inside(Host().addresses) == ["10.3.0.1", "10.20.1.9", "fd20:1::9"]
    finally:
        node.remove()


def test_a_process_is_described_with_its_parent_and_cannot_break_the_line() -> None:
    program = "import time; print('here', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, "a\nb\x1b[2J"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            text = Host().describe_process(process.pid)
        finally:
            process.kill()
    assert f"(pid {process.pid}, uid {os.getuid()}, from " in text
    assert "a\\nb\\x1b[2J" in text
    assert Host().describe_process(process.pid) == f"pid {process.pid} (gone)"


@given(st.text())
def test_printable_text_has_no_control_characters(untrusted: str) -> None:
    assert printable(untrusted).isprintable()


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    host = Host(root=tmp_path)
    assert host.read_file("/f", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes") as refused:
        host.read_file("/f", max_bytes=4)
    assert refused.value.errno == errno.EFBIG


def _open_below(folder: Path) -> list[str]:
    """What this process has open there; what other tests have left open elsewhere comes and goes."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return [each for each in found if each.startswith(str(folder))]


@pytest.mark.parametrize(
    "path", ["/link", "/folder-link/f", "/folder", "/pipe", "/", "/../etc/passwd", "/folder/../f"]
)
def test_d06_only_plain_paths_to_plain_files_open(path: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/f").write_bytes(b"1")
    (tmp_path / "folder-link").symlink_to("folder")
    (tmp_path / "link").symlink_to("f")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        Host(root=tmp_path).open_file(path)
    assert _open_below(tmp_path) == []


def test_owner_and_mode_are_set_together_and_set_uid_survives_the_change_of_owner(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1")
    Host(root=tmp_path).set_access("/f", Wanted(65534, 65534, 0o4750))
    facts = Host(root=tmp_path).file_facts("/f")
    assert (facts.uid, facts.gid, facts.mode) == (65534, 65534, 0o4750)


def test_users_and_groups_by_name_and_number() -> None:
    assert (user_id("root"), user_id("7"), group_id("root"), group_id("7")) == (0, 7, 0, 7)
    for find in (user_id, group_id):
        with pytest.raises(FileNotFoundError):
            find("nobody-of-this-name")


def test_settings_of_interfaces_with_a_dot_are_reached_by_slashes() -> None:
    assert sysctl_path("net/ipv4/conf/eth0.1/rp_filter") == "net/ipv4/conf/eth0.1/rp_filter"
    assert sysctl_path("net.ipv4.ip_forward") == "net/ipv4/ip_forward"


def test_reading_a_kernels_file_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 11)
    assert Host().read_log(str(log), max_bytes=11) == b"x" * 11
    with pytest.raises(OSError, match="more than 10 bytes"):
        Host().read_log(str(log), max_bytes=10)


def test_a_setting_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "sys/net").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        Host(proc_root=tmp_path).set_sysctl("net.absent", "1")
    assert list((tmp_path / "sys/net").iterdir()) == []
