"""The schema of the baseline's `[boot]` section: what a node's measured boot must be.

Refuses what cannot be meant: unknown keys, an unknown word, a rule over a PCR that is not compared. A rule that
lists nothing allows nothing. Judging is `contract.boot`'s; this module decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from contract.baseline import SectionBase
from contract.binding import BOOT_PCRS

Pcr = Annotated[int, Meta(ge=0, le=23)]
PcrKey = Annotated[str, Meta(pattern=r"\A(?:[0-9]|1[0-9]|2[0-3])\Z")]
HexDigest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Digests = Annotated[list[HexDigest], Meta(max_length=4096)]
Component = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._+-]{0,63}\Z")]
"""A component of SBAT: `shim`, `grub`, `grub.debian`."""
Generation = Annotated[int, Meta(ge=1, le=65535)]
Parameter = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\A[^\s\"]+\Z")]
"""A whole parameter (`quiet`, `lockdown=integrity`), or a name with its `=` for whatever value (`root=`)."""
Version = Annotated[str, Meta(min_length=1, max_length=256)]

STAGE_PCRS: Final = {
    "firmware": frozenset({0}),
    "option_rom": frozenset({2}),
    "driver": frozenset({0, 2, 4}),
    "boot_loader": frozenset({4}),
    "kernel": frozenset({4, 9}),
    "initrd": frozenset({9}),
}
"""Where each stage of `[boot.stages]` is measured."""
REVOCATION: Final = "revocation"
"""Stage of a list whose older states must not come back."""
KEYS_PCR: Final = 7
FIRMWARE_PCR: Final = 0
COMMAND_PCR: Final = 8
QUESTION_PCRS: Final = frozenset({4, KEYS_PCR, COMMAND_PCR})


class Stages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[boot.stages]`: what may be loaded at each stage. An absent key sets no rule; an empty list allows nothing."""

    firmware: Digests | None = None
    option_rom: Digests | None = None
    driver: Digests | None = None
    boot_loader: Digests | None = None
    kernel: Digests | None = None
    initrd: Digests | None = None

    def listed(self) -> Iterator[tuple[str, frozenset[bytes]]]:
        """Return each stage that has a list, by its key, with what it allows."""
        for stage in STAGE_PCRS:
            digests: list[str] | None = getattr(self, stage)
            if digests is not None:
                yield stage, frozenset(map(bytes.fromhex, digests))


class BootPolicy(SectionBase, frozen=True, kw_only=True):
    """The `[boot]` section. Every rule that is there must hold, besides the comparison with the reference."""

    pcrs: list[Pcr] = field(default_factory=lambda: sorted(BOOT_PCRS))
    """SHA-256 PCRs that must be as in the reference. An empty list trusts nothing."""
    runtime_pcrs: list[Pcr] = field(default_factory=list)
    """Those that the running system extends as well (systemd: 9), so that the log need not lead to their value. For those
    that are in `pcrs` too, not the value is compared but the events of the log, which no quote proves for them."""
    event_log: Literal["required", "optional"] = "required"
    reference: Literal["enrolment", "pinned"] = "enrolment"
    """`enrolment`: the first boot after approval, kept by the controller. `pinned`: the values below."""
    pinned: dict[PcrKey, list[HexDigest]] = field(default_factory=dict)
    """PCR to the values allowed, in lower-case hexadecimal."""
    unannounced: Literal["refuse", "question"] = "refuse"
    """What becomes of a boot that differs from the accepted one in nothing but boot loader, kernel, initrd, and lists that
    revoke more than they did."""
    secure_boot: Literal["required", "any"] = "any"
    required_dbx: Digests = field(default_factory=list)
    """Entries that the revocation list must hold: hashes, or SHA-256 of certificates."""
    minimum_dbx_entries: Annotated[int, Meta(ge=0, le=100_000)] = 0
    minimum_sbat: dict[Component, Generation] = field(default_factory=dict)
    """Component to the least generation that the revocation level in force must demand."""
    minimum_sbat_level: Annotated[str, Meta(pattern=r"\A(?:[0-9]{10})?\Z")] = ""
    """Date line of the revocation level, such as 2023012900; empty: any."""
    allowed_signers: Digests | None = None
    """SHA-256 of every certificate that may vouch for what is loaded."""
    cmdline_required: list[Parameter] = field(default_factory=list)
    cmdline_forbidden: list[Parameter] = field(default_factory=list)
    cmdline_allowed: list[Parameter] | None = None
    """The only parameters there may be, besides the required ones."""
    firmware_versions: list[Version] | None = None
    stages: Stages = Stages()

    @property
    def proven_pcrs(self) -> frozenset[int]:
        """Return the PCRs whose value the quote proves and the log must explain."""
        return frozenset(self.pcrs) - frozenset(self.runtime_pcrs)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; msgspec turns it into an error with the key's path."""
        if len(set(self.pcrs)) != len(self.pcrs):
            raise ValueError("`pcrs` names a PCR twice")
        if not BOOT_PCRS.issuperset(self.pcrs):
            quoted = ", ".join(map(str, sorted(BOOT_PCRS)))
            raise ValueError(
                f"`pcrs` may name {quoted}: no other tells of the boot, since software extends or resets them"
            )
        if not BOOT_PCRS.issuperset(self.runtime_pcrs):
            quoted = ", ".join(map(str, sorted(BOOT_PCRS)))
            raise ValueError(f"`runtime_pcrs` may name {quoted}: no other is held against the log")
        if self.reference == "enrolment" and self.pinned:
            raise ValueError('`pinned` needs `reference = "pinned"`')
        for key, wanted in self._needs():
            if self.pcrs and not wanted & self.proven_pcrs:
                numbers = " or ".join(map(str, sorted(wanted)))
                raise ValueError(f"`{key}` needs PCR {numbers} in `pcrs` and not in `runtime_pcrs`")
        if self.unannounced == "question":
            if self.reference == "pinned":
                raise ValueError('`unannounced = "question"` needs `reference = "enrolment"`')
            if self.pcrs and not self.proven_pcrs >= QUESTION_PCRS:
                raise ValueError(
                    '`unannounced = "question"` needs PCR 4, 7 and 8 in `pcrs` and not in `runtime_pcrs`'
                )

    def _needs(self) -> Iterator[tuple[str, frozenset[int]]]:
        """Return each rule that is set, with the PCRs of which one must be proved."""
        keys = {
            "secure_boot": self.secure_boot == "required",
            "required_dbx": self.required_dbx,
            "minimum_dbx_entries": self.minimum_dbx_entries,
            "minimum_sbat": self.minimum_sbat,
            "minimum_sbat_level": self.minimum_sbat_level,
            "allowed_signers": self.allowed_signers is not None,
        }
        yield from ((key, frozenset({KEYS_PCR})) for key, is_set in keys.items() if is_set)
        if self.cmdline_required or self.cmdline_forbidden or self.cmdline_allowed is not None:
            yield "cmdline_*", frozenset({COMMAND_PCR})
        if self.firmware_versions is not None:
            yield "firmware_versions", frozenset({FIRMWARE_PCR})
        yield from ((f"stages.{stage}", STAGE_PCRS[stage]) for stage, _ in self.stages.listed())
