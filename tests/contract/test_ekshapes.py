"""EK certificates as makers really ship them: b08, and whatever bytes stand where a certificate should."""

from __future__ import annotations

import base64
import json
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract import ekder
from contract.certpath import Trust, check_path, parse
from contract.ekcert import parsed_chain
from contract.enrolment import check_identity, ek_digest
from contract.errors import Rejected
from contract.tpmvendor import kind_of, maker_in, maker_of
from tests.contract.forge import Case
from tests.contract.vendor import DER, NOW, Authority, Tlv, device, name, replaced, tlv

GOOD = Case("good-rsa")


@pytest.fixture(scope="module")
def vendor() -> Authority:
    return Authority()


def refusal(vendor: Authority, certificate: bytes, **named: object) -> Rejected:
    with pytest.raises(Rejected) as caught:
        vendor.check(certificate, **named)  # type: ignore[arg-type]
    return caught.value


# -- forms around a certificate --------------------------------------------------------------------------


def wrapped(vendor: Authority) -> dict[str, bytes]:
    der = vendor.ek_certificate()
    text = base64.urlsafe_b64encode(der).decode().replace("=", "%3D")
    pem = x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
    return {
        "filled with ones": der + b"\xff" * (1600 - len(der)),
        "filled with zeros": der + b"\0" * 7,
        "octet string": tlv(0x04, der),
        "octet string, filled": tlv(0x04, der) + b"\xff" * 99,
        "pem": b"\n" + pem,
        "pem with its issuer": pem + vendor.issuer.public_bytes(serialization.Encoding.PEM),
        "intel": json.dumps({"pubhash": "AAAA%3D", "certificate": text}).encode(),
        "its issuer behind it": der + vendor.issuer.public_bytes(DER) + b"\xff" * 10,
    }


@pytest.mark.parametrize("form", sorted(wrapped(Authority())))
def test_every_form_seen_in_the_field_is_taken_apart(vendor: Authority, form: str) -> None:
    assert vendor.check(wrapped(vendor)[form]).source == "certificate"


def test_what_follows_a_certificate_helps_to_build_the_path(vendor: Authority) -> None:
    der, issuer = vendor.ek_certificate(), vendor.issuer.public_bytes(DER)
    assert refusal(vendor, der, roots=[vendor.root]).code == "ek.certificate-path"
    assert vendor.check(der + issuer, [vendor.root]).source == "certificate"
    # A chain that cannot be read is no help and no harm.
    assert vendor.check(der, chain=b"\x30\x03junk").source == "certificate"
    assert vendor.check(der, [vendor.root], chain=tlv(0x30, b"") + issuer).source == "certificate"


@pytest.mark.parametrize("junk", [b"\0\xff", b"EKCERT", b"\x30\x82", b"\xff\xff\x01"])
def test_bytes_behind_a_certificate_that_are_no_padding_are_named(vendor: Authority, junk: bytes) -> None:
    rejected = refusal(vendor, vendor.ek_certificate() + junk)
    assert rejected.code == "ek.certificate-trailing"
    assert "at byte" in rejected.detail


@pytest.mark.parametrize("empty", [b"", b"\xff" * 1600, b"\0" * 16])
def test_an_empty_index_is_no_certificate(vendor: Authority, empty: bytes) -> None:
    assert refusal(vendor, empty).code == "ek.certificate-missing"


# -- what is inside --------------------------------------------------------------------------------------


def swapped_set(field: Tlv) -> bytes:
    """The attributes of a multi-valued name in another order than DER's, as Nuvoton's issuers have them."""
    (rdn,) = field.children()
    return tlv(0x30, tlv(0x31, b"".join(reversed([part.whole for part in rdn.children()]))))


def explicit_false(field: Tlv) -> bytes:
    """`critical` written out though it is FALSE, as Intel's EK certificates have it."""
    (extensions,) = field.children()
    out = []
    for extension in extensions.children():
        oid, *rest = extension.children()
        spelt = [tlv(0x01, b"\0")] if len(rest) == 1 else []
        out.append(tlv(0x30, oid.whole + b"".join(spelt) + b"".join(part.whole for part in rest)))
    return tlv(0xA3, tlv(0x30, b"".join(out)))


