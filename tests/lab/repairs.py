"""What the agent may not change itself: its unit is a user's, and the unit for repairs does it for a moment (agent/repairing.py)."""

from __future__ import annotations

import time

from tests.lab.checks import NEXT_S, Site, agent_pid, check
from tests.lab.office import NODE

_UNIT = "ringfence-repair.service"
_FILE = "/etc/lab.conf"
_SETTING = "/proc/sys/vm/mmap_rnd_bits"
"""For root's eyes alone."""
_GUARD = "/etc/modprobe.d/00-ringfence.conf"
_MORE = f"""
[sysctl]

[[sysctl.set]]
key = "vm.mmap_rnd_bits"
value = "30"
reason = "the lab"

[files]

[[files.file]]
path = "{_FILE}"
mode = "0644"
repair = "mode"
reason = "the lab"

[modules]

[[modules.block]]
names = ["dccp"]
reason = "the lab"

[time]
synchronised = true
"""
_TAMPERED = f"echo 28 > {_SETTING}; chmod 0666 {_FILE}"


_AS_THE_AGENT = (
    "nsenter -t {pid} -m setpriv --reuid=ringfence-agent --regid=ringfence-agent --clear-groups "
    "--inh-caps=+sys_ptrace,+dac_read_search --ambient-caps=+sys_ptrace,+dac_read_search sh -c "
)
_MODULES = "/usr/lib/modules/$(uname -r)/modules.builtin"


def _is_mended(site: Site) -> bool:
    return site.guest.run(f"cat {_SETTING}; stat -c %a {_FILE}; ls {_GUARD}").out.split() == [
        "30",
        "644",
        _GUARD,
    ]


def _as_before(site: Site) -> bool:
    return site.guest.run(f"cat {_SETTING}; stat -c %a {_FILE}; ls {_GUARD}").out.split() == ["28", "666"]


def _ended(site: Site) -> bool:
    return site.guest.run(f"systemctl is-active {_UNIT}").out.strip() == "inactive"


@check(
    "the agent is not root, and cannot write what it holds; what is wrong is mended by ringfence-repair, which ends when it is done"
)
def _mends(site: Site) -> str:
    site.guest.must(f"touch {_FILE}; {_TAMPERED}")
    pid = agent_pid(site)
    uid = site.guest.must(f"stat -c %U /proc/{pid}").strip()
    assert uid == "ringfence-agent", uid
    site.office.publish(_MORE)
    began = time.monotonic()
    site.office.until("all is as the baseline wants it", lambda: _is_mended(site), NEXT_S, site.office.said)
    adopted_s = time.monotonic() - began
    site.office.until("the unit for repairs has ended", lambda: _ended(site), NEXT_S)
    site.guest.must(f"chmod 0666 {_FILE}")
    began = time.monotonic()
    site.office.until("the file is put back", lambda: _is_mended(site), NEXT_S, site.office.said)
    return f"as wanted {adopted_s:.0f} s after the push; a file's mode, with the unit at rest, in {time.monotonic() - began:.1f} s (emulated)"


@check("a setting that root alone may read, and the kernel's word on its clock, are seen all the same")
def _sees(site: Site) -> str:
    def unseen() -> list[str]:
        return [
            f"{each['section']} {each['key']}: {each['wanted']}"
            for each in site.office.node()["drifts"]
            if each["found"] == "?"
        ]

    since = time.time()
    site.office.until(
        "a report came",
        lambda: site.office.node()["summary"]["last_report_at"] > since,
        NEXT_S,
        site.office.said,
    )
    mode = site.guest.must(f"stat -c %a {_SETTING}").strip()
    assert mode == "600", mode
    assert unseen() == [], unseen()
    inside = _AS_THE_AGENT.format(pid=agent_pid(site))
    hidden = site.guest.run(f"{inside} 'head -c 20 {_MODULES}'")
    seen = site.guest.run(f"{inside} 'head -c 20 /proc/1/root{_MODULES}'")
    assert hidden.code != 0 and seen.code == 0 and seen.out.startswith("kernel/"), (hidden, seen)
    clock = [each["found"] for each in site.office.node()["drifts"] if each["section"] == "time"]
    return f"nothing that could not be looked at; the clock: {', '.join(clock) or 'synchronised'}"


@check("the next baseline wants none of it: all is put back as it was")
def _undoes(site: Site) -> str:
    site.office.publish()
    site.office.until("all is as it was before", lambda: _as_before(site), NEXT_S, site.office.said)
    since = time.time()
    site.office.in_force(NEXT_S, since=since)
    told = site.office.admin("events", "--node", NODE, "--limit", "200", "--json")
    wrong = [each for each in ("repair-failed", "undo-failed", "repairs.unavailable") if each in told]
    assert not wrong and "files.healed" in told, wrong
    site.guest.must(f"rm {_FILE}")
    return "setting, mode and file as they were; no repair failed"
