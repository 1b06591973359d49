"""Evidence of real boots of the lab's guest, verified as an auditor does years later; and by programs that are not ours."""

from __future__ import annotations

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import msgspec
import pytest

from contract import bundle
from contract.bundleaudit import Audit, audit
from contract.eventlog import parse_event_log
from contract.resultkey import load_result_key
from tests.contract.forge import VECTORS
from tests.contract.test_ima_witness import met_at

LAB = VECTORS / "lab"


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `cases.toml` says of a case."""

    what: str
    findings: list[str]
    status: str
    notes: list[str] = []
    partial: list[str] = []
    said: str = ""
    """By the controller's result, of what most likely happened."""
    pcrs: list[int] = []
    """Of the findings."""
    kernel_arguments: list[str] = []
    """Some that the firmware log tells."""


CASES = msgspec.convert(tomllib.loads((LAB / "cases.toml").read_text()), dict[str, Expected])


def files(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (LAB / name).iterdir()}


@cache
def audited(name: str) -> Audit:
    found = files(name)
    return audit(found, load_result_key(found[bundle.RESULT_KEY]))


def test_every_case_has_its_files_and_its_line() -> None:
    assert {path.name for path in LAB.iterdir() if path.is_dir()} == set(CASES)
    for name in CASES:
        assert files(name).keys() <= bundle.NAMES


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_tells_what_happened(name: str) -> None:
    expected, found = CASES[name], audited(name)
    assert sorted({finding.code for finding in found.findings}) == sorted(expected.findings)
    assert [finding.code for finding in found.notes] == expected.notes
    assert found.partial == expected.partial
    assert found.result.ear_status == expected.status
    pcrs = [int(re.findall(r"PCR (\d+)", f.detail)[0]) for f in found.findings if f.code == "boot.pcr"]
    assert pcrs == expected.pcrs
    said = msgspec.json.encode(found.result.appraisal.appraised.findings).decode()
    assert expected.said in said
    assert found.claims["secure_boot"] is (name != "secureboot-off")
    arguments = found.claims["kernel_arguments"]
    assert isinstance(arguments, list) and set(expected.kernel_arguments) <= set(arguments)


@pytest.mark.parametrize("name", CASES)
def test_one_bit_of_the_evidence_makes_it_another(name: str) -> None:
    found = files(name)
    key = load_result_key(found[bundle.RESULT_KEY])
    for part in {bundle.QUOTE, bundle.SIGNATURE, bundle.EVENT_LOG, bundle.IMA_LOG} & found.keys():
        changed = bytearray(found[part])
        changed[len(changed) // 2] ^= 1
        assert not audit({**found, part: bytes(changed)}, key).verified


@pytest.mark.parametrize("name", CASES)
def test_tpm2_checkquote_takes_the_quote(name: str) -> None:
    nonce = files(name)[bundle.EXTRA].decode().strip()
    command = ["tpm2_checkquote", "-Q", "-u", "ak.pem", "-m", "quote.attest", "-s", "quote.sig", "-q"]
    assert subprocess.run([*command, nonce], cwd=LAB / name, capture_output=True).returncode == 0
    other = [*command, nonce[:-2] + f"{int(nonce[-2:], 16) ^ 1:02x}"]
    assert subprocess.run(other, cwd=LAB / name, capture_output=True).returncode != 0


@pytest.mark.parametrize("name", [name for name in CASES if (LAB / name / "eventlog.bin").exists()])
def test_tpm2_eventlog_comes_to_the_same_values(name: str) -> None:
    told = subprocess.run(
        ["tpm2_eventlog", LAB / name / "eventlog.bin"], capture_output=True, text=True, check=True
    ).stdout
    bank = re.search(r"^  sha256:\n((?:    \d+ *: 0x[0-9a-f]+\n)+)", told, re.MULTILINE)
    assert bank is not None
    theirs = {int(pcr): value for pcr, value in re.findall(r"(\d+) *: 0x([0-9a-f]+)", bank[1])}
    quoted = msgspec.json.decode(files(name)[bundle.PCRS])["sha256"]
    assert theirs == {pcr: quoted[str(pcr)] for pcr in theirs}
    assert len(parse_event_log(files(name)[bundle.EVENT_LOG]).events) > 40


def test_evmctl_meets_the_quoted_value_of_the_ima_log(tmp_path: Path) -> None:
    found = files("ima-enforced")
    quoted = msgspec.json.decode(found[bundle.PCRS])["sha256"]
    pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in quoted.items()}
    assert met_at(tmp_path, found[bundle.IMA_LOG], pcrs, pcrs[10]) is not None