MULTI = x509.Name(
    [
        x509.RelativeDistinguishedName(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "TW"),
                x509.NameAttribute(NameOID.COMMON_NAME, "Nuvoton TPM Root CA 2111"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nuvoton Technology Corporation"),
            ]
        )
    ]
)
DEFECTS = {
    "serial with a needless zero": (1, lambda f: tlv(0x02, b"\0\0\x2c")),
    "set out of order": (3, swapped_set),
    "default written out": (7, explicit_false),
    "time without seconds": (4, lambda f: tlv(0x30, tlv(0x17, b"2705010000Z") + f.children()[1].whole)),
    "unknown string type": (
        5,
        lambda f: tlv(0x30, tlv(0x31, tlv(0x30, tlv(0x06, b"\x55\x04\x03") + tlv(0x1B, b"x")))),
    ),
}


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_b08_a_defect_of_a_maker_is_refused_by_name_and_works_for_a_listed_ek(
    vendor: Authority, defect: str
) -> None:
    place, bend = DEFECTS[defect]
    der = vendor.bent(replaced(place, bend), issuer=MULTI)
    issuer = vendor.ca(MULTI, vendor.issuer_key, "root", vendor.root_key)
    assert vendor.check(vendor.ek_certificate(issuer=MULTI), [vendor.root, issuer]).source == "certificate"
    rejected = refusal(vendor, der, roots=[vendor.root, issuer])
    assert rejected.code == "ek.certificate-der"
    trust = vendor.check(der, [vendor.root, issuer], allowed=[ek_digest(vendor.ek_public)])
    assert (trust.source, trust.note, trust.kind) == ("allow-list", "ek.certificate-der", "unknown")
    other = Authority()
    assert refusal(other, der, allowed=[ek_digest(vendor.ek_public)]).code == "ek.certificate-der"


def test_the_ek_of_a_certificate_that_is_not_strict_der_can_still_be_named(vendor: Authority) -> None:
    der = vendor.bent(replaced(1, lambda field: tlv(0x02, b"\0\0\x2c")))
    found = ekder.spki_of(der)
    assert found == vendor.ek_key.public_key().public_bytes(
        DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert ekder.spki_of(b"\x30\x03\x02\x01\x01") is None


@pytest.mark.parametrize("serial", [b"\x80\x01", b"\0"])
def test_a_serial_number_that_is_not_positive_is_noted(vendor: Authority, serial: bytes) -> None:
    der = vendor.bent(replaced(1, lambda field: tlv(0x02, serial)))
    try:
        notes = vendor.check(der).notes
    except Rejected as rejected:
        assert rejected.code == "ek.certificate-der"  # where the library under it draws the line
    else:
        assert [note.partition(":")[0] for note in notes] == ["ek.certificate-serial"]


def test_a_name_in_another_string_type_is_the_same_name(vendor: Authority) -> None:
    """The issuer calls itself by a UTF8String, its certificates call it by a PrintableString."""
    printable = tlv(0x30, tlv(0x31, tlv(0x30, tlv(0x06, b"\x55\x04\x03") + tlv(0x13, b"issuer"))))
    assert vendor.check(vendor.bent(replaced(3, lambda field: printable))).source == "certificate"


def test_b07_without_extended_usage_only_the_name_of_a_tpm_will_do(vendor: Authority) -> None:
    trust = vendor.check(vendor.ek_certificate(extended=None))
    assert [note.partition(":")[0] for note in trust.notes] == ["ek.certificate-usage"]
    for names in ([], [x509.DNSName("www.example.test")], [x509.DirectoryName(name("x"))]):
        web = vendor.ek_certificate(extended=None, names=names)
        assert refusal(vendor, web).code == "ek.certificate-usage"


def test_the_device_is_named_also_where_its_attributes_stand_in_one_set(vendor: Authority) -> None:
    one = x509.Name([x509.RelativeDistinguishedName(list(device("id:4E544300", "NPCT75x")))])
    trust = vendor.check(vendor.ek_certificate(names=[x509.DirectoryName(one)]))
    assert (trust.manufacturer, trust.model, trust.kind) == ("id:4E544300", "NPCT75x", "hardware")
    assert trust.firmware == "id:0007003E"


# -- kinds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manufacturer", "model", "maker", "kind"),
    [
        ("id:49465800", "SLB9670", "Infineon", "hardware"),
        ("id:53544D20", "ST33", "STMicroelectronics", "hardware"),
        ("id:4E544300", "NPCT75x", "Nuvoton", "hardware"),
        ("id:494E5443", "CNL", "Intel", "firmware"),
        ("id:414D4400", "AMD", "AMD", "firmware"),
        ("id:4D534654", "xCG fTPM vTPM", "Microsoft", "virtual"),
        ("id:474F4F47", "vTPM", "Google", "virtual"),
        ("id:564D5700", "VMW", "VMware", "virtual"),
        ("id:00001014", "swtpm", "id:00001014", "virtual"),
        ("id:49465800", "swtpm-libtpms", "Infineon", "virtual"),
        ("id:58595A00", "x", "id:58595A00", "unknown"),
        ("", "", "", "unknown"),
        ("id:zzzzzzzz", "x", "id:zzzzzzzz", "unknown"),
        ("id:FF465800", "x", "id:FF465800", "unknown"),
    ],
)
def test_the_kind_of_a_tpm_is_told_by_its_maker(manufacturer: str, model: str, maker: str, kind: str) -> None:
    assert (maker_of(manufacturer), kind_of(manufacturer, model)) == (maker, kind)


