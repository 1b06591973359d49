"""One pass over new lines of an IMA log: the chain of PCR 10, and what each line shows.

The pass ends at the line that leads to the quoted value. Nothing that it found is worth anything unless it got there;
`contract.ima` sees to that. What lines have shown is bounded, and what was too much is counted, by severity.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha1, sha256
from typing import Annotated, Final, Literal

from msgspec import Meta

from contract.errors import Rejected
from contract.imalog import (
    BOOT_AGGREGATE,
    HEAD_BYTES,
    VIOLATION,
    Fields,
    ImaRecord,
    fields_of,
    hash_fits,
    read_record,
    shown,
    where,
)
from contract.imapolicy import Choice
from contract.imarules import NOT_PLAIN, PLAIN, Explanation, ImaRules, Unknown, explainable
from contract.messages import Count, Digest, Finding, Line, Message, Text, never_more

PCR: Final = 10
MAX_FINDINGS: Final = 64
MAX_OPEN_FILES: Final = 256
MAX_UPDATES: Final = 256
_ZEROS: Final = bytes(12)
_VIOLATION: Final = b"\xff" * 32  # no hash: nobody knows data that leads to it
_VIOLATION_PADDED: Final = b"\xff" * 20 + _ZEROS

Bank = Literal["", "sha256", "sha1"]
Place = tuple[int, int]
"""Line, from 0, and offset in the log."""


class OpenFile(Message, frozen=True):
    """A measured file that nothing allows, and that the report of a package's upgrade may still explain."""

    line: Count
    """From 0."""
    offset: Count
    path: Text
    sha256: Digest
    code: Line
    home: Text = ""
    """Where this content would be allowed."""


class PackageUpdate(Message, frozen=True):
    """An upgrade that has explained files in this boot."""

    name: Line
    before: Line
    after: Line
    files: Count


class Shown(Message, frozen=True):
    """What the lines of a boot have shown. It does not go away before the next boot, for the lines do not come again."""

    findings: Annotated[tuple[Finding, ...], Meta(max_length=MAX_FINDINGS)] = ()
    open_files: Annotated[tuple[OpenFile, ...], Meta(max_length=MAX_OPEN_FILES)] = ()
    updates: Annotated[tuple[PackageUpdate, ...], Meta(max_length=MAX_UPDATES)] = ()
    omitted: Count = 0
    """Findings for which there was no room."""
    omitted_noted: Count = 0
    """The same, of those that are worth a warning only."""


NOTHING: Final = Shown()


