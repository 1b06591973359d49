"""One pass over new lines of an IMA log: the chain of PCR 10, and what each line shows.

The pass ends at the line that leads to the quoted value. Nothing that it found is worth anything unless it got there;
`contract.ima` sees to that. What lines have shown is kept by `contract.imanotes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha1, sha256
from typing import Final, Literal

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
)
from contract.imanotes import PCR, Notes, Place, Shown
from contract.imarules import NOT_PLAIN, PLAIN, Explanation, ImaRules, Unknown

_ZEROS: Final = bytes(12)
_VIOLATION: Final = b"\xff" * 32  # no hash: nobody knows data that leads to it
_VIOLATION_PADDED: Final = b"\xff" * 20 + _ZEROS

Bank = Literal["", "sha256", "sha1"]

Reached = tuple[int, int, bytes]
"""Bytes read of those that were given; lines read before and in them; PCR 10 after these."""

_NAME_SIZE_AT: Final = HEAD_BYTES - 4
"""In a line: how long the name of its template is."""
_begun: Final = sha256().copy
"""Begins a hash: to copy one costs less than to have it looked up by its name."""


def remembered(known: Mapping[bytes, bytes], untrusted: bytes, start: Reached, quoted: bytes) -> Reached:
    """Read lines of the SHA-256 bank for as long as each was judged before (`ImaRules.known`): a look-up and a hash each.

    A line that is found is a whole record, so its bytes can be taken for nothing else. Ends where `quoted` is met, and
    before a line that is not found: a new one, one that is cut, of another template than the first, or of 256 bytes of data
    and more, for only the low byte of a length is read. `Walk` goes on from there.
    """
    at, lines, value = start
    try:
        head = HEAD_BYTES + 4 + untrusted[at + _NAME_SIZE_AT]
        low = head - 4
        while value != quoted:
            end = at + head + untrusted[at + low]
            extension = known[untrusted[at:end]]
            step = _begun()
            step.update(value + extension)
            value = step.digest()
            at = end
            lines += 1
    except (IndexError, KeyError):
        pass
    return min(at, len(untrusted)), lines, value  # as in `Walk.go`


class Walk:
    """One pass. After `go`, the attributes say how far it came."""

    __slots__ = ("_boot_pcrs", "_rules", "at", "decided", "fault", "lines", "met", "notes", "value")

    def __init__(
        self,
        rules: ImaRules,
        before: Shown,
        boot_pcrs: Mapping[int, bytes],
        explanations: Mapping[tuple[str, bytes], Explanation],
    ) -> None:
        self._rules, self._boot_pcrs = rules, boot_pcrs
        self.notes = Notes(before, explanations)
        self.at = 0
        """Bytes read of those that were given."""
        self.lines = 0
        """Lines read before this pass and in it."""
        self.value = b""
        """PCR 10 after them."""
        self.met = False
        self.decided: Bank = ""
        """`sha256` if the first line could only be made by a kernel that extends the SHA-256 of its templates."""
        self.fault: Rejected | None = None
        """What no line could be read after."""

    def go(self, untrusted: bytes, start: Reached, *, base: int, bank: Bank, quoted: bytes) -> None:
        """Read lines from `start` on until `quoted` is met, the bytes end, or one cannot be read (`fault`).

        `base` bytes were read before the first of these. A line that the rules remember costs one look-up and one
        hash: it is a whole record, so its bytes can be taken for nothing else. A new line of a file that is allowed costs
        two look-ups and three hashes (see `Plain`; the checks are those of `_examine`), any other is read field by field.
        """
        self.at, self.lines, self.value = at, lines, value = start
        self.met = value == quoted
        if self.met:
            return
        rules, size, padded = self._rules, len(untrusted), bank == "sha1"
        known, room, files = rules.known, rules.room, rules.files
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
                if extension is None:
                    if lines and raw[head:cut] in files:  # see PLAIN
                        pcr, fits, name, length = unpack(raw)
                        data = raw[head:]
                        if (
                            pcr == PCR  # 1
                            and name == template
                            and length == len(data)
                            and data.endswith(closing)  # 3
                            and sha1(data, usedforsecurity=False).digest() == fits  # 2
                        ):
                            extension = sha256(data).digest()
                            if len(known) < room:
                                known[raw] = extension
                            else:
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
        # What was read for the length of a last line of another template than the one before it may be any number.
        self.at, self.lines, self.value = min(at, size), lines, value

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
            self.notes.add(
                "ima.wrong-pcr", place, f"PCR {record.pcr}, which the quote of PCR 10 does not prove"
            )
            return b""
        if record.template_sha1 == VIOLATION:  # 2
            if index == 0:
                self.notes.add("ima.boot-aggregate", place, "a violation, wanted boot_aggregate")
            self._violation(record, place)
            return _VIOLATION
        extension = sha256(record.data).digest()
        good = hash_fits(record)
        if not good:
            self.notes.add("ima.template-hash", place, "its hash is not that of its data")
        try:
            fields = fields_of(record.template, record.data)  # 3
        except Rejected as fault:
            self.notes.add(fault.code, place, fault.detail)
            if index == 0:
                self.notes.add("ima.boot-aggregate", place, "wanted boot_aggregate")
            return extension
        if index == 0 or fields.name == BOOT_AGGREGATE:
            self._aggregate(fields, place)  # 4
            return extension
        verdict = self._rules.judge(fields)  # 5
        if verdict is None:
            if good:
                self._rules.remember(raw, extension)
        elif isinstance(verdict, Unknown):
            self.notes.add_file(fields, verdict, place, noted=self._rules.policy.unknown_files == "warn")
        else:
            self.notes.add(verdict.code, place, verdict.detail)
        return extension

    def _aggregate(self, fields: Fields, place: Place) -> None:
        """Hold a boot aggregate against the quoted PCRs (ima_crypto.c, `ima_calc_boot_aggregate_tfm`; since Linux 5.8)."""
        policy = self._rules.policy
        if fields.name != BOOT_AGGREGATE:
            self.notes.add("ima.boot-aggregate", place, f"'{shown(fields.name)}', wanted boot_aggregate")
            return
        if place[0]:
            detail = "a second boot aggregate: the kernel was replaced by kexec, unseen by the firmware log"
            self.notes.choose(policy.kexec, "ima.kexec", place, detail)
        missing = [pcr for pcr in range(10) if pcr not in self._boot_pcrs]
        if missing:
            detail = f"PCR {missing[0]} is not quoted, so it cannot be recomputed"
            self.notes.add("ima.boot-aggregate", place, detail)
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
        self.notes.add("ima.boot-aggregate", place, f"found {found}, wanted {wanted}")

    def _violation(self, record: ImaRecord, place: Place) -> None:
        """Note a violation. No hash covers its data, so the name in it excepts nothing: it could be any (m06)."""
        try:
            name = shown(fields_of(record.template, record.data).name)
        except Rejected:
            name = "?"
        detail = f"a file was written while it was measured; its name, which nothing proves, is '{name}'"
        self.notes.choose(self._rules.policy.violations, "ima.violation", place, detail)
