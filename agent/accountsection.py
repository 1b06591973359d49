"""The type of `[accounts]`: what may be written in the TOML."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.probes._kept import Path, Reason, Sha256

Account = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?\Z")]
Pattern = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]

PRIVILEGED = ["root", "wheel", "sudo", "admin", "adm", "shadow", "disk", "kmem", "docker", "lxd", "libvirt"]
"""Groups that make root of their members, or let them read what only root should."""


class User(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[accounts.user]]`: somebody who may log in. Need not be there."""

    name: Account
    """As in passwd."""
    uid: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    """Its number; absent: any but 0."""
    shell: Path | None = None
    """Absent: any."""
    password: Literal["locked", "set", "any"] = "locked"  # noqa: S105  (a state)
    """What its password may be. An empty one is a drift in any case."""
    reason: Reason
    """Why, for the next reader."""


class Group(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[accounts.group]]`: a group whose members are held to a list."""

    name: Account
    """As in group."""
    members: Annotated[list[Account], Meta(max_length=256)] = field(default_factory=list)
    """Who may be in it, as first group too."""
    reason: Reason
    """Why, for the next reader."""


class Sudoers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[accounts.sudoers]]`: a file of sudo's rules. It must be there."""

    path: Path
    """`/etc/sudoers`, one of /etc/sudoers.d, or what those include."""
    sha256: Sha256 | None = None
    """Of its content."""
    rules: Annotated[list[Pattern], Meta(max_length=256)] | None = None
    """Every line that may stand there, blanks folded."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        if (self.sha256 is None) == (self.rules is None):
            raise ValueError("expected one of sha256 and rules")


class Key(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[accounts.key]]`: a key that may open an account over SSH. Need not be there."""

    user: Account
    """Whose account."""
    fingerprint: Annotated[str, Meta(pattern=r"\ASHA256:[A-Za-z0-9+/]{43}\Z")]
    """As `ssh-keygen -lf` prints it."""
    options: Annotated[str, Meta(max_length=1024)] = ""
    """What stands before the key, to the letter."""
    reason: Reason
    """Why, for the next reader."""


class Pam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[accounts.pam]]`: a PAM file that must be there with this content."""

    path: Path
    """Below /etc/pam.d or /usr/lib/pam.d, or /etc/pam.conf."""
    sha256: Sha256
    """Of its content."""
    reason: Reason
    """Why, for the next reader."""


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[accounts.file]]`: a PAM module, a login script or a rule of polkit that must be there with this content."""

    path: Path
    """Where it lies."""
    sha256: Sha256
    """Of its content."""
    reason: Reason
    """Why, for the next reader."""


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[accounts]`."""

    unknown: Literal["report", "repair"] = "report"
    """`repair`: take away unknown files of sudoers.d and unknown lines of authorized_keys."""
    packaged: Literal["accept", "report"] = "accept"
    """Whether files that are as a Debian package brought them need no entry."""
    privileged: Annotated[list[Account], Meta(max_length=64)] = field(default_factory=lambda: [*PRIVILEGED])
    """Groups whose members are held to a list, an empty one where none is given."""
    authorized_keys: Annotated[list[Pattern], Meta(min_length=1, max_length=8)] = field(
        default_factory=lambda: [".ssh/authorized_keys", ".ssh/authorized_keys2"]
    )
    """Where keys are looked for, as sshd's AuthorizedKeysFile."""
    sshd: Annotated[list[Pattern], Meta(max_length=32)] = field(default_factory=list)
    """Lines of sshd's configuration that let somebody in otherwise, and may stand there."""
    user: Annotated[list[User], Meta(max_length=256)] = field(default_factory=list)
    """Who may log in, besides root."""
    group: Annotated[list[Group], Meta(max_length=256)] = field(default_factory=list)
    """Who may be in which group."""
    sudoers: Annotated[list[Sudoers], Meta(max_length=256)] = field(default_factory=list)
    """Files of sudo's rules."""
    key: Annotated[list[Key], Meta(max_length=1024)] = field(default_factory=list)
    """Keys of authorized_keys."""
    pam: Annotated[list[Pam], Meta(max_length=256)] = field(default_factory=list)
    """PAM files."""
    file: Annotated[list[File], Meta(max_length=256)] = field(default_factory=list)
    """Other files that decide about logins."""

    def __post_init__(self) -> None:
        for what, names in (
            ("user", [each.name for each in self.user]),
            ("group", [each.name for each in self.group]),
            ("sudoers file", [each.path for each in self.sudoers]),
            ("key of a user", [f"{each.user} {each.fingerprint} {each.options}" for each in self.key]),
            ("PAM file", [each.path for each in self.pam]),
            ("file", [each.path for each in self.file]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"expected each {what} once")
        if any(each.uid == 0 and each.name != "root" for each in self.user):
            raise ValueError("expected uid 0 for root and nobody else")
        files: list[Sudoers | Pam | File] = [*self.sudoers, *self.pam, *self.file]
        for each in [*self.authorized_keys, *(file.path for file in files)]:
            if {".", ".."} & set(each.split("/")):
                raise ValueError("expected paths without '.' and '..'")
