"""`[modules]`: which kernel modules may be loaded, and how the kernel guards itself against others.

Refuses to load anything, to unload by force, and to unload at all unless `unload` says so. A blocked module is kept
out by a modprobe.d file (`install NAME /bin/false`); that stops modprobe and the kernel's own requests, but not
root's insmod: lockdown, signatures and `loading = "closed"` do. These are raised one way only, and hold until the next boot:
the kernel lowers none of them, not even for us. A module that was loaded and unloaded between two looks leaves a taint if it was unsigned or forced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from agent import probes
from agent.host import Host, Identity
from agent.probes import Difference, could_not_look
from agent.tree import Kept, file_of
from contract.messages import Drift

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,55}\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]

MODPROBE_FILE = "/etc/modprobe.d/00-ringfence.conf"
"""Early in order: of several `install` lines for one module kmod takes the first."""
SHOWN = 32
"""So many unknown modules are drifts of their own; the others are one drift together."""
_MAX_FILE_BYTES = 65536
_MAX_BUILT_IN_BYTES = 1024 * 1024
_MODE = 0o644
_MORE = "more modules"
_STRICTNESS = ("none", "integrity", "confidentiality")
_TAINTS = {1: "forced", 13: "unsigned"}
"""Bits of kernel.tainted (Documentation/admin-guide/tainted-kernels.rst); they stay until the next boot."""


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[modules.allow]]`: modules that may be loaded."""

    names: Annotated[list[Name], Meta(min_length=1, max_length=2048)]
    """Names as `lsmod` shows them; `-` and `_` are the same."""
    reason: Reason
    """Why, for the next reader."""


