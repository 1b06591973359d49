"""Clocks: the running kernel's, in time namespaces where they must jump; configuration files in a made root."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.clock import KernelClock
from agent.host import Host
from agent.probes import UNSEEN, Surroundings
from agent.probes.time import SHOWN, Section, rough, wrong_clock
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace

TOML = """\
[time]
synchronised = false

[[time.server]]
names = ["10.20.0.123", "*.plant.example"]
reason = "the plant's own"
"""


class Files:
    """A made root with the files of time services."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.around = Surroundings(host=Host(root=folder, sysfs_root=folder / "sys"), remembered={})

    def write(self, path: str, text: str) -> Path:
        """Write a file below the root."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def found(self, toml: str = TOML) -> dict[str, str]:
        """Return the drifts under a section, by key."""
        return {drift.key: drift.found for drift in probe_of("time", toml, self.around).observe(1.0)}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    files = Files(folder)
    chrony = files.write(
        "etc/chrony/chrony.conf", "server 10.20.0.123 iburst\nsourcedir /etc/chrony/sources.d\n"
    )
    files.write("etc/chrony/sources.d/plant.sources", "pool ntp.plant.example\n")

    def blind() -> None:
        chrony.unlink()
        chrony.symlink_to("/dev/null")

    yield Case(
        toml=TOML,
        around=files.around,
        spoil=lambda: files.write("etc/chrony/sources.d/z.sources", "server 192.0.2.66\n") and None,
        blind=blind,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        mends=False,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synchronised = false\nmax_offset_s = 1\n", "synchronised = false"),
        ("max_offset_s = 0\n", "max_offset_s"),
        ('[[time.server]]\nnames = ["a", "A"]\nreason = "why"\n', "each server once"),
        ('[[time.server]]\nnames = ["a b"]\nreason = "why"\n', "names"),
        ('unknown = "repair"\n', "unknown"),
    ],
)
def test_entries_that_contradict_or_are_no_servers_are_refused(text: str, expected: str) -> None:
    with pytest.raises(Rejected, match=expected):
        section_of("time", "[time]\n" + text)


def test_the_kernels_word_is_what_the_c_library_says_by_another_call() -> None:
    class Short(ctypes.Structure):
        _fields_ = [
            ("seconds", ctypes.c_long),
            ("parts", ctypes.c_long),
            ("max_error", ctypes.c_long),
            ("estimated_error", ctypes.c_long),
            ("tail", ctypes.c_long * 16),
        ]

    said = Short()
    state = ctypes.CDLL(None).ntp_gettime(ctypes.byref(said))
    kernel = Host().clock.kernel()
    assert kernel.synchronised == (state != 5)
    assert abs(kernel.max_error_s - said.max_error / 1e6) < 1.0
    drifts = probe_of("time", '[time]\nunknown = "ignore"\n', Surroundings(host=Host())).observe(1.0)
    assert [drift.found for drift in drifts] == ([] if kernel.synchronised else ["not synchronised"])


@pytest.mark.parametrize(
    ("clock", "drifts"),
    [
        (KernelClock(True, 0.0, 0.01), {}),
        (KernelClock(True, -3.0, 0.01), {"clock offset": "over 2 s"}),
        (KernelClock(True, 0.0, 12.0), {"clock error": "over 10 s"}),
        (KernelClock(False, 90.0, 16.0), {"clock": "not synchronised"}),
    ],
)
def test_what_the_kernel_says_is_held_against_the_section(clock: KernelClock, drifts: dict[str, str]) -> None:
    section = Section(max_offset_s=1.0, max_error_s=5.0)
    assert {each.key: each.found for each in wrong_clock(section, clock)} == drifts


def test_a_wandering_value_is_one_drift() -> None:
    assert {rough(each) for each in (5.1, 6.0, 9.9)} == {"over 5 s"}
    assert rough(86400 * 366) == "over 20000000 s"


JUMP = """
import ctypes, os, sys
from agent.host import Host
from agent.probes import Surroundings
from agent.probes.time import Probe, Section
probe = Probe(Section(synchronised=False, unknown="ignore"), Surroundings(host=Host()))
assert probe.observe(1.0) == [] and probe.observe(2.0) == []
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x80):
    sys.exit(77)
offset = sys.argv[1]
if offset == "half":
    offset = str(-int(Host().uptime_s() / 2))
with open("/proc/self/timens_offsets", "w") as file:
    file.write(f"boottime {offset} 0")
