"""controller.toml: strict, refused whole with file, line, key and what was expected.

Relative paths are relative to the folder of the file. Relies on `contract.toml` for the
line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from contract.crl import StaleCrl
from contract.errors import Rejected
from contract.toml import convert_toml, parse_toml, refuse_key
from controller import outlets
from controller.idtoken import Algorithm
from controller.permissions import Right
from controller.policy import EvidenceLimits

CONFIG_NAME = "controller.toml"
CODE = "config"

Positive = Annotated[float, Meta(gt=0, le=365 * 86400)]
Cap = Annotated[int, Meta(ge=1, le=1_000_000)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts of the file: unknown keys are refused."""


class Listen(Section, frozen=True, kw_only=True):
    """Where a listener listens: `"[::]:8440"` is every address of both families."""

    listen: str


class StoreConfig(Section, frozen=True, kw_only=True):
    """The database. Empty: SQLite in the folder of the configuration."""

    url: str = ""


class CertificateConfig(Section, frozen=True, kw_only=True):
    """Client certificates of nodes."""

    node_hours: Annotated[float, Meta(gt=0, le=24 * 365)] = 72.0
    names: list[str] = []
    """Further DNS names and addresses for the certificates of both listeners."""


class EnrolmentConfig(Section, frozen=True, kw_only=True):
    """How new nodes come in."""

    ek_roots: str = "ek-roots"
    """Folder of certificates: the authorities whose TPM endorsement certificates are trusted."""
    ek_crls: str = "crls"
    """Folder of revocation lists."""
    expired_crl: StaleCrl = "refuse"
    """What a revocation list past its date means for the certificates of its issuer: refuse them, or note it."""
    devid_roots: str = "devid-roots"
    """Folder of certificates: makers whose device identities are believed; the owner's own authorities in `ldevid` below it."""
    retry_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0
    """How long an unapproved node waits before it asks again."""
    max_pending: Cap = 1000
    """Enrolments that wait for a person; past it new ones are turned away."""


class Limits(Section, frozen=True, kw_only=True):
    """What strangers may use up."""

    handshake_s: Positive = 10.0
    request_s: Positive = 20.0
    """Longest time for the head of a request, and again for its body."""
    per_address: Cap = 128
    """Connections of one address (IPv6: one /64) that have shown no node certificate."""
    connections: Cap = 50_000
    """Connections of one listener."""
    handshakes: Cap = 512
    """TLS handshakes at once; past it others wait."""
    waiting: Cap = 8192
    """Connections that wait for a handshake, each address's in its turn; one address has at most half of the places."""
    failures_per_minute: Cap = 120
    """Bad tokens or bad enrolments of one address before it must wait."""
    requests_per_minute: Cap = 6000
    """Requests of one account to this controller's admin API before it must wait."""
    logins_per_minute: Cap = 30
    """Tries to log in of one address, right ones as well: each costs a slow hash."""


class InventoryConfig(Section, frozen=True, kw_only=True):
    """What nodes say they consist of."""

    history_days: Annotated[float, Meta(gt=0, le=36_500)] = 365.0
    """So long it is kept what a node consisted of once."""


class PeopleConfig(Section, frozen=True, kw_only=True):
    """People who log in."""

    session_hours: Annotated[float, Meta(gt=0, le=24 * 7)] = 8.0
    """After so long they log in again."""
    setup_hours: Annotated[float, Meta(gt=0, le=24 * 30)] = 72.0
    """So long the code is good with which a person is set up."""


