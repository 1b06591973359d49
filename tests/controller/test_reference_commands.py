"""`ringfence reference` and `ringfence attest learn` against a served controller."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import uefi
from contract.authenticode import authenticode_sha256
from contract.corim import parse_corim
from contract.references import parse_reference_toml
from controller import cli as admin
from tests.contract.boots import DBX, secure
from tests.contract.test_authenticode import IMAGE
from tests.controller.test_commands import Running

DIGEST = hashlib.sha256(b"kernel").hexdigest()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    try:
        running.login()
        assert running.ringfence("site", "create", "factory").returncode == 0
        yield running
    finally:
        running.stop()


def announce(controller: Running, *arguments: object) -> tuple[int, str]:
    """Run the command; exit code, and output or complaint."""
    common = ("--site", "factory", "--stage", "kernel", "--reason", "monthly update")
    done = controller.ringfence("reference", "announce", *common, *arguments)
    return done.returncode, done.stdout + done.stderr


def listed(controller: Running, *arguments: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        controller.ringfence("reference", "list", "--json", *arguments).stdout
    )
    return found


def test_values_are_announced_listed_carried_over_and_withdrawn(controller: Running, tmp_path: Path) -> None:
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(IMAGE)
    code, said = announce(
        controller, "--from-file", vmlinuz, "--from", "2026-11-23T22:00+01:00", "--note", "6.1"
    )
    assert (code, said) == (0, "reference 1: expected at factory from " + said.partition("from ")[2])
    [one] = listed(controller)
    assert one["reference"] == {
        "site": "factory",
        "values": {"kernel": [authenticode_sha256(IMAGE).hex(), hashlib.sha256(IMAGE).hexdigest()]},
        "valid_from": 1795467600.0,
        "note": "6.1",
    }
    assert announce(controller, "--sha256", DIGEST, "--from", "now", "--supersedes", "0" * 64)[0] == 0
    shown = controller.ringfence("reference", "list", "--site", "factory").stdout
    assert DIGEST[:16] in shown
    assert "monthly update" in shown
    toml, corim = tmp_path / "all.toml", tmp_path / "all.corim"
    assert controller.ringfence("reference", "export", "--out", toml).returncode == 0
    assert controller.ringfence("reference", "export", "--format", "corim", "--out", corim).returncode == 0
    sets = parse_reference_toml(toml.read_bytes())
    assert len(sets) == 2
    assert parse_corim(corim.read_bytes()) == sets
    for file in (toml, corim):
        done = controller.ringfence("reference", "import", file, "--reason", "from the other controller")
        assert done.returncode == 0, done.stderr
    assert len(listed(controller)) == 6
    assert controller.ringfence("reference", "withdraw", 1, "--reason", "wrong kernel").returncode == 0
    again = controller.ringfence("reference", "withdraw", 1, "--reason", "x")
    assert again.returncode == admin.REFUSED
    assert "reference.closed" in again.stderr
    assert len(listed(controller)) == 5
    assert len(listed(controller, "--all")) == 6


def test_a_revocation_list_is_announced_from_its_variable(controller: Running, tmp_path: Path) -> None:
    boot = secure()
    event = next(event for event in boot.log.events if event.index == DBX)
    variable = tmp_path / f"dbx-{uefi.IMAGE_SECURITY}"
    variable.write_bytes(b"\x27\0\0\0" + uefi.parse_variable(event.untrusted_data).value)
    arguments = (
        "--stage",
        "revocation",
        "--from-file",
        variable,
        "--from",
        "now",
        "--os-release",
        "debian 12",
    )
    assert announce(controller, *arguments)[0] == 0
    [one] = listed(controller)
    assert one["reference"]["values"] == {"revocation": [event.sha256.hex()]}  # type: ignore[index]
    assert one["reference"]["os_release"] == "debian 12"  # type: ignore[index]


def test_what_cannot_be_meant_is_refused(controller: Running) -> None:
    for arguments, code in (
        (("--from", "now"), admin.USAGE),
        (("--sha256", DIGEST[:-1], "--from", "now"), admin.USAGE),
        (("--sha256", DIGEST.upper(), "--from", "now"), admin.USAGE),
        (("--sha256", DIGEST, "--from", "tonight"), admin.USAGE),
        (("--sha256", DIGEST), admin.USAGE),
        (("--sha256", DIGEST, "--from", "now", "--until", "2020-01-01"), admin.REFUSED),
        (("--sha256", DIGEST, "--from", "now", "--supersedes", DIGEST), admin.REFUSED),
    ):
        assert announce(controller, *arguments)[0] == code, arguments
    assert listed(controller) == []


def test_files_and_nodes_that_are_none_are_refused(controller: Running, tmp_path: Path) -> None:
    broken = tmp_path / "broken.efi"
    broken.write_bytes(IMAGE[:300])
    code, said = announce(controller, "--from-file", broken, "--from", "now")
    assert code == admin.REFUSED
    assert "image.malformed" in said
    update = tmp_path / "DBXUpdate.bin"
    update.write_bytes(IMAGE)
    code, said = announce(controller, "--stage", "revocation", "--from-file", update, "--from", "now")
    assert (code, "variable.unsupported" in said, "efivars" in said) == (admin.REFUSED, True, True)
    signed = tmp_path / "x.corim"
    signed.write_bytes(b"\xd2\x80")
    done = controller.ringfence("reference", "import", signed, "--reason", "x")
    assert (done.returncode, "corim." in done.stderr) == (admin.REFUSED, True)
    nowhere = controller.ringfence(
        *("reference", "announce", "--site", "nowhere", "--stage", "kernel", "--sha256", DIGEST),
        *("--from", "now", "--reason", "x"),
    )
    assert "site.unknown" in nowhere.stderr
    for command in (("reference", "accept", 7, "--reason", "x"), ("attest", "learn", "press-1")):
        done = controller.ringfence(*command)
        assert done.returncode == admin.REFUSED, done.stderr
        assert ".unknown" in done.stderr
