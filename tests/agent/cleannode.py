"""A clean Debian in namespaces of its own, and the agent's machine side over it: `python -m tests.agent.cleannode BASELINE FOLDER`

BASELINE may be `draft`: then `ringfence-agent learn` writes it first, `check` takes it, and it is applied to the same node.

Run by `unshare --pid --fork --mount --mount-proc`, inside a network namespace: nothing here can reach the machine's own
settings. Kernel settings that belong to no namespace are plain files that lie over /proc/sys, with Debian's own values.
Writes FOLDER/found.json: what was there before, after the first pass and after the second, by `stat`, `nft` and /proc/sys.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.agent.rig import CONTROLLER, NODE, Rig, nft
from tests.parts.bustree import BRIDGE, NVME, Card, PciTree
from tests.parts.usbtree import KNOWN_KEYBOARD, UsbTree

DEBIAN = {
    "dev.tty.ldisc_autoload": "1",
    "fs.protected_fifos": "1",
    "fs.protected_hardlinks": "1",
    "fs.protected_regular": "2",
    "fs.protected_symlinks": "1",
    "fs.suid_dumpable": "2",
    "kernel.dmesg_restrict": "1",
    "kernel.kexec_load_disabled": "0",
    "kernel.kptr_restrict": "0",
    "kernel.modules_disabled": "0",
    "kernel.perf_event_paranoid": "3",
    "kernel.randomize_va_space": "2",
    "kernel.sysrq": "438",
    "kernel.tainted": "0",
    "kernel.unprivileged_bpf_disabled": "2",
    "kernel.yama.ptrace_scope": "0",
    "net.core.bpf_jit_harden": "0",
    "vm.unprivileged_userfaultfd": "0",
}
"""What a stock Debian 12 has where no namespace has its own: its kernel's defaults and systemd's sysctl.d."""
NETWORK = {
    "net.ipv4.conf.all.accept_redirects": "1",
    "net.ipv4.conf.all.accept_source_route": "0",
    "net.ipv4.conf.all.arp_ignore": "0",
    "net.ipv4.conf.all.rp_filter": "2",
    "net.ipv4.conf.all.secure_redirects": "1",
    "net.ipv4.conf.all.send_redirects": "1",
    "net.ipv4.icmp_echo_ignore_broadcasts": "1",
    "net.ipv4.icmp_ignore_bogus_error_responses": "1",
    "net.ipv4.ip_forward": "0",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv6.conf.all.accept_ra": "1",
    "net.ipv6.conf.all.accept_redirects": "1",
    "net.ipv6.conf.all.accept_source_route": "0",
    "net.ipv6.conf.all.forwarding": "0",
}
"""What each network namespace has, set to the same."""
SETTINGS = {**DEBIAN, **NETWORK}
_LAID_OVER = ("dev", "fs", "kernel", "net/core", "vm")
_KEPT = ("kernel/random/boot_id", "kernel/osrelease", "kernel/cap_last_cap")
_PASS_S = 1.5
_LONGEST_S = 30.0
_NETWORK_CARD = Card("8086", "1521", "020000", "igb")
_OF_THE_SYSTEM = ("/proc", "/sys", "/dev", "/run")


def _at(key: str) -> Path:
    return Path("/proc/sys", *key.split("."))


def lay_over() -> None:
    """Put Debian's values where the machine's own would be read and written."""
    kept = {path: (Path("/proc/sys") / path).read_text() for path in _KEPT}
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for folder in _LAID_OVER:
        subprocess.run(["mount", "-t", "tmpfs", "laid-over", f"/proc/sys/{folder}"], check=True)
    for path, text in kept.items():
        (Path("/proc/sys") / path).parent.mkdir(parents=True, exist_ok=True)
        (Path("/proc/sys") / path).write_text(text)
    for key, value in SETTINGS.items():
        _at(key).parent.mkdir(parents=True, exist_ok=True)
        _at(key).write_text(value + "\n")
    while subprocess.run(["umount", "-l", "/dev/shm"], capture_output=True).returncode == 0:
        pass  # the machine may have laid several over each other
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev,nosuid", "shm", "/dev/shm"], check=True)


def take_away(needed: list[Path]) -> list[str]:
    """Unmount what this machine has mounted besides a Debian's own; return what could not go: the test stands on it."""
    held = {"/", *(str(each) for path in needed for each in (path, *path.parents))}
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    kept = []
    for point in reversed([line.split(" ")[4] for line in table]):
        if point in held and point != "/":
            kept.append(point)
        elif point not in held and not point.startswith(_OF_THE_SYSTEM):
            subprocess.run(["umount", "-l", point], check=True)
    return kept