class GroupRight(Right, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What people of a group may do."""

    group: Annotated[str, Meta(min_length=1, max_length=256)]


class OidcConfig(Section, frozen=True, kw_only=True):
    """An OpenID Connect issuer that vouches for people."""

    issuer: str
    """https URL, exactly as its tokens have it."""
    client_id: Annotated[str, Meta(min_length=1, max_length=256)]
    ca: str = ""
    """PEM file of the authority of its certificate; empty: the system's."""
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = get_args(Algorithm)
    scope: str = "openid"
    """Must have `openid`; more where the claims below need it."""
    name_claim: Annotated[str, Meta(min_length=1, max_length=64)] = "sub"
    """What names a person for ever: one that the issuer gives to nobody else."""
    groups_claim: Annotated[str, Meta(min_length=1, max_length=64)] = "groups"
    rights: list[GroupRight] = []
    """None: nobody can do anything."""


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    name: str = "ringfence"
    node_url: str
    """How agents reach this controller: https://host:port."""
    admin_url: str
    """How admins reach it: https://host:port."""
    nodes: Listen
    admins: Listen
    store: StoreConfig = StoreConfig()
    certificates: CertificateConfig = CertificateConfig()
    enrolment: EnrolmentConfig = EnrolmentConfig()
    limits: Limits = Limits()
    people: PeopleConfig = PeopleConfig()
    oidc: OidcConfig | None = None
    evidence: EvidenceLimits = EvidenceLimits()
    inventory: InventoryConfig = InventoryConfig()
    outlet: list[dict[str, object]] = []
    """Receivers of events, each typed by its kind: `outlets_of`."""


def parse_config(untrusted: bytes, *, file: str = CONFIG_NAME) -> Config:
    """Parse controller.toml. Raises Rejected `config.*` with `file:line: key: expected`."""
    data, text = parse_toml(untrusted, file=file, code=CODE)
    config = convert_toml(data, Config, text=text, file=file, code=CODE)
    for key, url in (("node_url", config.node_url), ("admin_url", config.admin_url)):
        if not _is_base_url(url):
            raise refuse_key(
                (key,), f"expected https://host:port, found {url!r}", text=text, file=file, code=CODE
            )
    for name, part in (("nodes", config.nodes), ("admins", config.admins)):
        try:
            listen_address(part.listen)
        except ValueError as error:
            raise refuse_key((name, "listen"), str(error), text=text, file=file, code=CODE) from None
    outlets.parse_outlets(config.outlet, text=text, file=file, code=CODE)
    if config.oidc is not None and not _is_issuer(config.oidc.issuer):
        expected = f"expected https://host[:port][/path], found {config.oidc.issuer!r}"
        raise refuse_key(("oidc", "issuer"), expected, text=text, file=file, code=CODE)
    if config.oidc is not None and "openid" not in config.oidc.scope.split():
        raise refuse_key(("oidc", "scope"), "expected `openid` among them", text=text, file=file, code=CODE)
    return config


def outlets_of(config: Config) -> list[outlets.Settings]:
    """Return the outlets of a parsed configuration."""
    return outlets.parse_outlets(config.outlet, text="", file=CONFIG_NAME, code=CODE)


def load_config(directory: Path) -> Config:
    """Read and parse the file in `directory`. Raises Rejected `config.missing` and as `parse_config`."""
    path = directory / CONFIG_NAME
    try:
        untrusted = path.read_bytes()
    except OSError as error:
        raise Rejected(
            "config.missing", f"{path}: {error.strerror}; make it with ringfence-controller init"
        ) from None
    return parse_config(untrusted, file=str(path))


def url_host(url: str) -> str:
    """Return the host of a checked URL, without brackets."""
    return urlsplit(url).hostname or ""


def listen_address(text: str) -> tuple[str, int]:
    """Split `address:port` or `[v6]:port`. Raises ValueError saying what was expected."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'expected "address:port", found {text!r}')
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_issuer(url: str) -> bool:
    """OpenID Connect Core 1.0, clause 2: https, without query and fragment."""
    try:
        parts = urlsplit(url)
        plain = not (parts.query or parts.fragment or parts.username)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and plain
    except ValueError:
        return False


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        plain = not (parts.query or parts.fragment or parts.username) and parts.path in ("", "/")
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and plain
    except ValueError:
        return False
