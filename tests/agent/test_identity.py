"""What a TPM holds besides its EK, read from real software TPMs and believed by the controller's own checks; and cloned disks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.tpm import Tpm, TpmForeignKeys
from contract.binding import devid_qualifying_data
from contract.certpath import Trust
from contract.credential import make_credential
from contract.devid import DevId, DevIdTrust, check_devid
from contract.enrolment import check_identity
from contract.errors import Rejected
from contract.messages import DevIdEvidence
from contract.tpm import name_of
from tests.contract.vendor import DAY, DER, PEM, Authority, name, tlv, usage
from tests.parts.swtpm import EkAuthority, SoftwareTpm

CHAIN = 0x01C00100
IDEVID = 0x01C90000
SIGNING = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
ATTESTING = SIGNING + "|restricted|adminwithpolicy"
HARDWARE = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")


class Bench:
    """One TPM with a maker's certificate, and tpm2-tools beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = EkAuthority(folder / "ca")
        self.tpm = SoftwareTpm.manufacture(folder, self.authority)
        self.tpm.start()

    def tool(self, *command: str) -> None:
        """Run a tool, then free the TPM's three slots."""
        for each in (command, ("tpm2_flushcontext", "-t")):
            done = subprocess.run(
                each, cwd=self.folder, env=self.tpm.environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{each}: {done.stderr}"

    def write(self, index: int, content: bytes) -> None:
        """Fill an NV index as a maker does."""
        (self.folder / "content").write_bytes(content)
        attributes = "ownerwrite|ownerread|authread|no_da"
        self.tool("tpm2_nvdefine", hex(index), "-C", "o", "-s", str(len(content)), "-a", attributes)
        self.tool("tpm2_nvwrite", hex(index), "-C", "o", "-i", "content")

    def clear(self, *indices: int) -> None:
        """Take the indices away again."""
        for index in indices:
            self.tool("tpm2_nvundefine", hex(index), "-C", "o")

    def key(self, handle: int, attributes: str) -> ec.EllipticCurvePublicKey:
        """Make a key in the TPM that stays at a handle."""
        scheme = "ecc256:ecdsa-sha256:null" if "restricted" in attributes else "ecc256"
        self.tool("tpm2_createprimary", "-C", "e", "-G", "ecc", "-c", "parent.ctx")
        make = ("tpm2_create", "-C", "parent.ctx", "-G", scheme, "-a", attributes)
        self.tool(*make, "-u", "key.pub", "-r", "key.priv")
        self.tool("tpm2_load", "-C", "parent.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
        self.tool("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", hex(handle))
        self.tool("tpm2_readpublic", "-c", hex(handle), "-f", "pem", "-o", "key.pem")
        key = serialization.load_pem_public_key((self.folder / "key.pem").read_bytes())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("identity"))
    yield made
    made.tpm.close()


def device_certificate(maker: Authority, key: ec.EllipticCurvePublicKey, serial: str) -> bytes:
    """An IDevID certificate as 802.1AR wants it, good now."""
    now = maker.root.not_valid_before_utc
    hardware = tlv(0x30, tlv(0x06, bytes.fromhex("2b06010401")) + tlv(0x04, serial.encode()))
    builder = x509.CertificateBuilder(name("issuer"), name("device", (NameOID.SERIAL_NUMBER, serial)), key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - DAY).not_valid_after(now + 400 * DAY)
    builder = builder.add_extension(usage(digital_signature=True), critical=True)
    names = x509.SubjectAlternativeName([x509.OtherName(HARDWARE, hardware)])
    return (
        builder.add_extension(names, critical=False).sign(maker.issuer_key, hashes.SHA256()).public_bytes(DER)
    )


def believed(tpm: Tpm, evidence: DevIdEvidence, ak_public: bytes, maker: Authority, asked: bytes) -> DevId:
    """Check as the controller does."""
    ek_public, _ = tpm.endorsement()
    trust = DevIdTrust(idevid=Trust(certificates=[maker.root, maker.issuer]))
    at = maker.root.not_valid_before_utc + DAY
    return check_devid(evidence, ak_public, ek_public, trust, qualifying_data=asked, now=at.timestamp())


def test_the_chain_in_nv_leads_to_the_root(bench: Bench) -> None:
    """One run of DER, cut in the middle over two indices, as Intel's processors hold it."""
    issuer, root = (
        x509.load_pem_x509_certificate(path.read_bytes())
        for path in (bench.authority.issuer, bench.authority.root)
    )
    der = issuer.public_bytes(DER)
    tpm = Tpm(bench.tpm.tcti)
    ek_public, certificate = tpm.endorsement()
    assert tpm.endorsement_chain() == b""
    with pytest.raises(Rejected, match="swtpm-localca"):
        check_identity(ek_public, certificate, [root], (), time.time())
    tpm.close()
    bench.tpm.reboot()
    bench.write(CHAIN, der[:500])
    bench.write(CHAIN + 1, der[500:])
    tpm = Tpm(bench.tpm.tcti)
    chain = tpm.endorsement_chain()
    tpm.close()
    bench.tpm.reboot()
    bench.clear(CHAIN, CHAIN + 1)
    assert chain == der
    trust = check_identity(ek_public, certificate, [root], (), time.time(), ek_chain=chain)
    assert (trust.source, trust.kind) == ("certificate", "virtual")


@pytest.mark.parametrize(("attributes", "signer"), [(SIGNING, "ak"), (ATTESTING, "devid")])
def test_a_device_identity_in_nv_is_proved_to_live_beside_the_ak(
    bench: Bench, attributes: str, signer: str
) -> None:
    maker = Authority()
    handle = 0x81020000 + (signer == "devid")
    bench.tpm.reboot()
    certificate = device_certificate(maker, bench.key(handle, attributes), "SN-4711")
    bench.write(IDEVID, certificate + b"\xff" * 32)
    tpm = Tpm(bench.tpm.tcti)
    blobs = tpm.create_ak()
    asked = devid_qualifying_data(enrolment="e1", node="press-1", ak_public=blobs.public)
    [evidence] = tpm.device_identities(asked)
    assert evidence.signer == signer
    found = believed(tpm, evidence, blobs.public, maker, asked)
    assert (found.kind, found.serial) == ("idevid", "SN-4711")
    # What was certified beside one AK is of no use beside another.
    other = tpm.create_ak()
    with pytest.raises(Rejected):
        believed(tpm, evidence, other.public, maker, asked)
    tpm.close()
    bench.tpm.reboot()
    bench.clear(IDEVID)


def test_the_owners_certificate_may_be_a_file_and_a_strangers_is_passed_over(bench: Bench) -> None:
    maker = Authority()
    bench.tpm.reboot()
    ours = device_certificate(maker, bench.key(0x81000010, SIGNING), "L-1")
    stranger = device_certificate(maker, ec.generate_private_key(ec.SECP256R1()).public_key(), "L-2")
    pem = x509.load_der_x509_certificate(ours).public_bytes(PEM)
    tpm = Tpm(bench.tpm.tcti)
    blobs = tpm.create_ak()
    asked = devid_qualifying_data(enrolment="e1", node="press-1", ak_public=blobs.public)
    [evidence] = tpm.device_identities(asked, [stranger, b"no certificate", pem])
    assert believed(tpm, evidence, blobs.public, maker, asked).serial == "L-1"
    assert tpm.device_identities(asked, [stranger]) == []
    tpm.close()


def test_b12_a_cloned_disk_holds_keys_that_another_tpm_cannot_load(bench: Bench, tmp_path: Path) -> None:
    bench.tpm.reboot()
    tpm = Tpm(bench.tpm.tcti)
    blobs = tpm.create_ak()
    ek_public, _ = tpm.endorsement()
    tpm.quote(b"n", [0])
    tpm.close()
    clone = SoftwareTpm.manufacture(tmp_path, bench.authority)
    clone.start()
    try:
        other = Tpm(clone.tcti)
        other.use_ak(blobs)
        for asked in (
            lambda: other.quote(b"n", [0]),
            lambda: other.activate(*make_credential(ek_public, name_of(blobs.public), b"s" * 32)),
        ):
            with pytest.raises(TpmForeignKeys, match="another machine"):
                asked()
        assert other.endorsement()[0] != ek_public
        other.close()
    finally:
        clone.close()
