"""What each event of a boot loaded, and with which command line: GRUB, systemd-boot, systemd-stub and the EFI stub.

Labels (GRUB's `kernel_cmdline:`, file names, device paths, event types) are covered by no digest and the order of
events only within one PCR. So nothing here decides by a label alone that something is proved: a command line counts as
covered only where it could be no other under any labelling of the same digests. No input raises anything.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from msgspec import Struct as Record

from contract import eventtypes as ev
from contract import uefi
from contract.errors import Rejected
from contract.eventcover import GRUB_COMMAND, GRUB_KERNEL_LINE, GRUB_PREFIXES, IMAGES
from contract.eventdata import describe, ipl_text, tag_text
from contract.eventlog import Event
from contract.messages import never_more
from contract.uefi import printable

Stage = Literal["firmware", "option-rom", "boot-loader", "kernel", "initrd", "uki-section", "driver", "other"]
_FIRMWARE: Final = frozenset(
    {
        ev.EV_POST_CODE,
        ev.EV_POST_CODE2,
        ev.EV_S_CRTM_CONTENTS,
        ev.EV_S_CRTM_VERSION,
        ev.EV_CPU_MICROCODE,
        ev.EV_NONHOST_CODE,
        ev.EV_NONHOST_CONFIG,
        ev.EV_NONHOST_INFO,
        ev.EV_EFI_PLATFORM_FIRMWARE_BLOB,
        ev.EV_EFI_PLATFORM_FIRMWARE_BLOB2,
        ev.EV_EFI_HCRTM_EVENT,
    }
)
MAX_LINE_BYTES: Final = 4096
"""No kernel takes more (x86: 2,048); what is longer is cut and proves nothing."""
MAX_NAME_CHARS: Final = 256
_INITRD_TAGS: Final = (0x8F3B22EC, 0x49DFFE0F)
_LINUX: Final = (b"linux", b"linuxefi", b"linux16", b"multiboot", b"multiboot2", b"xen_hypervisor")
_INITRD: Final = (b"initrd", b"initrdefi", b"initrd16")
_QUOTING: Final = bytes.maketrans(b"\t\n", b"  ")
# As the kernel splits its command line (lib/cmdline.c: next_arg, isspace of Latin-1).
_WORD: Final = re.compile(rb'(?:[^ \t\n\v\f\r\xa0"]|"[^"]*"?)+')
_UKI_PCR: Final = 11
_STUB_PCR: Final = 12
_GRUB_TEXT_PCR: Final = 8
_LINE_PCRS: Final = frozenset({_GRUB_TEXT_PCR, _STUB_PCR})


class CommandLine(Record, frozen=True):
    """A kernel command line as the log has it."""

    raw: bytes
    """UTF-8."""
    image_first: bool
    """The first word is the kernel's file, which the kernel sees as BOOT_IMAGE=... (GRUB)."""
    event: int
    pcr: int
    covered: bool | None

    @property
    def text(self) -> str:
        """Return the line as one printable line (l16)."""
        return printable(self.raw.decode("utf-8", "backslashreplace"))

    def arguments(self) -> list[str]:
        """Return the words as the kernel sees them, each printable: a newline is a space to it (l16)."""
        words = split_arguments(self.raw[:MAX_LINE_BYTES])
        if self.image_first and words:
            words[0] = f"BOOT_IMAGE={words[0]}"
        return words


def split_arguments(raw: bytes) -> list[str]:
    """Return a command line's words as the kernel splits them, without the quotes it takes off; each printable."""
    words = []
    for word in _WORD.findall(raw):
        if word.startswith(b'"'):
            bare = word[1:].removesuffix(b'"')
        else:
            name, equals, value = word.partition(b"=")
            bare = name + equals + (value[1:].removesuffix(b'"') if value.startswith(b'"') else value)
        words.append(printable(bare.decode("utf-8", "backslashreplace")))
    return words


