"""The TPM side against a real software TPM; witnesses are tpm2-tools and the controller's own verification."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.tpm import Tpm, TpmBusy, TpmGone, TpmUnavailable
from contract import tpm as wire_tpm
from contract.binding import QUOTED_PCRS
from contract.credential import make_credential
from contract.quote import AttestationKey, verify_quote
from tests.parts.swtpm import EkAuthority, SoftwareTpm

LOG = Path(__file__).resolve().parents[1] / "vectors/good-rsa/eventlog.bin"
NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    folder = tmp_path_factory.mktemp("tpm")
    tpm = SoftwareTpm.manufacture(folder, EkAuthority(folder / "ca"))
    yield tpm
    tpm.close()


@pytest.fixture
def powered(made: SoftwareTpm) -> SoftwareTpm:
    made.reboot(LOG.read_bytes())
    return made


@pytest.fixture
def tpm(powered: SoftwareTpm) -> Iterator[Tpm]:
    opened = Tpm(powered.tcti)
    yield opened
    opened.close()


def test_ek_certificate_is_of_the_ek_and_by_the_authority(
    tpm: Tpm, made: SoftwareTpm, tmp_path: Path
) -> None:
    public, certificate = tpm.endorsement()
    (tmp_path / "ek.der").write_bytes(certificate)
    shown = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-in", tmp_path / "ek.der", "-noout", "-modulus"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert public[-256:].hex().upper() in shown


@pytest.mark.parametrize(
    ("ek", "ak"), [("rsa2048", "ecc256"), ("rsa2048", "rsa2048"), ("ecc384", "ecc256"), ("ecc256", "ecc256")]
)
def test_credential_made_without_a_tpm_opens_here_and_a_foreign_one_does_not(
    powered: SoftwareTpm, ek: str, ak: str
) -> None:
    tpm = Tpm(powered.tcti, ek=ek, ak=ak)  # type: ignore[arg-type]
    try:
        blobs = tpm.create_ak()
        ek_public, _ = tpm.endorsement()
        name = wire_tpm.name_of(blobs.public)
        blob, secret = make_credential(ek_public, name, b"s" * 32)
        assert tpm.activate(blob, secret) == b"s" * 32
        other_name = name[:-1] + bytes([name[-1] ^ 1])
        blob, secret = make_credential(ek_public, other_name, b"s" * 32)
        with pytest.raises(ValueError, match="refused"):
            tpm.activate(blob, secret)
        with pytest.raises(ValueError, match="after the credential"):
            tpm.activate(blob + b"\0", secret)
    finally:
        tpm.close()


@pytest.mark.parametrize("kind", ["ecc256", "rsa2048"])
def test_quote_is_good_for_the_controller_and_for_tpm2_checkquote(
    powered: SoftwareTpm, tmp_path: Path, kind: str
) -> None:
    tpm = Tpm(powered.tcti, ak=kind)  # type: ignore[arg-type]
    blobs = tpm.create_ak()
    ek_public, _ = tpm.endorsement()
    attest, signature, pcrs = tpm.quote(NONCE, sorted(QUOTED_PCRS))
    tpm.close()
    key = AttestationKey.from_public(blobs.public, ek_public)
    verify_quote(
        key, attest, signature, qualifying_data=NONCE, pcrs=pcrs, wanted_pcrs=QUOTED_PCRS, previous=None
    )
    (tmp_path / "ak.pub").write_bytes(blobs.public)
    (tmp_path / "attest").write_bytes(attest)
    (tmp_path / "sig").write_bytes(signature)
    witness = subprocess.run(
        ["tpm2_checkquote", "-u", "ak.pub", "-m", "attest", "-s", "sig", "-q", NONCE.hex(), "-g", "sha256"],
        cwd=tmp_path,
        env=powered.environment,
        capture_output=True,
        text=True,
    )
    assert witness.returncode == 0, witness.stderr


def test_attestation_key_is_the_same_after_power_loss(powered: SoftwareTpm) -> None:
    tpm = Tpm(powered.tcti)
    blobs = tpm.create_ak()
    tpm.quote(NONCE, [0])
    powered.reboot()
    # The very next call finds the handles gone, loads anew and answers.
    attest, _, pcrs = tpm.quote(NONCE, [1])
    tpm.close()
    again = Tpm(powered.tcti)
    again.use_ak(blobs)
    again.quote(NONCE, [0])
    again.close()
    assert len(attest) > 100
    assert pcrs[1] == bytes(32)


def test_a08_hanging_tpm_is_busy_at_once_and_comes_back(tpm: Tpm, powered: SoftwareTpm) -> None:
    tpm.create_ak()
    powered.pause()
    began = time.monotonic()
    with pytest.raises(TpmBusy):
        tpm.read_pcrs([0], timeout_s=0.2)
    with pytest.raises(TpmBusy):
        tpm.read_pcrs([0], timeout_s=0.2)
    assert time.monotonic() - began < 5.0  # and not the minute that a slow command may take
    powered.resume()
    assert len(tpm.read_pcrs([0], timeout_s=5.0)[0]) == 32
    tpm.quote(NONCE, [0])


def test_a08_missing_tpm_is_unavailable_and_no_fault(tmp_path: Path) -> None:
    tpm = Tpm(f"swtpm:path={tmp_path}/nothing")
    with pytest.raises(TpmGone):
        tpm.quote(NONCE, [0])
    tpm.close()


def test_a08_lock_out_is_busy_not_broken(powered: SoftwareTpm, tmp_path: Path) -> None:
    tpm = Tpm(powered.tcti)
    tpm.create_ak()
    tpm.close()
    # Dictionary-attack lock-out, provoked: one try allowed, a wrong password given.
    tools = {"env": powered.environment, "capture_output": True, "cwd": tmp_path}
    subprocess.run(
        ["tpm2_dictionarylockout", "-s", "-n", "1", "-t", "1000", "-l", "1000"], check=True, **tools
    )  # type: ignore[call-overload]
    subprocess.run(["tpm2_createprimary", "-C", "o", "-p", "right", "-c", "rf-lock.ctx"], check=True, **tools)  # type: ignore[call-overload]
    for _ in range(3):
        subprocess.run(["tpm2_create", "-C", "rf-lock.ctx", "-P", "wrong"], **tools)  # type: ignore[call-overload]
    subprocess.run(["tpm2_flushcontext", "-t"], check=True, **tools)  # type: ignore[call-overload]
    again = Tpm(powered.tcti)
    try:
        # The AK is made without dictionary-attack protection (noDA): it quotes all the same.
        again.create_ak()
        attest, _, _ = again.quote(NONCE, [0])
        assert attest
    except TpmUnavailable as error:
        assert isinstance(error, TpmBusy), error
    finally:
        again.close()
        subprocess.run(["tpm2_dictionarylockout", "-c"], check=True, **tools)  # type: ignore[call-overload]


def test_slots_left_full_by_killed_agents_are_freed(powered: SoftwareTpm) -> None:
    killed = "import sys, os; from agent.tpm import Tpm; t = Tpm(sys.argv[1]); t.create_ak(); t.quote(b'x', [0]); os._exit(9)"
    for _ in range(4):
        subprocess.run(
            [sys.executable, "-c", killed, powered.tcti], cwd=Path(__file__).resolve().parents[2], check=False
        )
    tpm = Tpm(powered.tcti)
    tpm.create_ak()
    tpm.quote(NONCE, [0])
    tpm.close()


def test_a08_a_machine_without_a_tpm_is_told_so_by_name(tmp_path: Path) -> None:
    tpm = Tpm(f"device:{tmp_path}/tpmrm0")
    with pytest.raises(TpmGone, match=f"there is no TPM: {tmp_path}/tpmrm0 does not exist"):
        tpm.endorsement()
    tpm.close()
