"""An independent witness: `evmctl` (ima-evm-utils) comes to the same result on every good log, and on bad ones."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract.ima import ImaState, follow
from contract.imalog import read_lines
from contract.imapolicy import ImaPolicy
from contract.imarules import ImaRules
from tests.contract.forge import CASES, PCRS, Case
from tests.contract.imaforge import Log, boot_aggregate, codes, judged, sha256
from tests.contract.imavectors import VECTORS, read_vector

pytestmark = pytest.mark.skipif(shutil.which("evmctl") is None, reason="no evmctl (ima-evm-utils)")
REPLAY = ImaRules(
    ImaPolicy(unknown_files="ignore", violations="ignore", kexec="ignore", boot_aggregate="optional")
)


def evmctl(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["evmctl", *map(str, argv)], capture_output=True, text=True, errors="replace", timeout=60, check=False
    )


def pcr_file(folder: Path, pcrs: Mapping[int, bytes], pcr10: bytes) -> str:
    """Write PCR values as evmctl reads them; returns its argument."""
    values = {number: pcrs.get(number, bytes(32)) for number in range(24)} | {10: pcr10}
    text = "".join(f"PCR-{number:02}: {value.hex(' ').upper()}\n" for number, value in values.items())
    path = folder / "pcrs"
    path.write_text(text)
    return f"sha256,{path}"


def met_at(folder: Path, log: bytes, pcrs: Mapping[int, bytes], pcr10: bytes) -> int | None:
    """Return after which line evmctl finds the value of PCR 10, or None."""
    file = folder / "log"
    file.write_bytes(log)
    options = ("-v", "ima_measurement", "--ignore-violations", "--pcrs", pcr_file(folder, pcrs, pcr10))
    done = evmctl(*options, file)
    found = re.search(r"sha256 PCR-10: succeed at entry (\d+)", done.stdout + done.stderr)
    assert (done.returncode == 0) == (found is not None)
    return int(found.group(1)) if found else None


@pytest.mark.parametrize("name", CASES)
def test_recorded_logs(name: str, tmp_path: Path) -> None:
    case = Case(name)
    log = case.read("ima.bin")
    result = judged(REPLAY, log, case.pcrs[10], pcrs=case.pcrs)
    assert result.caught_up
    assert met_at(tmp_path, log, case.pcrs, case.pcrs[10]) == result.state.lines
    done = evmctl("ima_boot_aggregate", "--pcrs", pcr_file(tmp_path, case.pcrs, case.pcrs[10]))
    _, first = next(read_lines(log))
    assert not isinstance(first, Exception)
    assert f"sha256:{first.digest.hex()}" in done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_log_before_its_end(name: str, tmp_path: Path) -> None:
    case = Case(name)
    log = case.read("ima.bin")
    value, half = bytes(32), 0
    for half, (record, _) in enumerate(read_lines(log), 1):
        value = sha256(value + sha256(record.data))
        if half == 200:
            break
    result = judged(REPLAY, log, value, pcrs=case.pcrs)
    assert (result.caught_up, result.state.lines) == (True, 200)
    assert met_at(tmp_path, log, case.pcrs, value) == 200


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors(path: Path, tmp_path: Path) -> None:
    vector = read_vector(path)
    if vector.offset or vector.state.lines or not vector.witness:
        pytest.skip("not a whole log that evmctl reads")
    result = follow(REPLAY, ImaState(), vector.lines, vector.pcr10, vector.pcrs, offset=0)
    met = met_at(tmp_path, vector.lines, vector.pcrs, vector.pcr10)
    assert met == (result.state.lines if result.caught_up else None)


@pytest.mark.parametrize("template", ["ima-ng", "ima-sig", "ima"])
def test_templates_and_violations(template: str, tmp_path: Path) -> None:
    log = Log(template=template).file("/usr/bin/a", sha256(b"a")).file("/usr/bin/b c", sha256(b"b"))
    if template != "ima":
        log.violation("/var/log/x")
    log.file("/usr/bin/c", sha256(b"c"))
    assert judged(REPLAY, log).state.lines == len(log.lines)
    assert met_at(tmp_path, log.raw, PCRS, log.value) == len(log.lines)


def test_the_aggregate_of_forged_pcrs(tmp_path: Path) -> None:
    done = evmctl("ima_boot_aggregate", "--pcrs", pcr_file(tmp_path, PCRS, bytes(32)))
    assert f"sha256:{boot_aggregate(PCRS).hex()}" in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["rsa:2048", "ec:prime256v1"])
def test_file_signatures(kind: str, tmp_path: Path) -> None:
    key, public, file = tmp_path / "key.pem", tmp_path / "certificate.der", tmp_path / "tool"
    algorithm, _, size = kind.partition(":")
    option = f"rsa_keygen_bits:{size}" if algorithm == "rsa" else f"ec_paramgen_curve:{size}"
    openssl = ["openssl", "genpkey", "-algorithm", algorithm.upper(), "-pkeyopt", option, "-out", str(key)]
    subprocess.run(openssl, check=True, capture_output=True)
    subject = ["-new", "-x509", "-subj", "/CN=signer", "-days", "3650", "-key", str(key)]
    subprocess.run(["openssl", "req", *subject, "-outform", "DER", "-out", str(public)], check=True)
    certificate = x509.load_der_x509_certificate(public.read_bytes())
    pem = certificate.public_bytes(Encoding.PEM).decode()
    key_pem = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    file.write_bytes(b"#!/bin/sh\n")
    done = evmctl("ima_sign", "--sigfile", "--hashalgo", "sha256", "--key", key, file)
    assert done.returncode == 0, done.stderr
    signature = Path(f"{file}.sig").read_bytes()
    rules = ImaRules(ImaPolicy(signers={"factory": pem}))
    digest = sha256(file.read_bytes())
    good = Log().file(file.as_posix(), digest, third=signature)
    for signer in (pem, key_pem):
        assert codes(judged(ImaPolicy(signers={"factory": signer}), good)) == []
    bad = Log().file(file.as_posix(), sha256(b"other"), third=signature)
    assert codes(judged(rules, bad)) == ["ima.signature"]
    for log, verified in ((good, True), (bad, False)):
        raw = tmp_path / "log"
        raw.write_bytes(log.raw)
        pcrs = pcr_file(tmp_path, PCRS, log.value)
        argv = ("-v", "ima_measurement", "--verify-sig", "--key", public, "--pcrs", pcrs, raw)
        witness = evmctl(*argv)
        text = witness.stdout + witness.stderr
        assert ("verification is OK" in text) is verified, text
