"""Folders and files from which something is run by itself, besides systemd's units (`agent.units`). Pure: names only.

Timers of old (cron, at), start scripts, programs and rules that systemd, udev, networks, logins and the loader run as root
when something happens. Not here: what a program's own configuration makes it run (a hook of apt, of a web server),
an initramfs, desktop sessions and the profiles of single users.
"""

from __future__ import annotations

_CRON = tuple(f"/etc/cron.{each}" for each in ("d", "hourly", "daily", "weekly", "monthly", "yearly"))
_SPOOLS = ("/var/spool/cron", "/var/spool/cron/crontabs", "/var/spool/cron/atjobs", "/var/spool/at")
_GENERATORS = ("system-generators", "user-generators")
_ENVIRONMENT = ("system-environment-generators", "user-environment-generators")
"""Programs as well, whatever they are named after."""
_AT_SLEEP = ("system-sleep", "system-shutdown")
_NETWORK = (
    *(f"/etc/network/if-{each}.d" for each in ("pre-up", "up", "down", "post-down")),
    "/etc/NetworkManager/dispatcher.d",
    *(f"/etc/NetworkManager/dispatcher.d/{each}" for each in ("pre-up.d", "pre-down.d", "no-wait.d")),
    *(
        f"/etc/networkd-dispatcher/{each}.d"
        for each in ("routable", "dormant", "no-carrier", "off", "carrier")
    ),
    "/etc/dhcp/dhclient-enter-hooks.d",
    "/etc/dhcp/dhclient-exit-hooks.d",
)

LOCAL = (
    *_CRON,
    *_SPOOLS,
    *(
        f"{root}/systemd/{each}"
        for root in ("/etc", "/run", "/usr/local/lib")
        for each in (*_GENERATORS, *_ENVIRONMENT)
    ),
    *(f"{root}/udev/rules.d" for root in ("/etc", "/run", "/usr/local/lib")),
    *_NETWORK,
    "/etc/init.d",
    "/etc/update-motd.d",
    "/etc/xdg/systemd",
    "/var/lib/systemd/linger",
)
"""What is unknown here may be taken away."""
VENDOR = (
    *(f"/usr/lib/systemd/{each}" for each in (*_GENERATORS, *_ENVIRONMENT, *_AT_SLEEP)),
    "/usr/lib/udev/rules.d",
    "/usr/lib/NetworkManager/dispatcher.d",
)
"""The packages' own folders."""
SINGLE = (
    "/etc/crontab",
    "/etc/anacrontab",
    "/etc/rc.local",
    "/etc/rc.d/rc.local",
    "/etc/ld.so.preload",
)
PACKAGED = (
    *_CRON,
    "/etc/init.d",
    "/etc/update-motd.d",
    "/etc/xdg/systemd",
    "/etc/udev/rules.d",
    *_NETWORK,
    *VENDOR,
)
"""Where packages put files."""


def is_vendor(path: str) -> bool:
    """Tell whether a path lies in one of the packages' own folders."""
    return path.startswith(tuple(f"{each}/" for each in VENDOR))
