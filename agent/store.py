"""What the agent must remember over restarts: one checksummed file for each kind, replaced atomically.

Every file is `RINGFENCE-STATE-1\\n`, SHA-256 over (node, file name, payload), payload (MessagePack). A file that is
cut, edited, moved to another name or brought from another node does not check and is Damaged: never
"empty", never "version 0" (ATTACKS a02). The sum finds faults and mix-ups; it is no defence against root.

Refuses: to guess. Relies on: rename being atomic and fsync being honoured by the file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent.grants import Kept
from contract.directive import Directive
from contract.messages import BaselineRef

S = TypeVar("S", bound=Struct)

_MAGIC = b"RINGFENCE-STATE-1\n"
_SUM_BYTES = 32
_DIRECTIVE = "directive"
_GRANTS_OPEN = "grants-open"
"""Also in packaging/systemd/ringfence-grants.path."""
MAX_RECORD_BYTES = 8 * 1024 * 1024


class Damaged(Exception):
    """A state file is there but cannot be believed."""


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is stored."""


class Slot(Record, frozen=True, kw_only=True):
    """One signed baseline, whole, so that it can be put in force without the network."""

    ref: BaselineRef
    raw: bytes


class Glass(Record, frozen=True, kw_only=True):
    """What is remembered of break-glass codes."""

    used: tuple[int, ...] = ()
    """Ids of codes that were used; none works twice."""
    failed: int = 0
    """Wrong codes in a row."""
    code: int = 0
    """The one that is in force; 0: none."""
    boot_id: str = ""
    ends_s: float = 0.0
    """Seconds since that boot."""
    left_s: float = 0.0
    """As it was when this was last written."""


class State(Record, frozen=True, kw_only=True):
    """What the node is held to. One file, so that no crash can tear it apart."""

    instance: str
    """Random; made once. A new one tells the controller's people that the old state was lost."""
    created: float
    directive_number: int = 0
    """The highest ever accepted."""
    directive: Directive | None = None
    last_good: Slot | None = None
    """Confirmed by a report that went through under it."""
    pending: Slot | None = None
    """Put in force, not confirmed."""
    pending_starts: int = 0
    """Starts of the agent with this pending baseline: one that crashes the agent is not tried for ever."""
    pending_had_contact: bool = False
    """The controller was reachable when it was put in force; without that, silence proves nothing."""
    turned_down: dict[str, int] = {}
    """SHA-256 (hex) of baselines that failed here -> the directive number that had asked for it."""
    reverted: dict[str, tuple[float, int]] = {}
    """SHA-256 (hex) of baselines that were taken back -> when (wall clock) and how often so far."""
    highest: dict[str, int] = {}
    """Baseline name -> highest version ever confirmed."""
    remembered: dict[str, str] = {}
    """First-seen values, for the probes' undo."""
    offline_s: float = 0.0
    """Seconds of running without a verified answer; only ever counted on the monotonic clock."""
    controller_addresses: list[str] = []
    """What the controller's name last resolved to."""
    responses: list[str] = []
    """Names of the responses that were applied and must be undone when they are no longer wanted."""
    healings: list[tuple[float, str, str]] = []
    """When (wall clock) which of our tables was healed, and after whom: what `plan.contest` counts."""
    self_isolated: str = msgspec.field(default="", name="contested")
    """Why this node has isolated itself: over its firewall, or in silence. Until a person releases it (`contract.directive`)."""
    self_isolated_under: int = 0
    """The highest directive number of then: only a release of a later one is meant."""
    boot_id: str = ""
    """Boot in which the rules were last put in force: a difference found later in the same boot is somebody's doing."""
    grants: dict[int, Kept] = {}
    """What is remembered of the grants of the directive, by id."""
    glass: Glass = Glass()
    damaged: bool = False
    """Made in place of a damaged one: the node stays cut off until a directive says otherwise."""


class Keys(Record, frozen=True, kw_only=True):
    """The node's own keys, made once, before enrolment."""

    tls_key: bytes
    """PEM (PKCS #8)."""
    ak_private: bytes
    ak_public: bytes


class Enrolled(Record, frozen=True, kw_only=True):
    """What the controller gave at the end of enrolment."""

    site: str
    chain: bytes
    """Client certificate, leaf first, PEM."""
    directive_key: bytes
    root_metadata: bytes


class Repairs(Record, frozen=True, kw_only=True):
    """What the unit for repairs knows, in a folder of its own that the agent cannot write (`agent.repairing`)."""

    root_metadata: bytes
    """The root that this node trusted when it was enrolled."""
    directive_key: bytes
    directive_number: int = 0
    """The highest whose directive was seen."""
    remembered: dict[str, str] = {}
    """As in the state, for the probes whose repairs happen there."""
    grants: dict[int, Kept] = {}


