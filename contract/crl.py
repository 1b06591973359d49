"""Revocation lists that the operator put beside the roots: is this certificate on its issuer's list? (RFC 5280, 5 and 6.3)

Fetches nothing. A list counts only when its issuer signed it, it is in its dates and it covers this kind of certificate;
indirect lists, delta lists and lists for some reasons only are not read, and that is said. An issuer without a list here says
nothing about its certificates. Relies on `cryptography` to parse, and on `contract.certnames` for names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

from cryptography import x509

from contract.certnames import canonical, readable
from contract.errors import Rejected

StaleCrl = Literal["refuse", "note"]
Signed = Callable[[x509.CertificateRevocationList, x509.Certificate], str]
"""Say why a list does not carry this issuer's signature; "" when it does."""
_UNDERSTOOD = frozenset(
    {x509.IssuingDistributionPoint.oid, x509.AuthorityKeyIdentifier.oid, x509.CRLNumber.oid}
)


def check_revocation(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    crls: Sequence[x509.CertificateRevocationList],
    *,
    at: datetime,
    stale: StaleCrl,
    signed: Signed,
    area: str,
) -> list[str]:
    """Return notes on what could not be told; each begins with a code.

    1. a list of this issuer's name and key whose signature is not the issuer's refuses everything (`{area}.crl-signature`)
    2. an entry in any list that counts, or did until it went out of date, is a revocation (`{area}.revoked`)
    3. where every list of the issuer is out of date, `stale` decides (`{area}.crl-expired`)
    """
    notes: list[str] = []
    fresh = old = 0
    who = readable(issuer.subject)
    name = canonical(issuer.subject)
    for crl in crls:
        if canonical(crl.issuer) != name or _other_key(crl, issuer):
            continue
        why = signed(crl, issuer)
        if why:  # 1
            raise Rejected(
                f"{area}.crl-signature", f"the list of {who} of {crl.last_update_utc:%Y-%m-%d}: {why}"
            )
        if unread := _unread(crl, certificate):
            notes.append(f"{area}.crl-unread: the list of {who} {unread}")
            continue
        if crl.last_update_utc > at:
            notes.append(f"{area}.crl-unread: the list of {who} begins on {crl.last_update_utc:%Y-%m-%d}")
            continue
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None:  # 2
            raise Rejected(
                f"{area}.revoked",
                f"{who} revoked serial number {certificate.serial_number:x} on {entry.revocation_date_utc:%Y-%m-%d}",
            )
        until = crl.next_update_utc
        if until is not None and until < at:
            old += 1
        else:
            fresh += 1
    if old and not fresh:  # 3
        text = f"every list of {who} here is out of date; put a new one beside the roots"
        if stale == "refuse":
            raise Rejected(f"{area}.crl-expired", text)
        notes.append(f"{area}.crl-expired: {text}")
    return notes


def _other_key(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Tell lists of an authority of the same name and another key apart, where both say which key they mean."""
    try:
        named = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return False
    return named is not None and named != own


def _unread(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> str:
    """Say why this list is not read for this certificate; "" when it is."""
    for extension in crl.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            return f"has the critical extension {extension.oid.dotted_string}"
    try:
        point = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return ""
    if point.indirect_crl or point.only_contains_attribute_certs or point.only_some_reasons:
        return "is indirect or partial"
    try:
        ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        ca = False
    if (point.only_contains_ca_certs and not ca) or (point.only_contains_user_certs and ca):
        return "is for another kind of certificate"
    return ""
