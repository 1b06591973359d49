"""The controller's key files and nothing else: made by init, loaded by serve, renewed before they end.

    keys/directive.key      Ed25519; signs directives
    keys/online.key         Ed25519; signs TUF snapshot and timestamp; online.pub is for `ringfence keys new`
    keys/result.key         P-256; signs attestation results, for others to rely on
    keys/audit.key          Ed25519; signs checkpoints of the audit log
    keys/server-ca.pem|key  what agents and admins pin (copied as controller-ca.pem beside controller.toml)
    keys/server.pem|key     the certificate of both listeners
    keys/node-ca-N.pem|key  node authorities; the highest N issues, all that have not ended are trusted

Refuses to read a private key that anyone but its owner can read, and to write over a key. Keys are never
logged, shown or sent.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from contract.errors import Rejected
from contract.resultkey import ResultKey
from controller.authority import NODE_CA_LIFETIME_S, SERVER_CA_LIFETIME_S, Authority, certificate_due

CA_COPY_NAME = "controller-ca.pem"
_NODE_CA = re.compile(r"node-ca-([0-9]{1,6})\.pem")
_PRIVATE_MODE = 0o600


@dataclass(slots=True)
class Keys:
    """Everything secret that one controller holds."""

    directory: Path
    directive: ed25519.Ed25519PrivateKey
    online: ed25519.Ed25519PrivateKey
    server_authority: Authority
    node_authorities: list[Authority]
    """Oldest first; the last one issues."""
    result: ResultKey
    audit: ed25519.Ed25519PrivateKey

    @property
    def issuer(self) -> Authority:
        """The node authority that issues now."""
        return self.node_authorities[-1]

    @property
    def node_trust(self) -> str:
        """PEM of every node authority: what the node listener trusts."""
        return "".join(authority.pem.decode() for authority in self.node_authorities)

    @property
    def directive_public(self) -> bytes:
        """SubjectPublicKeyInfo DER of the directive key: goes to every enrolled node."""
        return _public_der(self.directive)

    @property
    def people(self) -> bytes:
        """What seals the secrets of people's one-time codes in the database: 32 bytes, made of the directive key, which every
        controller of a fleet has."""
        kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"ringfence people's codes 1")
        return kdf.derive(self.directive.private_bytes_raw())

    @property
    def server_certificate(self) -> Path:
        """PEM file of the listeners' certificate."""
        return self.directory / "server.pem"

    @property
    def server_key(self) -> Path:
        """PEM file of the listeners' key."""
        return self.directory / "server.key"

    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of every public key that nodes, admins or auditors rely on, by the name of its file."""
        found = {
            "directive": self.directive_public,
            "online": _public_der(self.online),
            "result": self.result.pem,
            "audit": _public_der(self.audit),
            "server-ca": self.server_authority.pem,
        }
        found |= {f"node-ca-{_number_of(authority)}": authority.pem for authority in self.node_authorities}
        return {name: hashlib.sha256(public).hexdigest() for name, public in found.items()}

    @property
    def successor(self) -> str:
        """Name of the node authority that would follow the one that issues now."""
        return f"node-ca-{_number_of(self.issuer) + 1}"

    def renew(self, names: Sequence[str], now: float, *, successor: bool = True) -> bool:
        """Make successors for what is due: the server certificate, the node authority. True when something changed.

        `successor` False: no new node authority, as another controller has made one that must be copied here.
        """
        changed = False
        if successor and self.issuer.due(now):
            number = max(_node_ca_numbers(self.directory)) + 1
            self.node_authorities.append(_new_node_authority(self.directory, number, now))
            changed = True
        ended = [
            a for a in self.node_authorities[:-1] if a.certificate.not_valid_after_utc.timestamp() <= now
        ]
        if ended:
            self.node_authorities = [a for a in self.node_authorities if a not in ended]
            changed = True
        if not self.server_certificate.exists() or self._server_due(names, now):
            certificate, key = self.server_authority.issue_server(names, now)
            _replace(self.server_key, _private_pem(key), _PRIVATE_MODE)
            _replace(self.server_certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
            changed = True
        return changed

    def _server_due(self, names: Sequence[str], now: float) -> bool:
        certificate = x509.load_pem_x509_certificate(self.server_certificate.read_bytes())
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return certificate_due(certificate, now) or {str(name.value) for name in held} != set(names)


def create(directory: Path, name: str, now: float) -> Keys:
    """Make every key of a new controller in `directory` (0700, made here).

    Raises FileExistsError when the folder is already there: keys are never written over.
    """
    directory.mkdir(mode=0o700)
    server = Authority.new(f"{name} server authority", now, SERVER_CA_LIFETIME_S)
    _create(directory / "server-ca.pem", server.pem, 0o644)
    _create(directory / "server-ca.key", _private_pem(server.key), _PRIVATE_MODE)
    node = _new_node_authority(directory, 1, now)
    directive, online = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    _create(directory / "directive.key", _private_pem(directive), _PRIVATE_MODE)
    _create(directory / "online.key", _private_pem(online), _PRIVATE_MODE)
    public = online.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _create(directory / "online.pub", public, 0o644)
    return Keys(directory, directive, online, server, [node], _result_key(directory), _audit_key(directory))


def load(directory: Path, now: float) -> Keys:
    """Load the keys of a controller. Raises Rejected `keys.missing`, `keys.exposed`, `keys.malformed`."""
    authorities = [
        _load_authority(directory, f"node-ca-{number}") for number in sorted(_node_ca_numbers(directory))
    ]
    if not authorities:
        raise Rejected("keys.missing", f"{directory}: no node-ca-N.pem")
    newest = authorities[-1]
    trusted = [a for a in authorities if a is newest or a.certificate.not_valid_after_utc.timestamp() > now]
    return Keys(
        directory,
        _load_ed25519(directory / "directive.key"),
        _load_ed25519(directory / "online.key"),
        _load_authority(directory, "server-ca"),
        trusted,
        _result_key(directory),
        _audit_key(directory),
    )


def _public_der(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _number_of(authority: Authority) -> int:
    """Return N of node-ca-N: the end of its name, as `_new_node_authority` gives it."""
    [name] = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return int(str(name.value).rpartition(" ")[2])


def _new_node_authority(directory: Path, number: int, now: float) -> Authority:
    authority = Authority.new(f"Ringfence node authority {number}", now, NODE_CA_LIFETIME_S)
    _create(directory / f"node-ca-{number}.key", _private_pem(authority.key), _PRIVATE_MODE)
    _create(directory / f"node-ca-{number}.pem", authority.pem, 0o644)
    return authority


def _node_ca_numbers(directory: Path) -> list[int]:
    matches = (_NODE_CA.fullmatch(path.name) for path in directory.glob("node-ca-*.pem"))
    return [int(match[1]) for match in matches if match]


def _load_authority(directory: Path, stem: str) -> Authority:
    key = _load_private(directory / f"{stem}.key")
    path = directory / f"{stem}.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise Rejected("keys.missing", f"{path}: {error.strerror}") from None
    except ValueError:
        raise Rejected("keys.malformed", f"{path}: not a PEM certificate") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise Rejected("keys.malformed", f"{path}: its key is not the one of the certificate")
    return Authority(certificate, key)


def _result_key(directory: Path) -> ResultKey:
    """Load the key of results; make it where there is none, as controllers had none before they gave results."""
    path = directory / "result.key"
    if not path.exists():
        _create(path, _private_pem(ec.generate_private_key(ec.SECP256R1())), _PRIVATE_MODE)
    key = _load_private(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Rejected("keys.malformed", f"{path}: wanted a P-256 key")
    return ResultKey(key)


def _audit_key(directory: Path) -> ed25519.Ed25519PrivateKey:
    """Load the key of the audit log; make it where there is none, as `_result_key` does."""
    path = directory / "audit.key"
    if not path.exists():
        _create(path, _private_pem(ed25519.Ed25519PrivateKey.generate()), _PRIVATE_MODE)
    return _load_ed25519(path)


def _load_ed25519(path: Path) -> ed25519.Ed25519PrivateKey:
    key = _load_private(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise Rejected("keys.malformed", f"{path}: wanted an Ed25519 key")
    return key


def _load_private(path: Path) -> object:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Rejected(
                "keys.exposed", f"{path}: others may read it; chmod 600 it, and replace it if they did"
            )
        return serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise Rejected("keys.missing", f"{path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise Rejected("keys.malformed", f"{path}: not an unencrypted PEM private key") from None


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _create(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, content: bytes, mode: int) -> None:
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.unlink(missing_ok=True)
    _create(fresh, content, mode)
    fresh.replace(path)
