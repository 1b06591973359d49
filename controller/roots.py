"""The folders of trust in devices: makers' roots and intermediates, their revocation lists, roots of device identities.

    ek-roots/*.pem *.crt *.cer *.der     who may vouch for an EK
    crls/*.crl *.pem                     whom they have revoked
    devid-roots/*.pem ...                makers of devices (IDevID); devid-roots/ldevid/*.pem ...: the owner's own (LDevID)

Read at start and every hour. A file that cannot be read is an error and never "no such root". Fetches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from msgspec import Struct

from contract import ekder
from contract.certpath import Trust, parse
from contract.crl import StaleCrl
from contract.devid import DevIdTrust
from contract.errors import Rejected
from controller.config import EnrolmentConfig

CODE = "keys.malformed"
_CERTIFICATES = frozenset({".pem", ".crt", ".cer", ".der"})
_LISTS = frozenset({".crl", ".pem", ".der"})
MAX_FILE_BYTES = 16 * 1024 * 1024
_PEM_LIST = b"-----BEGIN X509 CRL-----"


class DeviceTrust(Struct, frozen=True, kw_only=True):
    """Whose word about devices is believed."""

    ek: Trust
    devid: DevIdTrust


def load_device_trust(directory: Path, config: EnrolmentConfig) -> DeviceTrust:
    """Load every folder of `config`, relative to `directory`. A folder that is not there is empty. Raises Rejected `keys.malformed`."""
    crls = load_crls(directory / config.ek_crls)

    def trust(folder: Path, lists: list[x509.CertificateRevocationList], stale: StaleCrl) -> Trust:
        return Trust(certificates=load_roots(folder), crls=lists, stale_crl=stale)

    devids = directory / config.devid_roots
    return DeviceTrust(
        ek=trust(directory / config.ek_roots, crls, config.expired_crl),
        devid=DevIdTrust(
            idevid=trust(devids, crls, config.expired_crl),
            ldevid=trust(devids / "ldevid", crls, config.expired_crl),
        ),
    )


def load_roots(folder: Path) -> list[x509.Certificate]:
    """Load every certificate of a folder. Raises Rejected `keys.malformed`."""
    return [certificate for path in files(folder, _CERTIFICATES) for certificate in certificates_of(path)]


def certificates_of(path: Path) -> list[x509.Certificate]:
    """Load one file, PEM or DER. Raises Rejected `keys.malformed`: a file without any is one too."""
    try:
        found = [parse(piece, "root") for piece in _pieces(path)]
    except Rejected as rejected:
        raise Rejected(CODE, f"{path}: {rejected.detail}") from None
    if not found:
        raise Rejected(CODE, f"{path}: no certificate in it")
    return found


def load_crls(folder: Path) -> list[x509.CertificateRevocationList]:
    """Load every revocation list of a folder. Raises Rejected `keys.malformed`."""
    return [crl_of(path) for path in files(folder, _LISTS)]


def crl_of(path: Path) -> x509.CertificateRevocationList:
    """Load one list, PEM or DER, whole. Raises Rejected `keys.malformed`."""
    content = _read(path)
    try:
        crl = (
            x509.load_pem_x509_crl(content)
            if content.lstrip().startswith(_PEM_LIST)
            else x509.load_der_x509_crl(content)
        )
        # Parsed on first use: all of it here, so that nothing behind can fail.
        _ = crl.extensions, crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.signature_hash_algorithm
        for entry in crl:
            _ = entry.serial_number, entry.revocation_date_utc, entry.extensions
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise Rejected(CODE, f"{path}: not a revocation list: {str(error)[:200]}") from None
    return crl


def files(folder: Path, endings: frozenset[str] = _CERTIFICATES) -> Iterator[Path]:
    """Yield the files of a folder by name."""
    yield from sorted(path for path in folder.glob("*") if path.suffix.lower() in endings and path.is_file())


def _pieces(path: Path) -> list[bytes]:
    return ekder.certificates_in(_read(path), "root", most=ekder.NO_LIMIT)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Rejected(CODE, f"{path}: more than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Rejected(CODE, f"{path}: {error.strerror}") from None
