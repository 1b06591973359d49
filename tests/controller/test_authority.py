"""Certificates and key files: `openssl` as the witness, and everything that is refused."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from contract.errors import Rejected
from controller.authority import (
    NODE_CA_LIFETIME_S,
    RENEW_AT,
    SERVER_LIFETIME_S,
    Authority,
    csr_key,
    node_identity,
)
from controller.keys import create, load
from controller.roots import load_roots
from tests.controller.test_sessions import request

NOW = time.time()
NAMES = ["localhost", "127.0.0.1", "::1", "controller.example"]


def key() -> ec.EllipticCurvePrivateKey:
    """A TLS key."""
    return ec.generate_private_key(ec.SECP256R1())


def openssl(*arguments: object) -> str:
    """Run openssl; its output."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_node_certificate_is_what_openssl_wants_of_a_client_and_of_nothing_else(tmp_path: Path) -> None:
    authority = Authority.new("nodes", NOW, NODE_CA_LIFETIME_S)
    issued = authority.issue_node(request(key()), site="factory", node="press-1", now=NOW, lifetime_s=3600)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "leaf.pem").write_bytes(issued.chain)
    verify = ("verify", "-x509_strict", "-CAfile", tmp_path / "ca.pem")
    assert "OK" in openssl(*verify, "-purpose", "sslclient", tmp_path / "leaf.pem")
    assert "OK" not in openssl(*verify, "-purpose", "sslserver", tmp_path / "leaf.pem").splitlines()[-1]
    text = openssl("x509", "-in", tmp_path / "leaf.pem", "-noout", "-text")
    assert "URI:ringfence:node:factory:press-1" in text and "CA:FALSE" in text and "somebody-else" not in text
    identity = node_identity(
        x509.load_pem_x509_certificate(issued.chain).public_bytes(serialization.Encoding.DER)
    )
    assert (identity.site, identity.node, identity.fingerprint) == ("factory", "press-1", issued.sha256)
    assert identity.not_after == issued.not_after == pytest.approx(NOW + 3600, abs=2)


def test_a_node_certificate_never_outlives_its_authority() -> None:
    authority = Authority.new("nodes", NOW, 1000)
    issued = authority.issue_node(request(key()), site="s", node="n", now=NOW, lifetime_s=10**6)
    assert issued.not_after <= NOW + 1000


