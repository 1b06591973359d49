"""Draft of `[sysctl]`: the settings that the shipped baselines name, with the values that they have here."""

from __future__ import annotations

from agent.learning import Draft, entry, section
from agent.probes import Surroundings

KEYS = {
    "dev.tty.ldisc_autoload": "0",
    "fs.protected_fifos": "2",
    "fs.protected_hardlinks": "1",
    "fs.protected_regular": "2",
    "fs.protected_symlinks": "1",
    "fs.suid_dumpable": "0",
    "kernel.dmesg_restrict": "1",
    "kernel.kexec_load_disabled": "1",
    "kernel.kptr_restrict": "2",
    "kernel.perf_event_paranoid": "3",
    "kernel.randomize_va_space": "2",
    "kernel.sysrq": "0",
    "kernel.unprivileged_bpf_disabled": "1",
    "kernel.yama.ptrace_scope": "2",
    "net.core.bpf_jit_harden": "2",
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.all.accept_source_route": "0",
    "net.ipv4.conf.all.arp_ignore": "1",
    "net.ipv4.conf.all.rp_filter": "1",
    "net.ipv4.conf.all.secure_redirects": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.icmp_echo_ignore_broadcasts": "1",
    "net.ipv4.icmp_ignore_bogus_error_responses": "1",
    "net.ipv4.ip_forward": "0",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv6.conf.all.accept_ra": "0",
    "net.ipv6.conf.all.accept_redirects": "0",
    "net.ipv6.conf.all.accept_source_route": "0",
    "net.ipv6.conf.all.forwarding": "0",
    "vm.unprivileged_userfaultfd": "0",
}
"""What the strictest of the shipped baselines asks for; a test compares."""


def draft(around: Surroundings) -> Draft:
    """Return each setting as it is; where it is weaker than shipped, say so."""
    text, left_out = [section("sysctl")], []
    for key, shipped in KEYS.items():
        try:
            value = around.host.sysctl(key)
        except OSError as error:
            left_out.append(f"sysctl: {key}: {error.strerror or error}")
            continue
        decide = "" if value == shipped else f"the strict baseline has {shipped!r}"
        text.append(entry("sysctl.set", {"key": key, "value": value}, decide=decide))
    return Draft("\n".join(text), left_out)
