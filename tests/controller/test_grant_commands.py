"""`ringfence grant` and `ringfence breakglass` against a served controller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import cli as admin
from tests.controller.test_commands import Running

WHO = ("--who", "A. Technician", "--company", "Press Works", "--evidence", "contract 4711")
WHY = ("--reason", "drive replaced")


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    try:
        running.login()
        assert running.ringfence("site", "create", "factory").returncode == 0
        yield running
    finally:
        running.stop()


def test_what_cannot_be_meant_is_refused(controller: Running) -> None:
    inside = ("--in", "tcp/22@198.51.100.7")
    for arguments, code in (
        ((*WHO, *WHY, *inside), admin.USAGE),
        ((*WHO, *WHY, "--for", "4h"), admin.USAGE),
        ((*WHO, *WHY, *inside, "--for", "4h", "--until", "2099-01-01"), admin.USAGE),
        ((*WHO, *WHY, *inside, "--for", "4 hours"), admin.USAGE),
        ((*WHO, *WHY, *inside, "--for", "0h"), admin.USAGE),
        ((*WHO, *WHY, "--in", "tcp/22", "--for", "4h"), admin.USAGE),
        ((*WHO, *WHY, "--in", "tcp/@198.51.100.7", "--for", "4h"), admin.USAGE),
        ((*WHO, *WHY, "--in", "icmp/1@198.51.100.7", "--for", "4h"), admin.USAGE),
        ((*WHO, *inside, "--for", "4h"), admin.USAGE),
        ((*WHO, *WHY, "--in", "tcp/99999@198.51.100.7", "--for", "4h"), admin.REFUSED),
        ((*WHO, *WHY, "--in", "tcp/22@vendor.example", "--for", "4h"), admin.REFUSED),
        ((*WHO, *WHY, "--in", "tcp/22@198.51.100.7/24", "--for", "4h"), admin.REFUSED),
        ((*WHO, *WHY, "--usb", "0781", "--for", "4h"), admin.REFUSED),
        ((*WHO, *WHY, *inside, "--for", "4h"), admin.REFUSED),
    ):
        done = controller.ringfence("grant", "request", "press-1", *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert done.stderr.strip()
        assert "Traceback" not in done.stderr
    assert json.loads(controller.ringfence("grant", "list", "--json", "--all").stdout) == []
    for command in (("approve", 1, *WHY), ("revoke", 1, *WHY), ("show", 1)):
        done = controller.ringfence("grant", *command)
        assert (done.returncode, "grant.unknown" in done.stderr) == (admin.REFUSED, True)
    for command in (("issue", "press-1", *WHY), ("list", "press-1"), ("revoke", "press-1", 1, *WHY)):
        done = controller.ringfence("breakglass", *command)
        assert (done.returncode, "node.unknown" in done.stderr) == (admin.REFUSED, True)
    assert (
        controller.ringfence("breakglass", "issue", "press-1", "--count", 0, *WHY).returncode == admin.USAGE
    )