def hardware(sysfs: Path) -> None:
    """Build what such a machine has: a keyboard, a disk, a bridge, a disk's controller and a network card."""
    UsbTree(sysfs).plug(KNOWN_KEYBOARD)
    cards = PciTree(sysfs)
    for number, card in enumerate((BRIDGE, NVME, _NETWORK_CARD)):
        cards.plug(f"0000:00:{number:02x}.0", card)
    disk = sysfs / "block/nvme0n1"
    disk.mkdir(parents=True)
    for name, value in {
        "size": "1000215216",
        "dev": "259:0",
        "removable": "0",
        "ro": "0",
        "serial": "S64",
    }.items():
        (disk / name).write_text(value + "\n")


def witnessed(root: Path) -> dict[str, object]:
    """Return the settings, the rules with their handles, and each file's facts with the times of its last change."""
    files = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        files[str(path.relative_to(root))] = [
            oct(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_size, facts.st_ino, facts.st_ctime_ns,
        ]  # fmt: skip
    return {
        "files": files,
        "settings": {key: _at(key).read_text().split() for key in SETTINGS},
        "written": {key: _at(key).stat().st_mtime_ns for key in DEBIAN},
        "rules": nft("-a", "-s", "list", "ruleset"),
    }


def learned(folder: Path) -> bytes:
    """Return what the command writes about this node, after the command has checked it."""
    config, draft = folder / "agent.toml", folder / "draft.toml"
    config.write_text(
        f'node = "{NODE}"\n[controller]\nurl = "https://{CONTROLLER}:8440"\nca = "/nowhere"\n'
        f'[roots]\nroot = "{folder}/root"\nsysfs = "{folder}/sys"\n'
    )
    agent = [sys.executable, "-m", "agent.main"]
    done = subprocess.run(
        [*agent, "learn", "--config", config, "--output", draft], capture_output=True, text=True, check=True
    )
    (folder / "left-out").write_text(done.stderr)
    subprocess.run([*agent, "check", draft], check=True)
    return draft.read_bytes()


def settle(rig: Rig) -> None:
    """Wait until passes change nothing any more: a busy machine takes longer for one than a quiet one."""
    deadline, before, since = time.monotonic() + _LONGEST_S, None, time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < _PASS_S:
        time.sleep(0.1)
        settings = [_at(key).read_text() for key in SETTINGS]
        now = [settings, rig.call(lambda: [sorted(rig.loop.machine.drifts), len(rig.loop.machine.healed)])]
        if now != before or not rig.call(
            lambda: rig.loop.machine.drifts.keys() >= rig.loop.machine.probes.keys()
        ):
            before, since = now, time.monotonic()


def main() -> None:
    """Adopt the baseline, look once more, and write down what was seen."""
    folder = Path(sys.argv[2])
    root = folder / "root"
    lay_over()
    kept_mounts = take_away([Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), folder])
    hardware(folder / "sys")
    text = learned(folder) if sys.argv[1] == "draft" else Path(sys.argv[1]).read_bytes()
    rig = Rig(folder, root=root, name=Path(sys.argv[1]).stem)
    rig.start()
    try:
        found: dict[str, object] = {"before": witnessed(root), "kept_mounts": kept_mounts}
        rig.adopt(text, 1, 1)
        for name in ("first", "second"):
            if name == "second":
                rig.call(rig.loop.machine.healed.clear)
            rig.loop.wake()
            settle(rig)
            drifts = rig.call(lambda: [d for each in rig.loop.machine.drifts.values() for d in each])
            found[name] = {
                **witnessed(root),
                "drifts": [[d.section, d.key, d.wanted, d.found] for d in drifts],
                "healed": rig.call(lambda: [f"{d.section} {d.key}" for d in rig.loop.machine.healed]),
                "kinds": rig.kinds(),
            }
    finally:
        rig.stop()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