class Store:
    """The state folder of one node. One thread at a time."""

    def __init__(self, folder: Path, node: str) -> None:
        self.folder = folder
        self._node = node
        with contextlib.suppress(OSError):  # a disk that takes nothing: the fence must stand all the same
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load_state(self) -> State | None:
        """Return the state, None if there is no file. Raises Damaged."""
        return self._load("state", State)

    def save_state(self, state: State) -> None:
        """Replace the state atomically; on disk when this returns. Raises OSError."""
        self._save("state", state)

    def set_aside(self) -> None:
        """Keep every damaged file for people to look at, under another name."""
        kinds: dict[str, type[Struct]] = {"state": State, "keys": Keys, "enrolled": Enrolled}
        for name, kind in kinds.items():
            try:
                self._load(name, kind)
            except Damaged:
                with contextlib.suppress(OSError):
                    (self.folder / name).replace(self.folder / f"{name}.damaged")

    def used_codes(self) -> set[int]:
        """Return the ids of break-glass codes that were used; kept beside the state, so that neither alone forgets."""
        try:
            words = (self.folder / "break-glass.used").read_text("ascii", "replace").split()
        except OSError:
            return set()
        return {int(word) for word in words if word.isascii() and word.isdigit()}

    def note_used_code(self, code: int) -> None:
        """Write down that a code was used; on disk when this returns. Raises OSError."""
        lines = "".join(f"{each}\n" for each in sorted({*self.used_codes(), code}))
        replace_file(self.folder / "break-glass.used", lines.encode())

    def mark_grants(self, *, is_open: bool) -> None:
        """Mark the folder while a grant is open whose end is not the kernel's: `agent.grantends` waits beside the agent.

        Where the disk takes nothing there is no mark; what is open ends by the agent alone.
        """
        mark = self.folder / _GRANTS_OPEN
        with contextlib.suppress(OSError):
            if is_open != mark.exists():
                mark.touch(0o600) if is_open else mark.unlink()

    def grants_open(self) -> bool:
        """Tell whether the folder is marked so."""
        return (self.folder / _GRANTS_OPEN).exists()

    def keys(self, make: Callable[[], Keys]) -> Keys:
        """Return the node's keys, made and stored first where there are none. Raises Damaged, OSError."""
        found = self._load("keys", Keys)
        if found is None:
            found = make()
            self._save("keys", found)
        return found

    def stored_keys(self) -> Keys | None:
        """Return the keys if they were made. Raises Damaged."""
        return self._load("keys", Keys)

    def enrolled(self) -> Enrolled | None:
        """Return what enrolment gave, None before it. Raises Damaged."""
        return self._load("enrolled", Enrolled)

    def save_enrolled(self, enrolled: Enrolled) -> None:
        """Store the result of enrolment or of a renewal. Raises OSError."""
        self._save("enrolled", enrolled)

    def repairs(self) -> Repairs | None:
        """Return what the unit for repairs knows, None before its first work. Raises Damaged."""
        return self._load("repairs", Repairs)

    def save_repairs(self, repairs: Repairs) -> None:
        """Replace it atomically; on disk when this returns. Raises OSError."""
        self._save("repairs", repairs)

    def set_aside_repairs(self) -> None:
        """Keep a damaged one for people to look at, under another name."""
        with contextlib.suppress(OSError):
            (self.folder / "repairs").replace(self.folder / "repairs.damaged")

    def signed_directive(self) -> bytes:
        """Return the envelope of the directive last accepted; empty where there is none. Raises OSError; a link is none."""
        try:
            descriptor = os.open(
                self.folder / _DIRECTIVE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MAX_RECORD_BYTES)

    def has_signed_directive(self) -> bool:
        """Tell whether one is kept."""
        return (self.folder / _DIRECTIVE).exists()

    def save_signed_directive(self, envelope: bytes) -> None:
        """Keep it as it is signed, for those who do not take the agent's word. Raises OSError."""
        replace_file(self.folder / _DIRECTIVE, envelope)

    def _sum(self, name: str, payload: bytes) -> bytes:
        digest = hashlib.sha256()
        for part in (self._node.encode(), name.encode(), payload):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()

    def _load(self, name: str, kind: type[S]) -> S | None:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_RECORD_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damaged(f"{path}: {error.strerror}") from None
        head = len(_MAGIC) + _SUM_BYTES
        payload = raw[head:]
        if (
            not raw.startswith(_MAGIC)
            or len(raw) > MAX_RECORD_BYTES
            or raw[len(_MAGIC) : head] != self._sum(name, payload)
        ):
            raise Damaged(f"{path}: cut, changed, or of another node")
        try:
            return msgspec.msgpack.decode(payload, type=kind, strict=True)
        except (msgspec.DecodeError, ValueError) as error:
            raise Damaged(f"{path}: {error}") from None

    def _save(self, name: str, record: Struct) -> None:
        payload = msgspec.msgpack.encode(record)
        replace_file(self.folder / name, _MAGIC + self._sum(name, payload) + payload)


def fresh_state(now: float, *, damaged: bool = False) -> State:
    """Return the state of a node that remembers nothing."""
    return State(instance=secrets.token_hex(8), created=now, damaged=damaged)


def replace_file(path: Path, content: bytes) -> None:
    """Write so that after any crash the old or the new content is there, whole. Mode 0600. Raises OSError."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a rename, creation or removal in `folder` on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
