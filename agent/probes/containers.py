"""`[containers]`: which images may run as containers here, and with which powers.

Default deny: a container whose image digest no entry names is drift, and so is one that has more of the machine than its
entry grants: all capabilities, the machine's namespaces, further capabilities, a runtime's socket, the machine's root file
system. Images are held by digest; a name can be given to anything. Reports only, unless `stop = true`: then the container is
killed (its runtime may start it anew: that is seen, and rests as every repair that does not last). Records are read from disk
(`agent.containers`); powers are asked of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.containers import Container, Powers
from agent.fileaccess import CAPABILITIES
from agent.host import printable
from agent.probes import Difference, could_not_look
from agent.probes._bounds import bounded
from contract.messages import Drift

MAX_TOLD = 64
DEFAULT_CAPABILITIES = frozenset(
    [
        "chown",
        "dac_override",
        "fsetid",
        "fowner",
        "mknod",
        "net_raw",
        "setgid",
        "setuid",
        "setfcap",
        "setpcap",
        "net_bind_service",
        "sys_chroot",
        "kill",
        "audit_write",
    ]
)
"""What Docker grants by itself; Podman grants no more."""
Digest = Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
_IMAGE_NAME = r"\A[a-z0-9*][a-z0-9._/:*-]{0,254}\Z"
ImageName = Annotated[str, Meta(pattern=_IMAGE_NAME)]
_CONTAINER_NAME = r"\A[A-Za-z0-9*][A-Za-z0-9_.*-]{0,254}\Z"
ContainerName = Annotated[str, Meta(pattern=_CONTAINER_NAME)]
Capability = Annotated[str, Meta(pattern=r"\A[a-z_]{3,32}\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]
_TAG = re.compile(r"(@sha256:[0-9a-f]{64}|:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})+\Z")
_NUMBER = re.compile(r"(sha256:)?[0-9a-f]{12,64}")
"""An image that was asked for by its id has no name."""


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[containers.allow]]`: an image that may run."""

    digests: Annotated[list[Digest], Meta(min_length=1, max_length=256)]
    """Of the image (`podman images --digests`) or its id; any of them will do."""
    image: ImageName | None = None
    """Repository without tag; `*` stands for any text. Absent: under any name."""
    names: Annotated[list[ContainerName], Meta(max_length=64)] = field(default_factory=list)
    """Names that the container may have; `*` stands for any text. Empty: any."""
    privileged: bool = False
    """It may have every capability of the machine."""
    host_namespaces: list[Literal["network", "pid", "ipc", "uts"]] = field(default_factory=list)
    """Namespaces of the machine that it may share."""
    capabilities: Annotated[list[Capability], Meta(max_length=64)] = field(default_factory=list)
    """Capabilities that it may have beside the usual ones, as `net_admin`."""
    runtime_socket: bool = False
    """A container runtime's socket may be mounted in it: who has that, has the machine."""
    host_root: bool = False
    """The machine's root file system may be mounted in it."""
    user: Annotated[int, Meta(ge=0, lt=2**32)] | None = None
    """Its first process must run as this user, as the machine numbers them; absent: as any."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        if unknown := set(self.capabilities) - set(CAPABILITIES):
            raise ValueError(
                f"expected capabilities without `cap_`, as `net_admin`; got {sorted(unknown)[0]!r}"
            )
        if self.image is not None and _TAG.search(self.image):
            raise ValueError("expected a repository without tag: what it is, the digests tell")


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[containers]`."""

    allow: Annotated[list[Allow], Meta(max_length=512)] = field(default_factory=list)
    """Images that may run."""
    stop: bool = False
    """In mode `enforce`: kill a container that no entry allows as it is."""
    unnamed: Literal["report", "ignore"] = "report"
    """A PID namespace that is no known container's: one of a user's own runtime, or made by hand."""