def test_b09_a_node_cannot_issue_certificates(tmp_path: Path) -> None:
    authority = Authority.new("nodes", NOW, NODE_CA_LIFETIME_S)
    own = key()
    issued = authority.issue_node(request(own), site="factory", node="press-1", now=NOW, lifetime_s=3600)
    forged = Authority(x509.load_pem_x509_certificate(issued.chain), own).issue_node(
        request(key()), site="factory", node="press-2", now=NOW, lifetime_s=3600
    )
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "middle.pem").write_bytes(issued.chain)
    (tmp_path / "leaf.pem").write_bytes(forged.chain)
    verdict = openssl(
        "verify", "-CAfile", tmp_path / "ca.pem", "-untrusted", tmp_path / "middle.pem", tmp_path / "leaf.pem"
    )
    assert "leaf.pem: OK" not in verdict


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "A", "x" * 64, "a\nb"])
def test_b11_no_certificate_for_a_hostile_name(name: str) -> None:
    authority = Authority.new("nodes", NOW, 1000)
    for names in ({"site": name, "node": "n"}, {"site": "s", "node": name}):
        with pytest.raises(Rejected) as refused:
            authority.issue_node(request(key()), **names, now=NOW, lifetime_s=10)
        assert refused.value.code == "name.invalid"


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["ringfence:node:a"],
        ["ringfence:node:a:b:c"],
        ["other:a:b"],
        ["ringfence:node:a:b"] * 2,
        ["ringfence:node:A:b"],
    ],
)
def test_b09_a_certificate_that_names_not_exactly_one_node_is_nobody(uris: list[str]) -> None:
    authority = Authority.new("nodes", NOW, 1000)
    builder = (
        x509.CertificateBuilder()
        .subject_name(authority.certificate.subject)
        .issuer_name(authority.certificate.subject)
        .public_key(key().public_key())
        .serial_number(5)
        .not_valid_before(authority.certificate.not_valid_before_utc)
        .not_valid_after(authority.certificate.not_valid_after_utc)
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    der = builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(Rejected) as refused:
        node_identity(der)
    assert refused.value.code in ("certificate.identity", "name.invalid")


@pytest.mark.parametrize("csr", [b"", b"garbage", b"\x30" * 9000])
def test_a_request_that_is_none_is_refused(csr: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        csr_key(csr)
    assert refused.value.code == "csr.malformed"


def test_a_request_signed_by_another_key_is_refused() -> None:
    good, other = request(key()), request(key())
    spki = (
        x509.load_der_x509_csr(good)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    of_other = (
        x509.load_der_x509_csr(other)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(Rejected) as refused:
        csr_key(good.replace(spki, of_other))
    assert refused.value.code == "csr.signature"


def test_keys_are_made_once_kept_private_and_loaded_again(tmp_path: Path) -> None:
    keys = create(tmp_path / "keys", "ringfence", NOW)
    keys.renew(NAMES, NOW)
    for path in (tmp_path / "keys").glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        create(tmp_path / "keys", "ringfence", NOW)
    again = load(tmp_path / "keys", NOW)
    assert again.directive_public == keys.directive_public and again.node_trust == keys.node_trust
    assert not again.renew(NAMES, NOW)
    text = openssl(
        "verify", "-x509_strict", "-CAfile", tmp_path / "keys/server-ca.pem", "-verify_hostname", "controller.example",
        "-purpose", "sslserver", tmp_path / "keys/server.pem",
    )  # fmt: skip
    assert text.strip().endswith("OK")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "keys", "ringfence", NOW)
    (tmp_path / "keys" / "directive.key").chmod(0o640)
    with pytest.raises(Rejected) as refused:
        load(tmp_path / "keys", NOW)
    assert refused.value.code == "keys.exposed"
    assert "PRIVATE" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    create(tmp_path / "keys", "ringfence", NOW)
    (tmp_path / "keys" / "online.key").write_bytes(content)
    with pytest.raises(Rejected) as refused:
        load(tmp_path / "keys", NOW)
    assert refused.value.code == "keys.malformed" and "online.key" in refused.value.detail


def test_the_node_authority_has_a_successor_before_it_ends_and_both_are_trusted(tmp_path: Path) -> None:
    keys = create(tmp_path / "keys", "ringfence", NOW)
    keys.renew(NAMES, NOW)
    first = keys.issuer
    assert not keys.renew(NAMES, NOW + SERVER_LIFETIME_S * RENEW_AT - 600)
    later = NOW + NODE_CA_LIFETIME_S * RENEW_AT
    assert keys.renew(NAMES, later)
    assert keys.issuer is not first and keys.node_trust.count("BEGIN CERTIFICATE") == 2
    assert load(tmp_path / "keys", later).node_trust == keys.node_trust
    ended = NOW + NODE_CA_LIFETIME_S + 1
    keys.renew(NAMES, ended)
    assert first not in keys.node_authorities
    assert first.pem.decode() not in load(tmp_path / "keys", ended).node_trust


def test_the_server_certificate_is_renewed_in_time_and_when_names_change(tmp_path: Path) -> None:
    keys = create(tmp_path / "keys", "ringfence", NOW)
    assert keys.renew(NAMES, NOW)
    before = keys.server_certificate.read_bytes()
    assert keys.renew([*NAMES, "other.example"], NOW)
    assert keys.server_certificate.read_bytes() != before
    assert keys.renew([*NAMES, "other.example"], NOW + SERVER_LIFETIME_S * RENEW_AT)


def test_ek_roots_are_all_or_an_error(tmp_path: Path) -> None:
    assert load_roots(tmp_path) == []
    (tmp_path / "one.pem").write_bytes(Authority.new("vendor", NOW, 1000).pem * 2)
    assert len(load_roots(tmp_path)) == 2
    (tmp_path / "two.pem").write_bytes(b"garbage")
    with pytest.raises(Rejected) as refused:
        load_roots(tmp_path)
    assert refused.value.code == "keys.malformed" and "two.pem" in refused.value.detail
