"""Part B of the attacks: paths of EK certificates, each decision beside that of `openssl verify` on the same chain."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from contract.certpath import Trust
from contract.enrolment import check_identity, ek_digest
from contract.errors import Rejected
from tests.contract.forge import CASES, Case
from tests.contract.vendor import (
    DAY,
    DER,
    NOW,
    Authority,
    device,
    name,
    openssl_takes,
    replaced,
    tlv,
)

O = NameOID.ORGANIZATION_NAME  # noqa: E741


@pytest.fixture(scope="module")
def vendor() -> Authority:
    return Authority()


def code_of(vendor: Authority, *args: object, **named: object) -> str:
    """Return "" when the certificate is taken, else the code."""
    try:
        vendor.check(*args, **named)  # type: ignore[arg-type]
    except Rejected as rejected:
        return rejected.code
    return ""


@dataclasses.dataclass
class Chain:
    """One chain: what is configured, what the TPM shows, and what must come of it."""

    leaf: bytes
    roots: list[x509.Certificate]
    shown: list[x509.Certificate]
    code: str = ""


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def chains(v: Authority) -> dict[str, Chain]:
    """Return every chain by its name."""
    ek = v.ek_certificate
    sub_key, deep_key = key(), key()
    sub = v.ca("sub", sub_key, "issuer", v.issuer_key)
    deep = v.ca("deep", deep_key, "sub", sub_key)
    by_deep = ek(issuer="deep", signer=deep_key)
    rekeyed = v.ca("issuer", v.issuer_key, "root", v.root_key, until=NOW - DAY)
    other = Authority()
    elder_key = key()
    elder = v.ca("elder", elder_key, "elder", elder_key)
    cross = v.ca("root", v.root_key, "elder", elder_key)
    short = v.ca("root", v.root_key, "root", v.root_key, path_length=1)
    own_key = key()
    own = v.ca("mine", own_key, "mine", own_key)
    sha1 = v.ca("issuer", v.issuer_key, "root", v.root_key, sha1=True)
    weak_key = rsa.generate_private_key(65537, 1024)
    weak = v.ca("issuer", weak_key, "root", v.root_key)
    old_root = v.ca("root", v.root_key, "root", v.root_key, sha1=True)
    upper = v.ca(name("ISSUER "), v.issuer_key, "root", v.root_key)
    policies = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)])
    st = v.ca("issuer", v.issuer_key, "root", v.root_key, more=[(policies, True)])
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    strange = v.ca("issuer", v.issuer_key, "root", v.root_key, more=[(unknown, True)])
    demanding = x509.PolicyConstraints(0, None)
    policy = v.ca("issuer", v.issuer_key, "root", v.root_key, more=[(demanding, True)])
    return {
        "good": Chain(ek(), [v.root], [v.issuer]),
        "issuer-configured-too": Chain(ek(), [v.root, v.issuer], []),
        "three-intermediates-in-nv": Chain(by_deep, [v.root], [deep, v.issuer, sub]),
        "one-of-them-missing": Chain(by_deep, [v.root], [deep, v.issuer], "ek.certificate-path"),
        "no-intermediate": Chain(ek(), [v.root], [], "ek.certificate-path"),
        "root-only-shown": Chain(ek(), [other.root], [v.issuer, v.root], "ek.certificate-path"),
        "own-root-shown": Chain(ek(issuer="mine", signer=own_key), [v.root], [own], "ek.certificate-path"),
        "expired-twin-first": Chain(ek(), [v.root], [rekeyed, v.issuer]),
        "expired-twin-only": Chain(ek(), [v.root], [rekeyed], "ek.certificate-expired"),
        "cross-signed": Chain(ek(), [elder], [v.issuer, cross]),
        "path-length-fits": Chain(ek(issuer="sub", signer=sub_key), [v.root], [v.issuer, sub]),
        "path-too-long": Chain(by_deep, [short], [deep, v.issuer, sub], "ek.certificate-path"),
        "sha-1-intermediate": Chain(ek(), [v.root], [sha1], "ek.certificate-algorithm"),
        "sha-1-leaf": Chain(ek(sha1=True), [v.root], [v.issuer], "ek.certificate-algorithm"),
        "sha-1-root": Chain(ek(), [old_root], [v.issuer]),
        "rsa-1024-issuer": Chain(ek(signer=weak_key), [v.root], [weak], "ek.certificate-algorithm"),
        "name-in-other-case": Chain(ek(), [v.root], [upper]),
        "critical-policies": Chain(ek(), [v.root], [st]),
        "unknown-critical": Chain(ek(), [v.root], [strange], "ek.certificate-critical"),
        "policy-demanded": Chain(ek(), [v.root], [policy], "ek.certificate-critical"),
        "issuer-no-ca": Chain(
            ek(),
            [v.root],
            [v.ca("issuer", v.issuer_key, "root", v.root_key, ca=False)],
            "ek.certificate-path",
        ),
        "issuer-may-not-sign": Chain(
            ek(),
            [v.root],
            [v.ca("issuer", v.issuer_key, "root", v.root_key, may_sign=False)],
            "ek.certificate-path",
        ),
        "expired-root": Chain(
            ek(),
            [v.ca("root", v.root_key, "root", v.root_key, until=NOW - DAY)],
            [v.issuer],
            "ek.certificate-expired",
        ),
        "signed-by-a-stranger": Chain(
            ek(signer=other.issuer_key), [v.root], [v.issuer], "ek.certificate-path"
        ),
    }


NAMES = sorted(chains(Authority()))


@pytest.fixture(scope="module")
def made(vendor: Authority) -> dict[str, Chain]:
    return chains(vendor)


@pytest.mark.parametrize("case", NAMES)
def test_b07_a_path_is_taken_or_refused_as_openssl_does(
    vendor: Authority, made: dict[str, Chain], case: str, tmp_path: Path
) -> None:
    chain = made[case]
    shown = b"".join(c.public_bytes(DER) for c in chain.shown)
    assert code_of(vendor, chain.leaf, chain.roots, chain=shown) == chain.code
    # A policy that a CA demands (policyConstraints) is for openssl to weigh; here nobody weighs policies, so it is refused.
    if case != "policy-demanded":
        assert openssl_takes(tmp_path, chain.leaf, chain.roots, chain.shown) == (chain.code == "")


INFINEON = name("", (O, "Infineon"))


@pytest.mark.parametrize(
    ("limit", "subject", "code"),
    [
        (([INFINEON], None), name("TPM", (O, "Infineon")), ""),
        (([INFINEON], None), name("TPM", (O, "INFINEON ")), ""),
        (([INFINEON], None), name("TPM", (O, "Nuvoton")), "ek.certificate-constraints"),
        (([INFINEON], None), name("TPM"), "ek.certificate-constraints"),
        (([INFINEON, name("", (O, "Nuvoton"))], None), name("TPM", (O, "Nuvoton")), ""),
        ((None, [INFINEON]), name("TPM", (O, "Infineon")), "ek.certificate-constraints"),
        ((None, [INFINEON]), name("TPM", (O, "Nuvoton")), ""),
        (
            ([INFINEON], [name("TPM", (O, "Infineon"))]),
            name("TPM", (O, "Infineon")),
            "ek.certificate-constraints",
        ),
    ],
)
def test_b07_names_outside_of_a_constraint_are_refused_as_openssl_does(
    vendor: Authority,
    tmp_path: Path,
    limit: tuple[list[x509.Name] | None, list[x509.Name] | None],
    subject: x509.Name,
    code: str,
) -> None:
    def of(names: list[x509.Name] | None) -> list[x509.GeneralName] | None:
        return None if names is None else [x509.DirectoryName(n) for n in names]

    # The alternative name is a directory name too, so what is constrained is said of both.
    names = [x509.DirectoryName(subject)]
    said = x509.NameConstraints(of(limit[0]), of(limit[1]))
    issuer = vendor.ca("issuer", vendor.issuer_key, "root", vendor.root_key, more=[(said, True)])
    leaf = vendor.ek_certificate(subject=subject, names=names)
    assert code_of(vendor, leaf, [vendor.root, issuer]) == code
    assert openssl_takes(tmp_path, leaf, [vendor.root], [issuer]) == (code == "")


def test_b07_a_root_constrains_what_is_far_below_and_the_tpm_name_counts(
    vendor: Authority, tmp_path: Path
) -> None:
    limit = x509.NameConstraints(None, [x509.DirectoryName(x509.Name(list(device(model="SLB9670"))[:2]))])
    root = vendor.ca("root", vendor.root_key, "root", vendor.root_key, more=[(limit, True)])
    leaf = vendor.ek_certificate()
    assert code_of(vendor, leaf, [root, vendor.issuer]) == "ek.certificate-constraints"
    assert not openssl_takes(tmp_path, leaf, [root], [vendor.issuer])
    assert code_of(vendor, vendor.ek_certificate(model="SLB9672"), [root, vendor.issuer]) == ""


def test_b07_a_constrained_form_of_name_that_cannot_be_compared_is_refused(vendor: Authority) -> None:
    limit = x509.NameConstraints([x509.DNSName("example.test")], None)
    issuer = vendor.ca("issuer", vendor.issuer_key, "root", vendor.root_key, more=[(limit, True)])
    known = [vendor.root, issuer]
    both = [x509.DirectoryName(device()), x509.DNSName("tpm.example.test")]
    assert code_of(vendor, vendor.ek_certificate(names=both), known) == "ek.certificate-constraints"
    assert code_of(vendor, vendor.ek_certificate(), known) == ""


@pytest.mark.parametrize("count", [8, 16])
def test_b07_a_ring_of_cas_ends_in_bounded_time(vendor: Authority, count: int) -> None:
    """Certificates of one name and key sign one another in every order, and none is a root: eight have 100,000 paths."""
    ring = [
        vendor.ca("issuer", vendor.issuer_key, "issuer", vendor.issuer_key, path_length=n)
        for n in range(count)
    ]
    shown = b"".join(c.public_bytes(DER) for c in ring)
    began = time.process_time()
    assert code_of(vendor, vendor.ek_certificate(), [vendor.root], chain=shown) == "ek.certificate-path"
    assert time.process_time() - began < 0.25


def test_b07_what_is_missing_is_named(vendor: Authority) -> None:
    access = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.CA_ISSUERS,
                x509.UniformResourceIdentifier("http://pki.example.test/issuer.crt"),
            )
        ]
    )
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(vendor.issuer_key.public_key())
    leaf = vendor.ek_certificate(more=[(access, False), (by, False)])
    with pytest.raises(Rejected) as caught:
        vendor.check(leaf, [vendor.root])
    assert by.key_identifier is not None
    for wanted in ("CN=issuer", by.key_identifier.hex(), "http://pki.example.test/issuer.crt"):
        assert wanted in caught.value.detail


def test_b07_algorithms_inside_and_outside_of_the_signature_must_agree(vendor: Authority) -> None:
    sha384 = tlv(0x30, tlv(0x06, bytes.fromhex("2a8648ce3d040303")))
    mixed = vendor.bent(replaced(2, lambda field: sha384))
    assert code_of(vendor, mixed) == "ek.certificate-malformed"


# -- revocation lists ------------------------------------------------------------------------------------


def crl_chain(vendor: Authority, *crls: x509.CertificateRevocationList, stale: str = "refuse") -> Trust:
    return Trust(certificates=[vendor.root, vendor.issuer], crls=crls, stale_crl=stale)  # type: ignore[arg-type]


def test_b07_revoked_certificates_are_refused_as_openssl_does(vendor: Authority, tmp_path: Path) -> None:
    leaf = vendor.ek_certificate(serial=77)
    for crl, code in (
        (vendor.crl(76, 78), ""),
        (vendor.crl(77), "ek.revoked"),
        (vendor.crl(until=NOW - DAY, since=NOW - 9 * DAY), "ek.crl-expired"),
        (vendor.crl(77, until=NOW - DAY, since=NOW - 9 * DAY), "ek.revoked"),
        (vendor.crl(77, key=vendor.root_key), "ek.crl-signature"),
    ):
        assert code_of(vendor, leaf, crl_chain(vendor, crl)) == code
        taken = openssl_takes(tmp_path, leaf, [vendor.root], [vendor.issuer], crls=[crl])
        assert taken == (code == "")


def test_b07_a_revoked_intermediate_is_refused(vendor: Authority) -> None:
    crl = vendor.crl(vendor.issuer.serial_number, issuer="root", key=vendor.root_key)
    assert code_of(vendor, vendor.ek_certificate(), crl_chain(vendor, crl)) == "ek.revoked"


def test_b07_an_expired_list_is_a_note_where_the_operator_says_so(vendor: Authority) -> None:
    old = vendor.crl(until=NOW - DAY, since=NOW - 9 * DAY)
    trust = vendor.check(vendor.ek_certificate(), crl_chain(vendor, old, stale="note"))
    assert [note.partition(":")[0] for note in trust.notes] == ["ek.crl-expired"]
    # One that is in its dates beside it is enough.
    assert vendor.check(vendor.ek_certificate(), crl_chain(vendor, old, vendor.crl())).notes == ()


def test_b07_lists_that_cannot_be_read_whole_say_nothing_and_that_is_said(vendor: Authority) -> None:
    def point(**what: object) -> x509.IssuingDistributionPoint:
        fields: dict[str, object] = {
            "full_name": None,
            "relative_name": None,
            "only_contains_user_certs": False,
            "only_contains_ca_certs": False,
            "only_some_reasons": None,
            "indirect_crl": False,
            "only_contains_attribute_certs": False,
        }
        return x509.IssuingDistributionPoint(**{**fields, **what})  # type: ignore[arg-type]

    leaf = vendor.ek_certificate(serial=77)
    for extension in (
        point(indirect_crl=True),
        point(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})),
        point(only_contains_ca_certs=True),
        x509.DeltaCRLIndicator(3),
    ):
        trust = vendor.check(leaf, crl_chain(vendor, vendor.crl(77, more=[(extension, True)])))
        assert [note.partition(":")[0] for note in trust.notes] == ["ek.crl-unread"]
    whole = vendor.crl(77, more=[(point(only_contains_user_certs=True), True)])
    assert code_of(vendor, leaf, crl_chain(vendor, whole)) == "ek.revoked"
    assert vendor.check(leaf, crl_chain(vendor, vendor.crl(77, since=NOW + DAY))).notes


def test_b07_a_list_of_the_same_name_and_another_key_is_no_word_of_this_issuer(vendor: Authority) -> None:
    own = x509.SubjectKeyIdentifier.from_public_key(vendor.issuer_key.public_key())
    issuer = vendor.ca("issuer", vendor.issuer_key, "root", vendor.root_key, more=[(own, False)])
    strange_key = key()
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(strange_key.public_key())
    other = vendor.crl(77, key=strange_key, more=[(by, False)])
    trust = Trust(certificates=[vendor.root, issuer], crls=[other])
    assert code_of(vendor, vendor.ek_certificate(serial=77), trust) == ""


def test_b07_an_issuer_that_may_not_sign_lists_and_a_sha_1_list_do_not_count(vendor: Authority) -> None:
    issuer = vendor.ca("issuer", vendor.issuer_key, "root", vendor.root_key, crl_sign=False)
    trust = Trust(certificates=[vendor.root, issuer], crls=[vendor.crl()])
    assert code_of(vendor, vendor.ek_certificate(), trust) == "ek.crl-signature"
    weak = vendor.crl(sha1=True)
    assert code_of(vendor, vendor.ek_certificate(), crl_chain(vendor, weak)) == "ek.crl-signature"


def test_b07_what_its_maker_revoked_is_refused_though_it_is_on_the_list(vendor: Authority) -> None:
    listed = [ek_digest(vendor.ek_public)]
    leaf = vendor.ek_certificate(serial=77)
    assert code_of(vendor, leaf, crl_chain(vendor, vendor.crl(77)), allowed=listed) == "ek.revoked"
    forged = crl_chain(vendor, vendor.crl(key=vendor.root_key))
    assert code_of(vendor, leaf, forged, allowed=listed) == "ek.crl-signature"
    stale = crl_chain(vendor, vendor.crl(until=NOW - DAY, since=NOW - 9 * DAY))
    assert vendor.check(leaf, stale, allowed=listed).note == "ek.crl-expired"


# -- real chains -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_recorded_chains_are_taken_with_the_issuer_from_nv(case: str, tmp_path: Path) -> None:
    recorded = Case(case)
    root, issuer = recorded.roots()
    leaf, shown = recorded.read("ek-cert.der"), issuer.public_bytes(DER)
    args = (recorded.read("ek.tpm2b"), leaf, [root], (), NOW.timestamp())
    trust = check_identity(*args, ek_chain=shown)
    assert trust.root_sha256 == root.fingerprint(hashes.SHA256()).hex()
    assert trust.kind == "virtual"
    with pytest.raises(Rejected, match="swtpm-localca"):
        check_identity(*args)
    assert openssl_takes(tmp_path, leaf, [root], [issuer])
    assert not openssl_takes(tmp_path, leaf, [root])
