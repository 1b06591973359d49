"""What the agent costs while nothing happens, read from /proc in the guest at both ends of a time in which nobody asks it anything."""

from __future__ import annotations

import time
from typing import NamedTuple

from tests.lab.checks import NEXT_S, Site, check

MAX_RSS_MB = 64.0
SETTLE_S = 50.0
"""Before the agent is looked at: code that ran at its start is given back 45 s after a baseline was put in force (docs/adr/0032)."""
_READ = """
p=$(systemctl show -P MainPID ringfence-agent); cd /proc/$p
echo $p
wc -w </sys/fs/cgroup/system.slice/ringfence-agent.service/cgroup.procs
sed -n 's/^Rss: *\\([0-9]*\\) kB/\\1/p' smaps_rollup
sed 's/.*) //' stat | cut -d' ' -f12,13
cat task/*/status | sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p'
cat /proc/uptime
"""
_TICKS_S = 100


class Reading(NamedTuple):
    """The agent's counters at one instant."""

    pid: int
    processes: int
    rss_mb: float
    processor_s: float
    wakeups: int
    at: float


def _reading(site: Site) -> Reading:
    pid, processes, rss_kib, ticks, *switches, uptime = site.guest.must(_READ).splitlines()
    return Reading(
        int(pid),
        int(processes),
        int(rss_kib) * 1024 / 1e6,
        sum(map(int, ticks.split())) / _TICKS_S,
        sum(map(int, switches)),
        float(uptime.split()[0]),
    )


@check("the agent at rest: less than 64 MB resident")
def _rests(site: Site) -> str:
    site.office.in_force(NEXT_S)
    time.sleep(SETTLE_S)
    before = _reading(site)
    time.sleep(site.rest_s)
    after = _reading(site)
    assert after.pid == before.pid, "the agent was started anew"
    rss_mb, passed = max(before.rss_mb, after.rss_mb), after.at - before.at
    share = (after.processor_s - before.processor_s) / passed
    wakeups = (after.wakeups - before.wakeups) / passed
    said = (
        f"{rss_mb:.1f} MB in {after.processes} process; over {passed / 60:.1f} min, reports every 10 s: {share:.2%} of an "
        f"emulated processor, {wakeups:.1f} wake-ups a second"
    )
    assert rss_mb < MAX_RSS_MB, said
    return said