def test_a_maker_is_found_in_the_name_of_its_authority() -> None:
    assert maker_in("O=Infineon Technologies AG,CN=Infineon OPTIGA(TM) RSA Root CA") == "Infineon"
    assert maker_in("CN=nobody") == ""


@pytest.mark.parametrize(
    ("manufacturer", "model", "code"),
    [
        ("id:00001014", "swtpm", "ek.virtual"),
        ("id:494E5443", "CNL", "ek.firmware"),
        ("id:58595A00", "x", "ek.kind-unknown"),
    ],
)
def test_b07_what_is_no_chip_is_refused_where_hardware_is_required(
    vendor: Authority, manufacturer: str, model: str, code: str
) -> None:
    names = [x509.DirectoryName(device(manufacturer, model))]
    der = vendor.ek_certificate(names=names)
    assert vendor.check(der)
    assert refusal(vendor, der, hardware_only=True).code == code
    # A list does not overrule what a good certificate says.
    listed = [ek_digest(vendor.ek_public)]
    assert refusal(vendor, der, hardware_only=True, allowed=listed).code == code
    assert vendor.check(b"", allowed=listed, hardware_only=True).kind == "unknown"


# -- garbage ---------------------------------------------------------------------------------------------

LEAF = GOOD.read("ek-cert.der")
ROOTS = GOOD.roots()


def refused(untrusted: bytes, chain: bytes) -> None:
    """It is refused, and nothing but Rejected comes of it."""
    with pytest.raises(Rejected) as raised:
        check_identity(GOOD.read("ek.tpm2b"), untrusted, ROOTS, (), NOW.timestamp(), ek_chain=chain)
    assert raised.value.code.startswith("ek.")
    assert len(raised.value.detail) < 2048


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=100))
@example(b"\x30\x84\xff\xff\xff\xff", b"\x04\x80")
@example(b"-----BEGIN CERTIFICATE-----!!", b"{")
@example(b'{"certificate": "====="}', b"")
def test_whatever_stands_for_a_certificate_is_refused_with_a_code(untrusted: bytes, chain: bytes) -> None:
    refused(untrusted, chain)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_a_bent_certificate_is_refused_with_a_code(data: st.DataObject) -> None:
    bent = bytearray(LEAF)
    for _ in range(data.draw(st.integers(1, 4))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(bent) - 1))
    if bytes(bent) != LEAF:
        refused(bytes(bent), LEAF[: data.draw(st.integers(0, 64))])
    refused(bytes(bent[:cut]), bytes(bent))


def test_a_certificate_cut_anywhere_is_refused_with_a_code() -> None:
    for end in range(len(LEAF)):
        refused(LEAF[:end], b"")


def test_every_bent_issuer_leads_nowhere_or_where_it_did() -> None:
    """An intermediate that was bent in one place is not the one that signed, unless its signature alone was bent."""
    root, issuer = ROOTS
    good = issuer.public_bytes(DER)
    leaf = parse(LEAF, "ek")
    chance = random.Random(7)
    for _ in range(300):
        at = chance.randrange(len(good) - 400)
        bent = good[:at] + bytes([good[at] ^ chance.randrange(1, 256)]) + good[at + 1 :]
        with pytest.raises(Rejected):
            check_path(leaf, parsed_chain(bent), Trust(certificates=[root]), at=NOW, area="ek")
