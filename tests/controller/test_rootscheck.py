"""`ringfence-controller ek-roots check`: what is there, what runs out, what is missing for one TPM."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from contract.errors import Rejected
from controller.config import CONFIG_NAME, EnrolmentConfig
from controller.main import cli
from controller.roots import load_crls, load_device_trust, load_roots
from tests.contract.vendor import DAY, DER, PEM, Authority, name, replaced, tlv

NOW = datetime.datetime.now(datetime.UTC)
CONFIG = """
node_url = "https://localhost:1"
admin_url = "https://localhost:2"
[nodes]
listen = "127.0.0.1:0"
[admins]
listen = "127.0.0.1:0"
"""


class Folder:
    """A controller's folder and the maker whose certificates stand in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.maker = Authority(now=NOW)
        (path / CONFIG_NAME).write_text(CONFIG)
        for folder in ("ek-roots", "crls", "devid-roots/ldevid"):
            (path / folder).mkdir(parents=True)

    def put(self, file: str, *what: x509.Certificate | x509.CertificateRevocationList) -> None:
        form = DER if file.endswith(("der", "crl")) else PEM
        (self.path / file).write_bytes(b"".join(one.public_bytes(form) for one in what))

    def check(self, certificate: bytes | None = None) -> Result:
        command = ["ek-roots", "check", "--dir", str(self.path), "--json"]
        if certificate is not None:
            (self.path / "ek.bin").write_bytes(certificate)
            command += ["--certificate", str(self.path / "ek.bin")]
        return CliRunner().invoke(cli, command)

    def states(self) -> dict[str, tuple[str, str]]:
        found = json.loads(self.check().stdout)["folder"]
        return {
            one["file"]: (one.get("kind", ""), one.get("state", ""))
            for one in found["roots"] + found["lists"]
        }

    def verdict(self, certificate: bytes) -> tuple[int, dict[str, object]]:
        result = self.check(certificate)
        return result.exit_code, json.loads(result.stdout)["certificate"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_every_file_is_told_by_kind_and_state(folder: Folder) -> None:
    maker, key = folder.maker, ec.generate_private_key(ec.SECP256R1())
    infineon = name("Infineon OPTIGA(TM) Root CA", (NameOID.ORGANIZATION_NAME, "Infineon Technologies AG"))
    folder.put("ek-roots/infineon.crt", maker.ca(infineon, key, infineon, key, until=NOW + 365 * DAY))
    folder.put("ek-roots/soon.pem", maker.ca("soon", key, "soon", key, until=NOW + 10 * DAY))
    folder.put("ek-roots/old.der", maker.ca("old", key, "old", key, until=NOW - DAY))
    folder.put("ek-roots/lonely.cer", maker.ca("lonely", key, "nobody", key))
    (folder.path / "ek-roots/broken.pem").write_bytes(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    (folder.path / "ek-roots/README").write_text("not looked at")
    folder.put("crls/fresh.crl", maker.crl(1, 2, issuer="soon", key=key, since=NOW - DAY, until=NOW + DAY))
    folder.put("crls/old.crl", maker.crl(issuer="soon", key=key, since=NOW - 9 * DAY, until=NOW - DAY))
    assert folder.states() == {
        "infineon.crt": ("root", "ok"),
        "soon.pem": ("root", "expires soon"),
        "old.der": ("root", "expired"),
        "lonely.cer": ("intermediate", "no root"),
        "broken.pem": ("", "unusable"),
        "fresh.crl": ("list", "ok"),
        "old.crl": ("list", "expired"),
    }
    result = folder.check()
    assert result.exit_code == 1
    assert json.loads(result.stdout)["folder"]["makers"] == ["Infineon"]
    plain = CliRunner().invoke(cli, ["ek-roots", "check", "--dir", str(folder.path)])
    assert "roots of: Infineon" in plain.stdout and "no root" in plain.stdout


def test_a_folder_that_is_well_says_so_by_its_exit_code(folder: Folder) -> None:
    assert folder.check().exit_code == 1  # empty: nobody is trusted
    folder.put("ek-roots/maker.pem", folder.maker.root, folder.maker.issuer)
    assert folder.check().exit_code == 0


def test_what_is_missing_for_a_certificate_is_named_with_where_to_fetch_it(folder: Folder) -> None:
    maker = folder.maker
    url = "http://pki.example.test/issuer.crt"
    access = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url)
            )
        ]
    )
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(maker.issuer_key.public_key())
    leaf = maker.ek_certificate(more=[(access, False), (by, False)])
    folder.put("ek-roots/maker.pem", maker.root)
    code, verdict = folder.verdict(leaf + b"\xff" * 64)
    assert (code, verdict.get("trusted", False), verdict["code"]) == (1, False, "ek.certificate-path")
    assert by.key_identifier is not None
    assert verdict["missing"] == {"issuer": "'CN=issuer'", "key_id": by.key_identifier.hex(), "urls": [url]}
    assert (verdict["maker"], verdict["kind"]) == ("Infineon", "hardware")
    # With the issuer, what is missing is nothing; without the root, it is the root.
    folder.put("ek-roots/issuer.der", maker.issuer)
    code, verdict = folder.verdict(leaf)
    assert (code, verdict["trusted"]) == (0, True)
    assert verdict["root_sha256"] == maker.root.fingerprint(hashes.SHA256()).hex()
    (folder.path / "ek-roots/maker.pem").unlink()
    _, verdict = folder.verdict(leaf)
    assert verdict["missing"]["issuer"] == "'CN=root'"  # type: ignore[index]


