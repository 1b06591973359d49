"""Certificates as makers of TPMs really leave them in NV and hand them out, taken apart before anything is parsed.

Knows the forms seen in the field: DER with the index filled up by 00 or FF; several certificates one behind another; one
wrapped in an OCTET STRING; PEM and Intel's JSON in files. It finds where a certificate begins and ends and no more: whether
it is strict DER is for `contract.ekcert` to say. Relies on nothing; time and memory are linear in the input.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from contract.errors import Rejected

MAX_CERTIFICATES: Final = 16
"""Of a device. An operator's own file may hold more."""
NO_LIMIT: Final = 1 << 20
_SEQUENCE: Final = 0x30
_OCTET_STRING: Final = 0x04
_VERSION: Final = 0xA0
_PADDING: Final = (b"\0", b"\xff")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_INTEL = re.compile(rb'"certificate"\s*:\s*"([A-Za-z0-9_%=-]*)"')


def certificates_in(untrusted: bytes, area: str = "ek", *, most: int = MAX_CERTIFICATES) -> list[bytes]:
    """Return the certificates, in their order, each from its first byte to its last; none in an empty or padded index.

    Raises Rejected `{area}.certificate-malformed` where something is no certificate, and `{area}.certificate-trailing` where
    something that is neither padding nor a certificate follows one.
    """
    found: list[bytes] = []
    data = _unwrapped(untrusted, area)
    at = 0
    while at < len(data) and not _is_padding(data, at):
        end = _end_of(data, at, _SEQUENCE)
        if end is None:
            code = f"{area}.certificate-trailing" if found else f"{area}.certificate-malformed"
            raise Rejected(
                code, f"at byte {at} of {len(data)}: {data[at : at + 4].hex()} begins no certificate"
            )
        if len(found) == most:
            raise Rejected(f"{area}.certificate-malformed", f"more than {most} certificates")
        found.append(data[at:end])
        at = end
    return found


def spki_of(untrusted_certificate: bytes) -> bytes | None:
    """Return the SubjectPublicKeyInfo of what has the shape of a certificate, also where it is not strict DER; else None.

    For telling people which EK a certificate that cannot be checked is for. Nothing is trusted on it.
    """
    parts = _fields(untrusted_certificate)
    return None if parts is None else parts[6]


def same_algorithm(untrusted_certificate: bytes) -> bool:
    """Return whether the signature algorithm inside and outside of the signed part is the same (RFC 5280, 4.1.1.2)."""
    parts = _fields(untrusted_certificate)
    return parts is not None and parts[2] == parts[7]


def _unwrapped(untrusted: bytes, area: str) -> bytes:
    head = untrusted[:64].lstrip()
    if head.startswith(b"-----BEGIN"):
        return b"".join(_base64(match[1], area) for match in _PEM.finditer(untrusted))
    if head.startswith(b"{") and (intel := _INTEL.search(untrusted)):
        text = intel[1].replace(b"%3D", b"=").replace(b"-", b"+").replace(b"_", b"/")
        return _base64(text, area)
    if untrusted[:1] == bytes([_OCTET_STRING]):
        end = _end_of(untrusted, 0, _OCTET_STRING)
        if end is not None and (end == len(untrusted) or _is_padding(untrusted, end)):
            return untrusted[end - _content_size(untrusted, 0) : end]
    return untrusted


def _base64(text: bytes, area: str) -> bytes:
    packed = b"".join(text.split())
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise Rejected(f"{area}.certificate-malformed", f"not base64: {error}") from None


def _is_padding(data: bytes, at: int) -> bool:
    first = data[at : at + 1]
    return first in _PADDING and data.count(first, at) == len(data) - at


def _content_size(data: bytes, at: int) -> int:
    size = data[at + 1]
    return size if size < 0x80 else int.from_bytes(data[at + 2 : at + 2 + (size & 0x7F)], "big")


def _end_of(data: bytes, at: int, tag: int | None) -> int | None:
    """Return where the value that begins at `at` ends, None where there is none of this tag (X.690, 8.1.3)."""
    if at + 2 > len(data) or (tag is not None and data[at] != tag):
        return None
    size = data[at + 1]
    if size < 0x80:
        end = at + 2 + size
    else:
        octets = size & 0x7F
        if not 1 <= octets <= 3:
            return None
        end = at + 2 + octets + _content_size(data, at)
    return end if end <= len(data) else None


def _inside(data: bytes, at: int, end: int) -> int:
    return end - _content_size(data, at)


def _fields(data: bytes) -> list[bytes] | None:
    """Return version, serial, algorithm, issuer, validity, subject, key and the outer algorithm (RFC 5280, 4.1)."""
    end = _end_of(data, 0, _SEQUENCE)
    if end is None:
        return None
    tbs = _inside(data, 0, end)
    tbs_end = _end_of(data, tbs, _SEQUENCE)
    if tbs_end is None or tbs_end > end:
        return None
    out: list[bytes] = []
    at = _inside(data, tbs, tbs_end)
    if data[at : at + 1] != bytes([_VERSION]):
        out.append(b"")
    while len(out) < 7:
        stop = _end_of(data, at, None)
        if stop is None or stop > tbs_end:
            return None
        out.append(data[at:stop])
        at = stop
    outer = _end_of(data, tbs_end, _SEQUENCE)
    if outer is None or outer > end:
        return None
    return [*out, data[tbs_end:outer]]