class Probe(probes.Probe[Section]):
    """Compares running containers with the section."""

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each container that is not allowed, or has more powers than its entry grants."""
        return self.drifts(bounded("more containers", self._differences(), MAX_TOLD), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Kill containers that are not allowed as they are, if the section says so. Raises OSError if none can be listed."""
        if not self.section.stop:
            return
        wrong = {drift.key for drift in drifts}
        tree = self.around.host.containers
        for container in tree.running():
            found = list(self._wrong(container))
            if any(each.key in wrong and each.found != probes.UNSEEN for each in found):
                try:
                    tree.stop(container)
                except OSError:
                    continue  # gone, or not to be killed: the next observation tells

    def _differences(self) -> Iterator[Difference]:
        tree = self.around.host.containers
        try:
            running = tree.running()
        except OSError as error:
            yield could_not_look("containers", "a list of running containers", error)
            return
        for container in running:
            yield from self._wrong(container)
        if self.section.unnamed == "report":
            for pid in tree.unnamed(running):
                process = self.around.host.describe_process(pid)
                yield Difference(
                    f"PID namespace of process {pid}",
                    "no container that no runtime records",
                    "there",
                    process,
                )

    def _wrong(self, container: Container) -> Iterator[Difference]:
        key = f"container {printable(container.name)}"
        entries = [each for each in self.section.allow if _is_of(each, container)]
        if not entries:
            digests = ", ".join(sorted(container.digests)) or "of no known digest"
            found = printable(
                f"{container.image or 'an image without a name'}, {digests}, by {container.runtime}"
            )
            yield Difference(key, "an image whose digest is listed", found)
            return
        try:
            powers = self.around.host.containers.powers(container)
        except (OSError, KeyError, ValueError) as error:
            yield could_not_look(key, "a look at what it may do", error)
            return
        yield from min((list(_excess(key, entry, powers)) for entry in entries), key=len)


def repository(image: str) -> str | None:
    """Return what an image is called without tag and digest; None where a rule could not name it."""
    name = _TAG.sub("", image)
    return name if re.match(_IMAGE_NAME, name) and "*" not in name and not _NUMBER.fullmatch(image) else None


def is_name(container: str) -> bool:
    """Tell whether a rule can name this very container."""
    return re.match(_CONTAINER_NAME, container) is not None and "*" not in container


def _is_of(entry: Allow, container: Container) -> bool:
    if not container.digests & set(entry.digests):
        return False
    if entry.image is not None and not fnmatchcase(_TAG.sub("", container.image), entry.image):
        return False
    return not entry.names or any(fnmatchcase(container.name, name) for name in entry.names)


def _excess(key: str, entry: Allow, powers: Powers) -> Iterator[Difference]:
    """Yield what a container has beyond its entry."""
    if powers.all_capabilities and not powers.own_users and not entry.privileged:
        yield Difference(f"{key} privileged", "not privileged", "has every capability of the machine")
    elif not powers.own_users and not entry.privileged:
        names = {name for place, name in enumerate(CAPABILITIES) if powers.capabilities >> place & 1}
        if more := sorted(names - DEFAULT_CAPABILITIES - set(entry.capabilities)):
            yield Difference(
                f"{key} capabilities", "the usual ones" + _also(entry.capabilities), ", ".join(more)
            )
    if shared := sorted(powers.namespaces - set(entry.host_namespaces)):
        yield Difference(f"{key} namespaces", "its own" + _also(entry.host_namespaces), ", ".join(shared))
    if powers.sockets and not entry.runtime_socket:
        yield Difference(f"{key} runtime socket", "not within reach", ", ".join(powers.sockets))
    if powers.host_root and not entry.host_root:
        yield Difference(f"{key} root file system", "its own only", "the machine's is mounted")
    if entry.user is not None and powers.uid != entry.user:
        yield Difference(f"{key} user", str(entry.user), str(powers.uid))


def _also(granted: Sequence[str]) -> str:
    return f" and {', '.join(granted)}" if granted else ""