class BootChain:
    """Follows a log's events in order and says what each one loaded."""

    __slots__ = (
        "_clouded",
        "_kernel_named",
        "_lines",
        "_loads",
        "_section",
        "_separated",
        "_texts",
        "_verb",
        "_wide",
    )

    def __init__(self) -> None:
        self._verb = b""
        self._kernel_named = False
        self._separated: set[int] = set()
        self._section: str | None = None
        self._clouded: set[int] = set()
        self._lines: list[tuple[Event, bytes]] = []
        self._loads: list[bytes] = []
        self._texts: list[bytes] = []
        self._wide: list[tuple[Event, bytes]] = []

    def take(self, event: Event, said: int) -> tuple[Stage, str, bool | None] | None:
        """Take the next event, of the type that its digest says.

        Returns stage, printable name and whether the name is covered too; None where the digest is of the data itself.
        """
        kind, pcr, sure = event.type, event.pcr, event.covered
        if kind == ev.EV_IPL:
            if sure and pcr != _UKI_PCR:
                self._take_text(event)
                return None
            return self._take_name(event)
        if said == ev.EV_SEPARATOR:
            self._separated.add(pcr)
        if pcr in _LINE_PCRS:
            self._clouded.add(pcr)
        if sure:
            return None
        if kind in IMAGES:
            return self._image(event)
        if kind in _FIRMWARE:
            return "firmware", describe(event), None
        if kind == ev.EV_EVENT_TAG:
            return _tagged(event)
        return "other", describe(event), None

    def _take_text(self, event: Event) -> None:
        """Keep a covered text: any may be a command line, whatever its label says."""
        data = event.untrusted_data
        if data[1:2] == b"\0":
            if event.pcr in _LINE_PCRS:
                self._wide.append((event, data.decode("utf-16-le", "replace").rstrip("\0").encode()))
            return
        command = data.startswith(GRUB_COMMAND)
        text = data[data.index(b" ") + 1 :] if command or data.startswith(GRUB_PREFIXES) else data
        if text.endswith(b"\0"):
            text = text[:-1]
        self._texts.append(text)
        verb, _, rest = text.partition(b" ")
        if verb in _LINUX:
            self._loads.append(rest)
        if command:
            self._verb = verb
        elif data.startswith(GRUB_KERNEL_LINE):
            self._lines.append((event, text))

    def _take_name(self, event: Event) -> tuple[Stage, str, bool | None] | None:
        """Take a boot loader's event that says no more than what its digest is called."""
        if event.pcr == _UKI_PCR:
            return self._take_section(event, event.covered)
        if event.pcr in _LINE_PCRS:
            self._clouded.add(event.pcr)
        data = event.untrusted_data
        name = never_more(ipl_text(data), MAX_NAME_CHARS)
        if event.pcr > _UKI_PCR:
            return ("initrd" if name.endswith(" initrd") else "other"), name, None
        if self._verb in _LINUX:
            self._kernel_named = True
            return "kernel", name, None
        if self._verb in _INITRD:
            return "initrd", name, None
        return ("boot-loader" if name.endswith((".mod", ".efi", ".img")) else "other"), name, None

    def _take_section(self, event: Event, sure: bool | None) -> tuple[Stage, str, bool | None] | None:
        """Read systemd-stub's pairs: the section's name, hashed itself, and then its content under the same name."""
        name = never_more(ipl_text(event.untrusted_data), MAX_NAME_CHARS)
        if sure and name != self._section:
            self._section = name
            self._kernel_named = self._kernel_named or name == ".linux"
            return None
        # The name is covered by the event before it in the same PCR.
        proved = name == self._section or None
        self._section = None
        return "uki-section", name, proved

    def _image(self, event: Event) -> tuple[Stage, str, bool | None]:
        try:
            name = uefi.file_name(uefi.parse_image(event.untrusted_data).path)
        except Rejected:
            name = ""
        stage: Stage = "other"
        if event.pcr == 2:
            stage = "option-rom"
        elif event.pcr in (0, 1):
            stage = "driver"
        elif event.pcr == 4 and 4 not in self._separated:
            stage = "firmware"
        elif event.pcr == 4:
            file = name.lower().rpartition("\\")
            unified = file[0].endswith("\\efi\\linux") or file[2].startswith(("vmlinuz", "bzimage"))
            stage = "kernel" if self._kernel_named or unified else "boot-loader"
        return stage, name, None

    def command_line(self) -> CommandLine | None:
        """Return the kernel's command line; covered only if no other labelling of the digests gives another.

        GRUB measures `linux FILE ARGUMENTS` and then `FILE ARGUMENTS`, quoted, both by the text alone. So every text of
        PCR 8 must be covered, all that load a kernel must agree, and there must be one way of quoting.
        """
        if self._lines:
            event, raw = self._lines[-1]
            form = _bare(raw)
            same = {text for text in self._texts if len(text) >= len(form) and _bare(text) == form}
            agreed = same == {raw} and {_bare(text) for text in self._loads} == {form}
            clean = len({text for _, text in self._lines}) == 1 and self._is_clean(event, raw)
            sure = agreed and clean and event.pcr == _GRUB_TEXT_PCR
            return CommandLine(raw, True, event.index, event.pcr, True if sure else None)
        if self._wide:
            event, _ = self._wide[0]
            raw = b" ".join(text for _, text in self._wide)
            clean = len(self._wide) == 1 and not self._loads and self._is_clean(event, raw)
            return CommandLine(raw, False, event.index, event.pcr, True if clean else None)
        return None

    def _is_clean(self, event: Event, raw: bytes) -> bool:
        return event.pcr not in self._clouded and b"\0" not in raw and len(raw) <= MAX_LINE_BYTES


def _bare(text: bytes) -> bytes:
    """Return a text without what GRUB's quoting adds to the second form."""
    return text.translate(_QUOTING, b"\"'\\").strip()


def _tagged(event: Event) -> tuple[Stage, str, bool | None]:
    try:
        name = tag_text(event.untrusted_data)
        tag = uefi.parse_tagged(event.untrusted_data).tag
    except Rejected:
        return "other", describe(event), None
    return ("initrd" if tag in _INITRD_TAGS else "other"), name, None
