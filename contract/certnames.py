"""Names in certificates: whether two are the same, and whether one lies within a constraint (RFC 5280, 4.2.1.10 and 7.1).

Only directory names are compared. A certificate with a name of another form that a CA constrains is refused, never guessed
at. Relies on `cryptography` having decoded the names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from cryptography import x509

_Rdn = frozenset[tuple[str, str | bytes]]
_EMAIL = x509.NameOID.EMAIL_ADDRESS


def canonical(name: x509.Name) -> tuple[_Rdn, ...]:
    """Return the name with string types, case and spacing taken away (RFC 5280, 7.1; RFC 4518)."""
    return tuple(
        frozenset((attribute.oid.dotted_string, _plain(attribute.value)) for attribute in rdn)
        for rdn in name.rdns
    )


def _plain(value: str | bytes) -> str | bytes:
    if isinstance(value, bytes):
        return value
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())


def readable(name: x509.Name) -> str:
    """Return the name as people read it, cut and harmless in a log."""
    return repr(name.rfc4514_string()[:100])


def outside(certificate: x509.Certificate, constraints: x509.NameConstraints) -> str:
    """Return why a certificate is not within a CA's constraints; "" when it is (RFC 5280, 6.1.3, b and c)."""
    names = _names(certificate)
    for name in names:
        same = _of_form(constraints.excluded_subtrees, name)
        if same and not isinstance(name, x509.DirectoryName):
            return (
                f"a name of the form {type(name).__name__}, which is constrained and cannot be compared here"
            )
        if any(_within(name, base) for base in same):
            return f"{_shown(name)} is excluded"
        same = _of_form(constraints.permitted_subtrees, name)
        if same and not isinstance(name, x509.DirectoryName):
            return (
                f"a name of the form {type(name).__name__}, which is constrained and cannot be compared here"
            )
        if same and not any(_within(name, base) for base in same):
            return f"{_shown(name)} is not permitted"
    return ""


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return every name that a constraint speaks of: the subject, its addresses, and the alternative names."""
    names: list[x509.GeneralName] = []
    if certificate.subject.rdns:
        names.append(x509.DirectoryName(certificate.subject))
    for attribute in certificate.subject.get_attributes_for_oid(_EMAIL):
        if isinstance(attribute.value, str) and attribute.value.isascii():
            names.append(x509.RFC822Name(attribute.value))
    try:
        names += certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    return names


def _of_form(
    subtrees: Sequence[x509.GeneralName] | None, name: x509.GeneralName
) -> Iterable[x509.GeneralName]:
    return [base for base in subtrees or () if type(base) is type(name)]


def _within(name: x509.GeneralName, base: x509.GeneralName) -> bool:
    if not isinstance(name, x509.DirectoryName) or not isinstance(base, x509.DirectoryName):
        return False
    inner, outer = canonical(name.value), canonical(base.value)
    return inner[: len(outer)] == outer


def _shown(name: x509.GeneralName) -> str:
    return readable(name.value) if isinstance(name, x509.DirectoryName) else type(name).__name__
