"""The agent's configuration: `/etc/ringfence/agent.toml` and `agent.toml`'s folder `conf.d/*.toml`.

Refuses: any unknown key, wrong type or wrong value, whole, with file, line and key (ATTACKS a09).
Relies on: nothing but the files. Later files of conf.d replace single keys of earlier ones.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.names import checked_name

DEFAULT_PATH = Path("/etc/ringfence/agent.toml")
DEFAULT_NODE_PORT = 8440

Positive = Annotated[float, Meta(gt=0, le=86400)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base: immutable, by keyword, unknown keys refused."""


class ControllerConfig(Section):
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


class TpmConfig(Section):
    """How to reach the TPM, and which keys of it to use."""

    tcti: str = "device:/dev/tpmrm0"
    ek: Literal["rsa2048", "rsa3072", "ecc256", "ecc384"] = "rsa2048"
    ak: Literal["ecc256", "rsa2048"] = "ecc256"
    ek_certificate: str = ""
    """DER file, for TPMs without a certificate in NV."""
    event_log: str = "/sys/kernel/security/tpm0/binary_bios_measurements"


class RootsConfig(Section):
    """Where the machine's trees are. Other values are for tests and for agents in containers."""

    sysfs: str = "/sys"
    proc: str = "/proc"
    root: str = "/"


class SpoolConfig(Section):
    """The event spool on disk."""

    max_bytes: Annotated[int, Meta(ge=65536, le=2**30)] = 16 * 1024 * 1024


class AgentConfig(Section):
    """The whole of agent.toml."""

    node: str
    """Name of this node: a DNS label in lower case, unique in the fleet."""
    site: str = ""
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
