"""Credentials made in Python, opened by real TPM simulators; quotes of their keys verified. Witness: tpm2-tools."""

from __future__ import annotations

import hashlib
import secrets
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import tpm
from contract.binding import BOOT_PCRS
from contract.credential import kdfa, kdfe, make_credential
from contract.enrolment import check_ak, check_ek
from contract.errors import Rejected
from contract.quote import AttestationKey, verify_quote
from tests.contract.forge import Case, Forger
from tests.parts.swtpm import SoftwareTpm

WANTED = BOOT_PCRS
STORAGE_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt"
SIGNING_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
LOG = Case("good-rsa").read("eventlog.bin")


class Machine:
    """A simulator and tpm2-tools on it. The EK here has no policy, so that every type opens with an empty password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.tpm = SoftwareTpm.manufacture(folder)
        self.tpm.start()
        self.tpm.extend_from_log(LOG)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of tpm2-tools in the folder."""
        self.call("tpm2_flushcontext", "-t")
        return self.call(*command)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.tpm.environment, capture_output=True, text=True
        )

    def must(self, *command: str) -> None:
        done = self.run(*command)
        assert done.returncode == 0, done.stderr

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def keys(self, ek: str, ak: str, name_algorithm: str) -> tuple[bytes, bytes]:
        """Make an EK-like primary and an AK under it; return both as TPM2B_PUBLIC."""
        self.must("tpm2_createprimary", "-Q", "-C", "e", "-g", name_algorithm, "-G", ek, "-a", STORAGE_ATTRIBUTES,
                  "-c", "ek.ctx")  # fmt: skip
        self.must("tpm2_create", "-Q", "-C", "ek.ctx", "-g", name_algorithm, "-G", ak, "-a", SIGNING_ATTRIBUTES,
                  "-u", "ak.pub", "-r", "ak.priv")  # fmt: skip
        self.must(
            "tpm2_load",
            "-Q",
            "-C",
            "ek.ctx",
            "-u",
            "ak.pub",
            "-r",
            "ak.priv",
            "-c",
            "ak.ctx",
            "-n",
            "ak.name",
        )
        self.must("tpm2_readpublic", "-Q", "-c", "ek.ctx", "-f", "tss", "-o", "ek.pub", "-n", "ek.name")
        return self.read("ek.pub"), self.read("ak.pub")

    def keys_again(self, ek: str = "ecc256:null:aes128cfb") -> None:
        """Load the same keys after a reboot, which empties the TPM's memory and not its seeds."""
        self.must("tpm2_createprimary", "-Q", "-C", "e", "-g", "sha256", "-G", ek, "-a", STORAGE_ATTRIBUTES,
                  "-c", "ek.ctx")  # fmt: skip
        self.must("tpm2_load", "-Q", "-C", "ek.ctx", "-u", "ak.pub", "-r", "ak.priv", "-c", "ak.ctx")

    def activate(self, blob: bytes, encrypted: bytes) -> bytes | None:
        """TPM2_ActivateCredential; None when the TPM refuses."""
        (self.folder / "cred").write_bytes(struct.pack(">II", 0xBADCC0DE, 1) + blob + encrypted)
        done = self.run(
            "tpm2_activatecredential", "-Q", "-c", "ak.ctx", "-C", "ek.ctx", "-i", "cred", "-o", "secret"
        )
        return self.read("secret") if done.returncode == 0 else None

    def quote(self, qualifying: bytes, hash_name: str = "sha256") -> tuple[bytes, bytes, dict[int, bytes]]:
        pcrs = "sha256:" + ",".join(map(str, sorted(WANTED)))
        self.must(
            "tpm2_quote",
            "-Q",
            "-g",
            hash_name,
            "-c",
            "ak.ctx",
            "-l",
            pcrs,
            "-q",
            qualifying.hex(),
            "-m",
            "q.msg",
            "-s",
            "q.sig",
        )
        self.must("tpm2_pcrread", "-Q", pcrs, "-o", "pcrs.bin")
        raw = self.read("pcrs.bin")
        values = {pcr: raw[32 * n : 32 * n + 32] for n, pcr in enumerate(sorted(WANTED))}
        return self.read("q.msg"), self.read("q.sig"), values


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("tpm"))
    yield made
    made.tpm.close()


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("neighbour"))
    yield made
    made.tpm.close()


@pytest.mark.parametrize(
    ("ek", "ak", "name_algorithm"),
    [
        ("rsa2048:null:aes128cfb", "ecc256:ecdsa-sha256:null", "sha256"),
        ("rsa3072:null:aes256cfb", "rsa2048:rsassa-sha256:null", "sha384"),
        ("ecc256:null:aes128cfb", "ecc256:ecdsa-sha256:null", "sha256"),
        ("ecc384:null:aes256cfb", "ecc384:ecdsa-sha384:null", "sha384"),
    ],
)
def test_a_real_tpm_opens_the_credential_and_its_quote_is_verified(
    machine: Machine, ek: str, ak: str, name_algorithm: str
) -> None:
    ek_public, ak_public = machine.keys(ek, ak, name_algorithm)
    assert check_ak(ak_public).name == machine.read("ak.name")
    assert check_ek(ek_public).name == machine.read("ek.name")
    secret = secrets.token_bytes(32)
    assert machine.activate(*make_credential(ek_public, machine.read("ak.name"), secret)) == secret
    qualifying = hashlib.sha256(ek.encode()).digest()
    key = check_ak(ak_public)
    attest, signature, values = machine.quote(qualifying, key.hash)
    quote = verify_quote(
        AttestationKey.from_public(ak_public, ek_public),
        attest,
        signature,
        qualifying_data=qualifying,
        pcrs=values,
        wanted_pcrs=WANTED,
        previous=None,
    )
    assert {pcr: quote.pcrs[pcr] for pcr in WANTED} == {pcr: Case("good-rsa").all_pcrs[pcr] for pcr in WANTED}