if os.fork() == 0:  # the child is in the new namespace, where the time since boot is another
    print(offset)
    for now in (3.0, 4.0):
        print([(drift.key, drift.found, drift.since) for drift in probe.observe(now)], flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("offset", ["31536000", "half"])
def test_a04_a_wall_clock_that_jumps_against_the_time_since_boot_is_a_drift(offset: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JUMP, offset], capture_output=True, text=True, cwd=Path.cwd()
    )
    if done.returncode == 77:
        pytest.skip("no time namespaces here")
    assert done.returncode == 0, done.stderr
    number, first, second = done.stdout.splitlines()
    word = "back" if int(number) > 0 else "forward"
    assert first == second == repr([("clock jump", f"{word} by {abs(int(number))} s", 3.0)])


def test_a_server_that_no_entry_names_is_a_drift_wherever_it_is_configured(files: Files) -> None:
    files.write(
        "etc/chrony/chrony.conf",
        "# server 1.1.1.1\n! server 1.1.1.2\nServer 10.20.0.123 iburst\nconfdir /etc/chrony/conf.d\n"
        "include /opt/x/*.inc\nrefclock PPS /dev/pps0\n",
    )
    files.write("etc/chrony/conf.d/a.conf", "pool Two.Plant.Example\npeer 192.0.2.1\n")
    files.write("etc/chrony/conf.d/a.bak", "server 192.0.2.9\n")
    files.write("opt/x/hidden.inc", "server 192.0.2.2\nsourcedir /run/far\n")
    files.write("run/far/one.sources", "server 192.0.2.3\n")
    assert files.found() == {
        "server 192.0.2.1": "in /etc/chrony/conf.d/a.conf",
        "server 192.0.2.2": "in /opt/x/hidden.inc",
        "server 192.0.2.3": "in /run/far/one.sources",
        "server pps": "in /etc/chrony/chrony.conf",
    }
    assert files.found(TOML.replace("[time]\n", '[time]\nunknown = "ignore"\n')) == {}


def test_timesyncds_files_are_read_as_systemd_reads_them(files: Files) -> None:
    files.write("usr/lib/systemd/timesyncd.conf", "[Time]\nNTP=192.0.2.1\n")
    files.write("etc/systemd/timesyncd.conf", "[Time]\nNTP=10.20.0.123 192.0.2.2\n#FallbackNTP=192.0.2.3\n")
    assert files.found() == {"server 192.0.2.2": "in /etc/systemd/timesyncd.conf"}
    files.write("run/systemd/timesyncd.conf.d/10-a.conf", "[Time]\nNTP=\nNTP = a.plant.example\n")
    assert files.found() == {}
    files.write("etc/systemd/timesyncd.conf.d/20-b.conf", "[Time]\nFallbackNTP=192.0.2.4\n")
    assert files.found() == {"server 192.0.2.4": "in /etc/systemd/timesyncd.conf.d/20-b.conf"}
    files.write("etc/systemd/timesyncd.conf.d/10-a.conf", "")
    assert "server 192.0.2.2" in files.found()


def test_no_listed_server_is_a_drift_and_so_is_a_file_that_cannot_be_read(files: Files) -> None:
    assert files.found() == {"servers": "none of them configured"}
    files.write("etc/chrony.conf", "include relative.conf\n")
    assert files.found() == {"servers": UNSEEN}
    files.write("etc/chrony.conf", "include /etc/chrony.conf\nserver 10.20.0.123\n")
    assert files.found() == {}
    files.write("etc/chrony.conf", "#" * 70000)
    assert files.found() == {"servers": UNSEEN}


def test_many_unknown_servers_are_few_drifts(files: Files) -> None:
    files.write("etc/ntp.conf", "".join(f"server 192.0.2.{n}\n" for n in range(200)))
    assert len(files.found("[time]\nsynchronised = false\n")) == SHOWN + 1
    files.write("etc/ntp.conf", "".join(f"server s{n}\n" for n in range(3000)))
    assert files.found() == {"servers": UNSEEN}


def test_the_battery_clock_is_looked_at_where_asked(files: Files) -> None:
    toml = '[time]\nsynchronised = false\nunknown = "ignore"\nmax_rtc_offset_s = 60\n'
    assert files.found(toml) == {"battery clock": UNSEEN}
    for seconds, drifts in ((0, {}), (-86400, {"battery clock": "over 50000 s off"})):
        files.write("sys/class/rtc/rtc0/since_epoch", f"{int(time.time()) + seconds}\n")
        assert files.found(toml) == drifts
