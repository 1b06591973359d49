"""The agent's configuration: `/etc/ringfence/agent.toml` and `agent.toml`'s folder `conf.d/*.toml`.

Refuses: any unknown key, wrong type or wrong value, whole, with file, line and key (ATTACKS a09).
Relies on: nothing but the files. Later files of conf.d replace single keys of earlier ones.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.messages import Name
from contract.toml import convert_toml, parse_toml, refuse_key

DEFAULT_PATH = Path("/etc/ringfence/agent.toml")
DEFAULT_NODE_PORT = 8440

Positive = Annotated[float, Meta(gt=0, le=86400)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base: immutable, by keyword, unknown keys refused."""


class ControllerConfig(Section, frozen=True, kw_only=True):
    """Where the controller is and by which CA it proves itself."""

    url: str
    """`https://host:port`."""
    ca: str
    """PEM file: the only CA that the agent believes for the controller."""
    addresses: list[str] = []
    """The controller's IP addresses. Needed where the url has a name and the name service may be cut off."""

    @property
    def host(self) -> str:
        """Host part of the url."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Port part of the url."""
        return urlsplit(self.url).port or DEFAULT_NODE_PORT

    def literal_addresses(self) -> list[str]:
        """Return the addresses that need no name service: configured, or the url's own."""
        if self.addresses:
            return list(self.addresses)
        try:
            return [str(ipaddress.ip_address(self.host))]
        except ValueError:
            return []


class TpmConfig(Section, frozen=True, kw_only=True):
    """How to reach the TPM, and which keys of it to use."""

    tcti: str = "device:/dev/tpmrm0"
    ek: Literal["rsa2048", "rsa3072", "ecc256", "ecc384"] = "rsa2048"
    ak: Literal["ecc256", "rsa2048"] = "ecc256"
    ek_certificate: str = ""
    """File (DER, PEM, or what the maker's service answers), for TPMs without a certificate in NV; others of its chain may follow."""
    devid_certificates: list[str] = []
    """Files of device identities whose keys this TPM holds, besides those in its NV."""
    event_log: str = "/sys/kernel/security/tpm0/binary_bios_measurements"
    ima_log: str = "/sys/kernel/security/ima/binary_runtime_measurements"


class RootsConfig(Section, frozen=True, kw_only=True):
    """Where the machine's trees are. Other values are for tests and for agents in containers."""

    sysfs: str = "/sys"
    proc: str = "/proc"
    root: str = "/"


class SpoolConfig(Section, frozen=True, kw_only=True):
    """The event spool on disk."""

    max_bytes: Annotated[int, Meta(ge=65536, le=2**30)] = 16 * 1024 * 1024


class AgentConfig(Section, frozen=True, kw_only=True):
    """The whole of agent.toml."""

    node: Name
    """Name of this node: a DNS label in lower case, unique in the fleet."""
    site: Name | None = None
    """Site asked for at enrolment; the controller decides."""
    controller: ControllerConfig
    state_dir: str = "/var/lib/ringfence"
    tpm: TpmConfig = TpmConfig()
    roots: RootsConfig = RootsConfig()
    root_metadata: str = ""
    """Pinned TUF root.json; empty: the one given at enrolment is trusted (trust on first use)."""
    token_file: str = ""
    """File with a one-use enrolment token."""
    interval_s: Positive = 30.0
    """A full pass at least this often, kernel events or not. Reports follow the controller's interval."""
    confirm_s: Positive = 30.0
    """A new baseline that lets no report through for so long is taken back."""
    spool: SpoolConfig = SpoolConfig()

    @property
    def state(self) -> Path:
        """The state folder."""
        return Path(self.state_dir)


def load_config(path: Path = DEFAULT_PATH) -> AgentConfig:
    """Read the configuration and the `conf.d/*.toml` beside it, in the order of their names.

    The first file must be complete by itself; each later one may replace single keys. Raises Rejected
    `config.file`, `config.syntax`, `config.key`: "agent.toml:3: controller.url: expected ...".
    """
    data, text = _read(path)
    config = _checked(data, text, path.name)
    extra = path.parent / "conf.d"
    for one in sorted(extra.glob("*.toml")) if extra.is_dir() else []:
        # What was there before is known to be right, so a fault found now stands in this file.
        more, text = _read(one)
        data = _merged(data, more)
        config = _checked(data, text, one.name)
    return config


def _read(path: Path) -> tuple[dict[str, object], str]:
    try:
        untrusted = path.read_bytes()
    except OSError as error:
        raise Rejected("config.file", f"{path}: {error.strerror}") from None
    return parse_toml(untrusted, file=path.name, code="config")


def _merged(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    out = dict(below)
    for key, value in above.items():
        before = out.get(key)
        out[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return out


def _checked(data: dict[str, object], text: str, file: str) -> AgentConfig:
    config = convert_toml(data, AgentConfig, text=text, file=file, code="config")

    def wrong(expected: str, *at: str | int) -> Rejected:
        return refuse_key(at, expected, text=text, file=file, code="config")

    try:
        url = urlsplit(config.controller.url)
        port = url.port
    except ValueError:
        raise wrong("expected `https://host:port`", "controller", "url") from None
    if (
        url.scheme != "https"
        or not url.hostname
        or url.path not in ("", "/")
        or url.query
        or url.fragment
        or url.username
    ):
        raise wrong("expected `https://host:port`", "controller", "url")
    if port == 0:
        raise wrong("expected a port from 1 to 65535", "controller", "url")
    for place, address in enumerate(config.controller.addresses):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise wrong("expected an IP address", "controller", "addresses", place) from None
    for name in ("state_dir", "root_metadata", "token_file"):
        if (value := getattr(config, name)) and not value.startswith("/"):
            raise wrong("expected an absolute path", name)
    if not config.controller.ca.startswith("/"):
        raise wrong("expected an absolute path", "controller", "ca")
    return config