def test_b01_ak_of_one_tpm_with_the_ek_of_another_is_rejected(machine: Machine, neighbour: Machine) -> None:
    ek_public, ak_public = machine.keys("ecc256:null:aes128cfb", "ecc256:ecdsa-sha256:null", "sha256")
    other_ek, other_ak = neighbour.keys("ecc256:null:aes128cfb", "ecc256:ecdsa-sha256:null", "sha256")
    secret = secrets.token_bytes(32)
    # The neighbour's EK opens nothing for our AK's name, and our EK nothing for the neighbour's.
    assert neighbour.activate(*make_credential(other_ek, tpm.name_of(ak_public), secret)) is None
    assert machine.activate(*make_credential(ek_public, tpm.name_of(other_ak), secret)) is None
    assert machine.activate(*make_credential(other_ek, tpm.name_of(ak_public), secret)) is None
    # And a quote of our AK does not pass as one under the neighbour's EK.
    attest, signature, values = machine.quote(b"q" * 32)
    with pytest.raises(Rejected) as caught:
        verify_quote(
            AttestationKey.from_public(ak_public, other_ek),
            attest,
            signature,
            qualifying_data=b"q" * 32,
            pcrs=values,
            wanted_pcrs=WANTED,
            previous=None,
        )
    assert caught.value.code == "quote.signer"


def test_b03_a_credential_with_one_byte_changed_does_not_open(machine: Machine) -> None:
    ek_public, ak_public = machine.keys("ecc256:null:aes128cfb", "ecc256:ecdsa-sha256:null", "sha256")
    blob, encrypted = make_credential(ek_public, tpm.name_of(ak_public), b"s" * 32)
    assert machine.activate(blob, encrypted) == b"s" * 32
    for at in (5, len(blob) - 1):
        changed = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        assert machine.activate(changed, encrypted) is None


def test_a_real_reboot_raises_the_reset_counter_and_keeps_the_keys(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "tpm")
    try:
        ek_public, ak_public = machine.keys("ecc256:null:aes128cfb", "ecc256:ecdsa-sha256:null", "sha256")
        key = AttestationKey.from_public(ak_public, ek_public)

        first = machine.quote(b"1" * 32)
        before = verify_quote(key, first[0], first[1], qualifying_data=b"1" * 32, pcrs=first[2],
                              wanted_pcrs=WANTED, previous=None)  # fmt: skip
        machine.call("tpm2_shutdown", "-c")
        machine.tpm.reboot(LOG)
        machine.keys_again()
        second = machine.quote(b"2" * 32)
        after = verify_quote(key, second[0], second[1], qualifying_data=b"2" * 32, pcrs=second[2],
                             wanted_pcrs=WANTED, previous=before.counters)  # fmt: skip
        assert after.rebooted
        with pytest.raises(Rejected) as caught:
            verify_quote(key, first[0], first[1], qualifying_data=b"1" * 32, pcrs=first[2],
                         wanted_pcrs=WANTED, previous=after.counters)  # fmt: skip
        assert caught.value.code == "quote.counters"
    finally:
        machine.tpm.close()


def test_names_and_secrets_of_the_wrong_kind_are_our_own_fault() -> None:
    forger = Forger("ecc256")
    for secret in (b"", b"s" * 33):
        with pytest.raises(ValueError, match="a secret of"):
            make_credential(forger.ek_public, b"n" * 34, secret)
    with pytest.raises(Rejected) as caught:
        make_credential(forger.ak_public, b"n" * 34, b"s" * 32)
    assert caught.value.code == "ek.attributes"


def test_the_seed_is_what_the_caller_gave() -> None:
    asked = []

    def random(size: int) -> bytes:
        asked.append(size)
        return b"\7" * size

    blobs = {
        make_credential(Case("good-rsa").read("ek.tpm2b"), b"n" * 34, b"s" * 32, random=random)[0]
        for _ in "ab"
    }
    assert (asked, len(blobs)) == ([32, 32], 1)


def test_key_derivation_is_as_long_as_asked() -> None:
    assert len(kdfa(tpm.ALG_SHA256, b"k", b"STORAGE", b"u", b"v", bits=384)) == 48
    assert len(kdfe(tpm.ALG_SHA256, b"z", b"IDENTITY", b"u", b"v", bits=384)) == 48
    assert kdfa(tpm.ALG_SHA384, b"k", b"L", b"", b"", bits=128) != kdfa(
        tpm.ALG_SHA384, b"k", b"M", b"", b"", bits=128
    )
