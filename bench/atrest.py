"""What a whole agent costs while nothing happens: all sections on, 5,000 watched files, a real TPM client and controller.

Memory by /proc/PID/smaps_rollup, processor by the process's own clock (threads that ended included), wake-ups as
voluntary switches of all threads, writes by /proc/PID/io, the wire by the counters of the node's uplink: every byte of
every frame, neighbour discovery too.
"""

from __future__ import annotations

import compileall
import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import agent
import contract
from agent.host import Host
from agent.learning import learners
from agent.probes import Surroundings
from agent.probes import sections as known_sections
from bench.figures import Figure, figure
from contract.baseline import parse_baseline
from tests.flow import baselines
from tests.flow.lab import Lab, Node
from tests.parts import cleanroot

FILES, MODEL_FILES = 4000, 1000
LEARNED = (
    *("accelerators", "accounts", "blocks", "cameras", "chassis", "netdevs", "packages", "pci", "serials"),
    *("services", "thunderbolt", "time"),
)
"""By what the node's root, this machine's buses and the node's own namespace have."""
REPORT_S, PASS_S = 60.0, 30.0
"""The defaults of a site's policy and of agent.toml."""
_SETTLE_S = 75.0
_DAY_S = 86400.0
_PROCESS_CLOCK = 2


OTHERS = """
[modules]
unknown = "ignore"
[[modules.block]]
names = ["usb-storage", "uas"]
reason = "no storage by USB"

[mounts]
unknown = "ignore"
[[mounts.forbid]]
types = ["nfs"]
reason = "no network file system"

[access]
[[access.network]]
name = "vendor"
direction = "in"
zone = "enclave"
protocol = "tcp"
ports = [22]
max_s = 3600
reason = "the maker of the press"

[containers]

[agent]
release = "1.0-1"

[models]
[[models.model]]
name = "vision"
version = "1"
root = "/srv/models/vision"
classification = "internal"
reason = "watched"
"""


_INSTALLED = """
Package: ringfence-agent
Status: install ok installed
Architecture: all
Version: 1.0-1
Maintainer: The bench <root@localhost>
Description: what the baseline's [agent] asks for
"""

_USB = 'mode = "observe"\ndefault = "allow"'
"""The agent looks at the machine's own /sys here, whose uevents it gets: it must change nothing there."""


class Resting(Lab):
    """A lab whose agents look at the kernel's own sysfs: others raise no uevents and are polled four times a second."""

    def write_agent_configs(self) -> None:
        """Write every node's agent.toml."""
        super().write_agent_configs()
        for node in self.nodes:
            text = node.config.read_text()
            node.config.write_text(text.replace(f'sysfs = "{node.folder}/sys"', 'sysfs = "/sys"'))


class Reading(NamedTuple):
    """The agent's counters at one instant."""

    at: float
    processor_s: float
    wakeups: int
    written_bytes: int
    wire_bytes: int


def run(*, quick: bool) -> list[Figure]:
    """Let one agent rest for ten minutes (one when `quick`)."""
    seconds = 60.0 if quick else 600.0
    for package in (
        agent,
        contract,
    ):  # as every installation has it: what is compiled at a start stays in memory
        compileall.compile_dir(package.__path__[0], quiet=1)
    with Resting({"bench": 1}, interval_s=REPORT_S, pass_s=PASS_S) as lab:
        node = lab.nodes[0]
        prepare(node)
        extra = sections(node)
        check_whole(extra)
        lab.bring_up(within_s=120, extra=extra, usb=_USB)
        print(f"  the agent is up; at rest for {seconds:g} s", flush=True)
        time.sleep(_SETTLE_S)
        before = reading(node)
        time.sleep(seconds)
        after = reading(node)
        rss_mb, private_mb = memory_mb(pid_of(node))
    passed = after.at - before.at
    share = (after.processor_s - before.processor_s) / passed
    day_mb = (after.wire_bytes - before.wire_bytes) / passed * _DAY_S / 1e6
    return [
        figure("agent at rest: memory (RSS)", rss_mb, "MB", "promise", 64.0),
        figure("agent at rest: memory of its own", private_mb, "MB"),
        figure("agent at rest: processor", share * 100, "% of a core", "promise", 0.2),
        figure("agent at rest: wake-ups", (after.wakeups - before.wakeups) / passed, "/s"),
        figure(
            "agent at rest: written", (after.written_bytes - before.written_bytes) / passed * 60, "bytes/min"
        ),
        figure("agent at rest: on the wire", day_mb, "MB/day", "promise", 2.0),
    ]


def prepare(node: Node) -> None:
    """Give the node a Debian of its own and the files to be watched."""
    root = cleanroot.unpack(node.folder / "root")
    with (root / "var/lib/dpkg/status").open("a") as status:
        status.write(_INSTALLED)
    for number in range(FILES):
        _write(root / f"srv/watched/{number // 250:02}/{number:04}.conf", number)
    for number in range(MODEL_FILES):
        _write(root / f"srv/models/vision/part-{number:04}.bin", number)


def _write(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(number))
    path.chmod(0o644)


def content(number: int) -> bytes:
    """Return what a watched file holds."""
    return hashlib.shake_128(number.to_bytes(4, "big")).digest(2000)


def sections(node: Node) -> str:
    """Return the sections that the lab's baseline does not have, as TOML: those that `learn` can write, by it."""
    around = Surroundings(host=Host(root=node.folder / "root"))
    known = learners()
    learned = node.host.namespace.inside(
        lambda: [known[name].draft(around).text or f"[{name}]\n" for name in LEARNED]
    )
    files = [
        f'[[files.file]]\npath = "/srv/watched/{number // 250:02}/{number:04}.conf"\n'
        f'sha256 = "{hashlib.sha256(content(number)).hexdigest()}"\nreason = "watched"\n'
        for number in range(FILES)
    ]
    parts = [
        f'[[models.model.file]]\npath = "part-{number:04}.bin"\nkind = "weights"\nsize_bytes = 2000\n'
        f'sha256 = "{hashlib.sha256(content(number)).hexdigest()}"\n'
        for number in range(MODEL_FILES)
    ]
    return "\n".join(["", *files, *learned, OTHERS, *parts])


def check_whole(extra: str) -> None:
    """Refuse to measure less than every section that there is."""
    baseline = parse_baseline(baselines.text("bench", 1, 1, extra=extra, usb=_USB).encode())
    missing = known_sections().keys() - baseline.sections.keys()
    assert not missing, f"the resting agent has no section {', '.join(sorted(missing))}"


def pid_of(node: Node) -> int:
    """Return the agent's process."""
    assert node.agent is not None
    return node.agent.pid


def reading(node: Node) -> Reading:
    """Read all counters."""
    pid = pid_of(node)
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
        switches += int(found["voluntary_ctxt_switches"])
    written = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    shown = node.host.namespace.run("cat", "/proc/net/dev").stdout
    fields = next(line for line in shown.splitlines() if line.strip().startswith("uplink0:")).split()
    return Reading(
        at=time.monotonic(),
        # clock_getcpuclockid(3), which Python has for its own process only: glibc's make_process_cpuclock.
        processor_s=time.clock_gettime((~pid << 3) | _PROCESS_CLOCK),
        wakeups=switches,
        written_bytes=int(written["write_bytes"]),
        wire_bytes=int(fields[1]) + int(fields[9]),
    )


def memory_mb(pid: int) -> tuple[float, float]:
    """Return resident memory, and the part that no other process shares, in MB (10^6 bytes)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kib["Rss"] * 1024 / 1e6, (kib["Private_Clean"] + kib["Private_Dirty"]) * 1024 / 1e6
