"""Boots that nobody announced: another command line, another initrd. Each is named, cuts the node off, and is put right."""

from __future__ import annotations

import time

from tests.lab import image
from tests.lab.checks import FIRST_S, NEXT_S, Site, check, cut, findings

_INITRD = "$(readlink -f /boot/initrd.img)"
_ADDED = 4096
"""Zeros behind an archive: the kernel passes over them, and they are measured."""


@check("another kernel command line is found and named, and the node is isolated")
def _command_line(site: Site) -> str:
    since = restarted(site, image.menu(f"{image.KERNEL_ARGUMENTS} lab.changed=1"))
    return named_cut(site, "lab.changed=1", since)


@check(
    "released all the same, and with another initrd instead: found and named, and isolated again",
)
def _initrd(site: Site) -> str:
    since = time.time()
    site.office.release("looked at")
    site.office.until(
        "the node is let go",
        lambda: (
            (seen := site.office.node()["summary"])["posture"] == "normal" and seen["last_report_at"] > since
        ),
        NEXT_S,
        site.office.said,
    )
    site.guest.must(f"head -c {_ADDED} /dev/zero >> {_INITRD}")
    since = restarted(site, image.menu())
    said = named_cut(site, "initrd", since)
    assert "lab.changed" not in said, said
    return said


@check("put back, a person closes the case and the node is healthy")
def _put_back(site: Site) -> str:
    site.guest.must(f"truncate -s -{_ADDED} {_INITRD}")
    since = restarted(site, image.menu())
    site.office.until(
        "nothing is said against the boot",
        lambda: site.office.node()["summary"]["last_report_at"] > since and not findings(site, "boot."),
        NEXT_S,
        site.office.said,
    )
    assert site.office.node()["summary"]["posture"] == "isolated", "released by itself"
    since = time.time()
    site.office.release("put back")
    found = site.office.in_force(NEXT_S, since=since)
    return f"isolated until then; tier {found['summary']['tier']}"


def restarted(site: Site, menu: str) -> float:
    """Boot with this menu; returns since when what is reported is of that boot, by this machine's clock."""
    site.guest.stop()
    since = time.time()
    image.put_menu(site.guest.disk, menu)
    site.guest.start()
    return since


def named_cut(site: Site, what: str, since: float) -> str:
    """Wait until the node is isolated for it; returns what was found."""
    said = site.office.isolated(what, FIRST_S, since=since)
    assert cut(site), "no cut in the kernel"
    return said[:900]
