"""What the lines of one boot's IMA log have shown: kept in bounds, and what was too much is counted, by severity.

Decides nothing about a line; that is `contract.imawalk`'s and `contract.imarules`'s. Most passes have nothing to note, so
nothing is made before the first note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from contract.imalog import Fields, shown, where
from contract.imapolicy import Choice
from contract.imarules import Explanation, Unknown, explainable
from contract.messages import Count, Digest, Finding, Line, Message, Text, never_more

PCR: Final = 10
MAX_FINDINGS: Final = 64
MAX_OPEN_FILES: Final = 256
MAX_UPDATES: Final = 256

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


class Notes:
    """What was shown before, and what one pass adds to it."""

    __slots__ = (
        "_before",
        "_explanations",
        "_findings",
        "_omitted",
        "_omitted_noted",
        "_open",
        "_updates",
        "changed",
    )

    def __init__(self, before: Shown, explanations: Mapping[tuple[str, bytes], Explanation]) -> None:
        """Take what was shown; an upgrade may explain files of earlier reports (m14)."""
        self._before, self._explanations = before, explanations
        self.changed = False
        if explanations and before.open_files:
            self._begin()
            self.changed = len(self._open) != len(before.open_files)

    def _begin(self) -> None:
        before = self._before
        self._findings = list(before.findings)
        self._open: list[OpenFile] = []
        self._updates = {(u.name, u.before, u.after): u.files for u in before.updates}
        self._omitted, self._omitted_noted = before.omitted, before.omitted_noted
        for file in before.open_files:
            self._keep(file)

    def _change(self) -> None:
        if not self.changed:
            self._begin()
            self.changed = True

    def shown(self) -> Shown:
        """Return what was shown before and in this pass."""
        if not self.changed:
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

    def add(self, code: str, place: Place, detail: str) -> None:
        """Note a finding."""
        self._change()
        if len(self._findings) < MAX_FINDINGS:
            text = never_more(f"{where(*place)}: {detail}", 1024)
            self._findings.append(Finding(code=code, detail=text, pcr=PCR))
        else:
            self._omit(code)

    def choose(self, choice: Choice, code: str, place: Place, detail: str) -> None:
        """Note a finding as the policy wants it."""
        if choice != "ignore":
            self.add(code if choice == "refuse" else f"{code}-noted", place, detail)

    def add_file(self, fields: Fields, unknown: Unknown, place: Place, *, noted: bool) -> None:
        """Note a file that nothing allows; or account for it by an upgrade (m14)."""
        self._change()
        code = "ima.other-path" if unknown.home else "ima.unknown-file"
        if noted:
            code += "-noted"
        if not explainable(fields):
            found = f"{fields.algorithm.decode()}:{fields.digest.hex()}"
            self.add(code, place, unknown_text(fields.name, found, unknown.home))
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