def test_a_certificate_that_no_root_will_help_is_told_with_the_cure(folder: Folder) -> None:
    folder.put("ek-roots/maker.pem", folder.maker.root, folder.maker.issuer)
    lax = folder.maker.bent(replaced(1, lambda field: tlv(0x02, b"\0\0\x2c")))
    code, verdict = folder.verdict(lax)
    assert (code, verdict["code"]) == (1, "ek.certificate-der")
    assert f"preregister {verdict['ek_id']}" in str(verdict["detail"])
    for garbage, wanted in ((b"", "ek.certificate-missing"), (b"x", "ek.certificate-malformed")):
        code, verdict = folder.verdict(garbage)
        assert (code, verdict["code"]) == (1, wanted)
    code, verdict = folder.verdict(folder.maker.ek_certificate(extended="1.3.6.1.5.5.7.3.1"))
    assert (code, verdict["code"]) == (1, "ek.certificate-usage")


def test_a_file_that_cannot_be_read_is_an_error_and_never_an_absent_root(folder: Folder) -> None:
    config = EnrolmentConfig()
    folder.put("ek-roots/maker.pem", folder.maker.root)
    folder.put("crls/maker.crl", folder.maker.crl(since=NOW - DAY, until=NOW + DAY))
    folder.put("devid-roots/device.pem", folder.maker.root)
    folder.put("devid-roots/ldevid/own.pem", folder.maker.issuer)
    found = load_device_trust(folder.path, config)
    assert (len(found.ek.certificates), len(found.ek.crls)) == (1, 1)
    assert list(found.devid.idevid.certificates) == [folder.maker.root]
    assert list(found.devid.ldevid.certificates) == [folder.maker.issuer]
    for file, load in (("ek-roots/x.crt", load_roots), ("crls/x.pem", load_crls)):
        (folder.path / file).write_bytes(b"\x30\x03\x02\x01\x01")
        with pytest.raises(Rejected, match=r"keys\.malformed"):
            load((folder.path / file).parent)
    (folder.path / "ek-roots/x.crt").write_bytes(b"")
    with pytest.raises(Rejected, match="no certificate in it"):
        load_roots(folder.path / "ek-roots")
    assert load_roots(folder.path / "nowhere") == []