class Walk:
    """One pass. After `go`, the attributes say how far it came."""

    __slots__ = (
        "_before",
        "_boot_pcrs",
        "_changed",
        "_explanations",
        "_findings",
        "_omitted",
        "_omitted_noted",
        "_open",
        "_rules",
        "_updates",
        "at",
        "decided",
        "fault",
        "lines",
        "met",
        "value",
    )

    def __init__(
        self,
        rules: ImaRules,
        before: Shown,
        boot_pcrs: Mapping[int, bytes],
        explanations: Mapping[tuple[str, bytes], Explanation],
    ) -> None:
        self._rules, self._before, self._boot_pcrs = rules, before, boot_pcrs
        self._explanations = explanations
        self._findings = list(before.findings)
        self._open: list[OpenFile] = []
        self._updates = {(u.name, u.before, u.after): u.files for u in before.updates}
        self._omitted, self._omitted_noted = before.omitted, before.omitted_noted
        self._changed = False
        self.at = 0
        """Bytes read."""
        self.lines = 0
        """Lines read before this pass and in it."""
        self.value = b""
        """PCR 10 after them."""
        self.met = False
        self.decided: Bank = ""
        """`sha256` if the first line could only be made by a kernel that extends the SHA-256 of its templates."""
        self.fault: Rejected | None = None
        """What no line could be read after."""
        for file in before.open_files:
            self._keep(file)
        self._changed = bool(self._explanations) and len(self._open) != len(before.open_files)

    def shown(self) -> Shown:
        """Return what was shown before and in this pass."""
        if not self._changed:
            return self._before
        updates = [
            PackageUpdate(name=name, before=before, after=after, files=files)
            for (name, before, after), files in self._updates.items()
        ]
        return Shown(
            findings=tuple(self._findings),
            open_files=tuple(self._open),
            updates=tuple(updates),
            omitted=self._omitted,
            omitted_noted=self._omitted_noted,
        )

    def go(self, untrusted: bytes, *, base: int, lines: int, value: bytes, bank: Bank, quoted: bytes) -> None:
        """Read lines until `quoted` is met, the bytes end, or one cannot be read (`fault`).

        `base` and `lines` were read before, and led to `value`. Lines that the rules remember cost one look-up and one
        hash: they are whole records, so their bytes can be taken for nothing else.
        """
        self.value, self.lines, self.met = value, lines, value == quoted
        if self.met:
            return
        rules, size, padded = self._rules, len(untrusted), bank == "sha1"
        known, files, at = rules.known, rules.files, 0
        tail = untrusted + bytes(HEAD_BYTES + 300)  # lengths may be read past the end, lines may not
        # The first line is never taken from memory.
        memory: dict[bytes, bytes] = known if lines else {}
        # The line is cut out as if it were of the template of the one before it.
        head, cut, unpack, template, closing = PLAIN[b"ima-sig"]
        low, high = head - 4, head - 3
        try:
            while at < size:
                # The low 12 bits of the length: a line that needs more is never remembered, so it is not found.
                end = at + head + tail[at + low] + ((tail[at + high] & 15) << 8)
                raw = untrusted[at:end]
                extension = memory.get(raw)
                if extension is None and lines and raw[head:cut] in files:  # see PLAIN
                    pcr, fits, name, length = unpack(raw)
                    data = raw[head:]
                    if pcr == PCR and name == template and length == len(data) and data.endswith(closing):
                        if sha1(data, usedforsecurity=False).digest() == fits:
                            extension = sha256(data).digest()
                            rules.remember(raw, extension)
                if extension is None:
                    record = read_record(untrusted, at, lines, base)
                    head, cut, unpack, template, closing = PLAIN.get(record.template, NOT_PLAIN)
                    head, end = HEAD_BYTES + 4 + len(record.template), record.end
                    low, high = head - 4, head - 3
                    raw = untrusted[at:end]
                    extension = (lines and rules.recall(raw)) or self._examine(record, raw, lines, base)
                    memory = known
                    if not extension:  # of another PCR
                        at, lines = end, lines + 1
                        continue
                if padded:
                    extension = _VIOLATION_PADDED if extension == _VIOLATION else raw[4:24] + _ZEROS
                value = sha256(value + extension).digest()
                at = end
                lines += 1
                if value == quoted:
                    self.met = True
                    break
        except Rejected as fault:
            self.fault = fault.with_traceback(
                None
            )  # which would hold the whole chunk until the next collection
        self.at, self.lines, self.value = at, lines, value

    def _examine(self, record: ImaRecord, raw: bytes, index: int, base: int) -> bytes:
        """Return what the PCR was extended with, empty for a line of another PCR; note what the line shows.

        1. it is in PCR 10 (`ima.wrong-pcr`; m08): else neither proved nor judged
        2. it is no violation (`ima.violation`; m06), and its hash is that of its data (`ima.template-hash`; m03)
        3. its template is known and its fields fill it (`ima.unknown-template`, `ima.fields`, `ima.digest`, `ima.name`; m07, m08)
        4. the first line is the aggregate of this boot, and no other is one (`ima.boot-aggregate`, `ima.kexec`; m04, m13)
        5. the rules have nothing against it
        """
        place = (index, base + record.offset)
        if record.pcr != PCR:  # 1
            self._note("ima.wrong-pcr", place, f"PCR {record.pcr}, which the quote of PCR 10 does not prove")
            return b""
        if record.template_sha1 == VIOLATION:  # 2
            if index == 0:
                self._note("ima.boot-aggregate", place, "a violation, wanted boot_aggregate")
            self._violation(record, place)
            return _VIOLATION
        extension = sha256(record.data).digest()
        good = hash_fits(record)
        if not good:
            self._note("ima.template-hash", place, "its hash is not that of its data")
        try:
            fields = fields_of(record.template, record.data)  # 3
        except Rejected as fault:
            self._note(fault.code, place, fault.detail)
            if index == 0:
                self._note("ima.boot-aggregate", place, "wanted boot_aggregate")
            return extension
        if index == 0 or fields.name == BOOT_AGGREGATE:
            self._aggregate(fields, place)  # 4
            return extension
        verdict = self._rules.judge(fields)  # 5
        if verdict is None:
            if good:
                self._rules.remember(raw, extension)
        elif isinstance(verdict, Unknown):
            self._file(fields, verdict, place)
        else:
            self._note(verdict.code, place, verdict.detail)
        return extension

    def _aggregate(self, fields: Fields, place: Place) -> None:
        """Hold a boot aggregate against the quoted PCRs (ima_crypto.c, `ima_calc_boot_aggregate_tfm`; since Linux 5.8)."""
        policy = self._rules.policy
        if fields.name != BOOT_AGGREGATE:
            self._note("ima.boot-aggregate", place, f"'{shown(fields.name)}', wanted boot_aggregate")
            return
        if place[0]:
            detail = "a second boot aggregate: the kernel was replaced by kexec, unseen by the firmware log"
            self._choose(policy.kexec, "ima.kexec", place, detail)
        missing = [pcr for pcr in range(10) if pcr not in self._boot_pcrs]
        if missing:
            detail = f"PCR {missing[0]} is not quoted, so it cannot be recomputed"
            self._note("ima.boot-aggregate", place, detail)
            return
        values = b"".join(self._boot_pcrs[pcr] for pcr in range(10))
        if fields.algorithm == b"sha256" and fields.digest == sha256(values).digest():
            self.decided = "sha256"
            return
        old = fields.algorithm != b"sha256" or fields.digest == sha256(values[: 8 * 32]).digest()
        if old and policy.boot_aggregate == "optional":
            return
        found = f"{fields.algorithm.decode()}:{fields.digest.hex()}"
        wanted = f"sha256:{sha256(values).hexdigest()} of the quoted PCR 0 to 9"
        self._note("ima.boot-aggregate", place, f"found {found}, wanted {wanted}")

    def _violation(self, record: ImaRecord, place: Place) -> None:
        """Note a violation. No hash covers its data, so the name in it excepts nothing: it could be any (m06)."""
        try:
            name = shown(fields_of(record.template, record.data).name)
        except Rejected:
            name = "?"
        detail = f"a file was written while it was measured; its name, which nothing proves, is '{name}'"
        self._choose(self._rules.policy.violations, "ima.violation", place, detail)

    def _file(self, fields: Fields, unknown: Unknown, place: Place) -> None:
        """Keep a file that nothing allows; or account for it by an upgrade (m14)."""
        self._changed = True
        code = "ima.other-path" if unknown.home else "ima.unknown-file"
        if self._rules.policy.unknown_files == "warn":
            code += "-noted"
        if not explainable(fields):
            found = f"{fields.algorithm.decode()}:{fields.digest.hex()}"
            self._note(code, place, unknown_text(fields.name, found, unknown.home))
            return
        line, offset = place
        path, home = fields.name.decode(), shown(unknown.home)
        self._keep(OpenFile(line=line, offset=offset, path=path, sha256=fields.digest, code=code, home=home))

    def _keep(self, file: OpenFile) -> None:
        why = self._explanations.get((file.path, file.sha256))
        if why is not None:
            identity = (why.name, why.before, why.after)
            if identity in self._updates or len(self._updates) < MAX_UPDATES:
                self._updates[identity] = self._updates.get(identity, 0) + 1
                return
        if len(self._open) < MAX_OPEN_FILES:
            self._open.append(file)
        else:
            self._omit(file.code)

    def _choose(self, choice: Choice, code: str, place: Place, detail: str) -> None:
        if choice != "ignore":
            self._note(code if choice == "refuse" else f"{code}-noted", place, detail)

    def _note(self, code: str, place: Place, detail: str) -> None:
        self._changed = True
        if len(self._findings) < MAX_FINDINGS:
            text = never_more(f"{where(*place)}: {detail}", 1024)
            self._findings.append(Finding(code=code, detail=text, pcr=PCR))
        else:
            self._omit(code)

    def _omit(self, code: str) -> None:
        if code.endswith("-noted"):
            self._omitted_noted += 1
        else:
            self._omitted += 1


def unknown_text(name: bytes, found: str, home: bytes) -> str:
    """Return in words what is wrong with a file that nothing allows."""
    if home:
        return f"'{shown(name)}' has the content of '{shown(home)}', which is allowed there only: {found}"
    return f"'{shown(name)}': {found} is not allowed"