class Block(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[modules.block]]`: modules that must not be loaded and must not be loadable."""

    names: Annotated[list[Name], Meta(min_length=1, max_length=512)]
    """Names as for `allow`."""
    reason: Reason
    """Why, for the next reader."""


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[modules]`."""

    allow: Annotated[list[Allow], Meta(max_length=512)] = field(default_factory=list)
    """Modules that may be loaded."""
    block: Annotated[list[Block], Meta(max_length=512)] = field(default_factory=list)
    """Modules that must not."""
    unknown: Literal["ignore", "report", "repair"] = "report"
    """What happens to a loaded module that no entry names; `repair` unloads it."""
    unload: bool = False
    """In mode `enforce`: try to unload what is blocked and, with `unknown = "repair"`, what no entry names."""
    lockdown: Literal["none", "integrity", "confidentiality"] = "none"
    """Kernel lockdown must be at least so strict; raised in mode `enforce`."""
    signatures: Literal["any", "required"] = "any"
    """`required`: the kernel refuses unsigned modules (made so in mode `enforce`), and none was loaded since boot."""
    loading: Literal["open", "closed"] = "open"
    """`closed`: kernel.modules_disabled must be 1; in mode `enforce` it is set."""
    closed_after_s: Annotated[float, Meta(ge=0, le=86400)] = 600.0
    """Seconds since boot from which `loading = "closed"` holds."""

    def __post_init__(self) -> None:
        allowed, blocked = _names(self.allow), _names(self.block)
        for name in allowed + blocked:
            if (allowed + blocked).count(name) > 1:
                what = "both allowed and blocked" if name in allowed and name in blocked else "twice"
                raise ValueError(f"expected each module once, got {name!r} {what}")
        if self.unknown == "repair" and not self.unload:
            raise ValueError(
                'expected `unload = true` beside `unknown = "repair"`: unloading is its only repair'
            )


class Probe(probes.Probe[Section]):
    """Compares the kernel's modules with the section."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._allowed = frozenset(_names(section.allow))
        self._blocked = tuple(sorted(_names(section.block)))
        self._built_in: tuple[Identity, frozenset[str]] | None = None

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each module that should not be there and each guard that is down."""
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Write the modprobe.d file; unload, raise guards and close the door where the section asks for it."""
        wrong = {drift.key for drift in drifts}
        host = self.around.host
        if MODPROBE_FILE in wrong:
            self._write()
        if self.section.unload:
            self._unload(wrong)
        with suppress(OSError):  # a kernel without it: the next observation reports it
            if "signatures" in wrong:
                host.modules.enforce_signatures()
        with suppress(OSError):
            if "lockdown" in wrong:
                host.modules.raise_lockdown(self.section.lockdown)
        if "loading" in wrong:  # the last: nothing can be loaded after it before the next boot
            try:
                host.set_sysctl("kernel.modules_disabled", "1")
            except OSError:
                return  # the next observation reports it

    def undo(self) -> None:
        """Put back the modprobe.d file from before the first repair. The kernel takes no door open again."""
        for key, value in self.remembered():
            try:
                self.around.host.tree.put(key, msgspec.json.decode(value, type=Kept))
            except OSError:  # its folder has gone
                pass
            self.forget(key)

    def governs(self, key: str) -> bool:
        """True if the section keeps out modules too: then the file is its own to write."""
        return key == MODPROBE_FILE and bool(self._blocked)

    def _differences(self) -> Iterator[Difference]:
        try:
            loadable = self.around.host.modules.loadable()
        except OSError as error:
            yield could_not_look("modules", "a list of loaded modules", error)
            loadable = True
        else:
            if loadable:
                yield from self._wrong_modules()
        if self._blocked:
            yield from self._wrong_file()
            yield from self._wrong_built_in()
        yield from self._wrong_guards(loadable)

    def _wrong_modules(self) -> Iterator[Difference]:
        modules = self.around.host.modules
        try:
            loaded, hidden = modules.loaded(), modules.hidden()
        except OSError as error:
            yield could_not_look("modules", "a list of loaded modules", error)
            return
        unknown = []
        for module in loaded:
            found = f"loaded, taints {module.taints}" if module.taints else "loaded"
            if module.name in self._blocked:
                yield Difference(f"module {module.name}", "not loaded (blocked)", found)
            elif module.name not in self._allowed and self.section.unknown != "ignore":
                unknown.append(Difference(f"module {module.name}", "not loaded (no entry names it)", found))
        yield from unknown[:SHOWN]
        if more := unknown[SHOWN:]:
            names = ", ".join(each.key.removeprefix("module ") for each in more)
            yield Difference(_MORE, "no others loaded", f"{len(more)} more: {names}")
        if hidden:
            yield Difference("hidden modules", "none", ", ".join(hidden))

    def _wrong_file(self) -> Iterator[Difference]:
        host = self.around.host
        wanted = f"a file that keeps out {', '.join(self._blocked)}"
        try:
            content = host.read_file(MODPROBE_FILE, max_bytes=_MAX_FILE_BYTES)
            facts = host.file_facts(MODPROBE_FILE)
        except FileNotFoundError:
            yield Difference(MODPROBE_FILE, wanted, "not there")
            return
        except OSError as error:
            yield could_not_look(MODPROBE_FILE, wanted, error)
            return
        if content != self._content():
            lines = set(content.decode("utf-8", "replace").splitlines())
            lacking = [name for name in self._blocked if _line(name) not in lines]
            yield Difference(
                MODPROBE_FILE, wanted, f"lacks {', '.join(lacking)}" if lacking else "has other lines"
            )
        elif (facts.uid, facts.mode) != (0, _MODE):
            found = f"{facts.mode:04o}, of {facts.owner}"
            yield Difference(MODPROBE_FILE, f"{_MODE:04o}, of root", found)

    def _wrong_built_in(self) -> Iterator[Difference]:
        for name in sorted(set(self._blocked) & self._names_built_in()):
            yield Difference(f"module {name}", "not in the kernel (blocked)", "built into the kernel")

    def _names_built_in(self) -> frozenset[str]:
        """Return what is built into the running kernel, as far as its package tells."""
        host = self.around.host
        for folder in ("/usr/lib/modules", "/lib/modules"):
            try:
                path = f"{folder}/{host.sysctl('kernel.osrelease')}/modules.builtin"
                identity = host.file_facts(path).identity
                if self._built_in is None or self._built_in[0] != identity:
                    self._built_in = identity, _parse_built_in(host, path)
            except OSError:  # a kernel without such a file, or /lib is a link to /usr/lib
                continue
            return self._built_in[1]
        return frozenset()

    def _wrong_guards(self, loadable: bool) -> Iterator[Difference]:
        host, wanted = self.around.host, self.section
        lockdown = "none"
        if wanted.lockdown != "none" or (loadable and wanted.signatures == "required"):
            try:
                lockdown = host.modules.lockdown()
            except OSError as error:
                if wanted.lockdown != "none":
                    yield could_not_look("lockdown", f"{wanted.lockdown} at least", error)
            else:
                if _STRICTNESS.index(lockdown) < _STRICTNESS.index(wanted.lockdown):
                    yield Difference("lockdown", f"{wanted.lockdown} at least", lockdown)
        if not loadable:  # without modules there is nothing to sign and nothing to close
            return
        if wanted.signatures == "required":
            yield from self._wrong_signatures(lockdown)
        if wanted.loading == "closed" and host.uptime_s() >= wanted.closed_after_s:
            try:
                found = host.sysctl("kernel.modules_disabled")
            except OSError as error:
                yield could_not_look("loading", "closed (kernel.modules_disabled = 1)", error)
            else:
                if found != "1":
                    yield Difference("loading", "closed (kernel.modules_disabled = 1)", "open")

    def _wrong_signatures(self, lockdown: str) -> Iterator[Difference]:
        host = self.around.host
        try:
            # Lockdown refuses unsigned modules too, whatever sig_enforce says.
            if lockdown == "none" and not host.modules.signatures_enforced():
                yield Difference("signatures", "enforced", "not enforced")
        except OSError as error:
            yield could_not_look("signatures", "enforced", error)
        try:
            taint = int(host.sysctl("kernel.tainted"))
        except (OSError, ValueError) as error:
            yield could_not_look("taint", "no unsigned or forced module since boot", error)
            return
        if found := [word for bit, word in _TAINTS.items() if taint >> bit & 1]:
            yield Difference("taint", "no unsigned or forced module since boot", ", ".join(found))

    def _content(self) -> bytes:
        lines = ["# Written by ringfence-agent from the signed baseline; changes are put back.\n"]
        return "".join(lines + [_line(name) + "\n" for name in self._blocked]).encode()

    def _write(self) -> None:
        tree = self.around.host.tree
        try:
            before = tree.keep(MODPROBE_FILE)
            self.remember_first(MODPROBE_FILE, msgspec.json.encode(before).decode())
            tree.put(MODPROBE_FILE, file_of(self._content(), Kept(kind="file", mode=_MODE)))
        except OSError:
            return  # the next observation reports it

    def _unload(self, wrong: set[str]) -> None:
        modules = self.around.host.modules
        for module in modules.loaded():
            unknown = module.name not in self._allowed and self.section.unknown == "repair"
            listed = f"module {module.name}" in wrong or _MORE in wrong
            if module.name in self._blocked or (unknown and listed):
                try:
                    modules.unload(module.name)
                except OSError:
                    continue  # in use, or the kernel refuses: the next observation reports that it is there


def _names(entries: Sequence[Allow | Block]) -> list[str]:
    return [name.replace("-", "_") for entry in entries for name in entry.names]


def _line(name: str) -> str:
    return f"install {name} /bin/false"


def _parse_built_in(host: Host, path: str) -> frozenset[str]:
    lines = host.read_file(path, max_bytes=_MAX_BUILT_IN_BYTES).decode("utf-8", "replace").splitlines()
    return frozenset(line.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for line in lines)
