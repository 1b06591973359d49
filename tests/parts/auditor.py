"""Files as an auditor holds them, and our command run on them in this process."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract.auditkey import read_key
from contract.offline import Given
from controller.cli import run
from tests.contract.forge import Case, Forger

OPTIONS = {
    "ak": "ak.tpm2b",
    "ek": "ek.tpm2b",
    "quote": "quote.attest",
    "signature": "quote.sig",
    "event-log": "eventlog.bin",
    "ima-log": "ima.bin",
}


class Answer:
    """What the command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The verdict of `--json`."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def codes(self) -> list[str]:
        """The codes of all findings."""
        return [finding["code"] for finding in self.json["findings"]]


def ringfence(*arguments: object) -> Answer:
    """Run `ringfence` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


class Auditor:
    """The files of one recorded boot in a folder, any of them exchanged or left out."""

    def __init__(self, folder: Path, case: str = "good-rsa") -> None:
        self.folder = folder
        self.case = Case(case)
        self.nonce: str | None = self.case.nonce.hex()
        self.files: dict[str, Path] = {}
        for option, name in OPTIONS.items():
            self.give(option, self.case.read(name))
        self.give_pcrs(self.case.pcrs)

    def give(self, option: str, content: bytes) -> Path:
        """Put other bytes under an option."""
        path = self.folder / f"{option}.file"
        path.write_bytes(content)
        self.files[option] = path
        return path

    def give_pcrs(self, pcrs: Mapping[int, bytes]) -> Path:
        """Show other PCR values."""
        shown = {"sha256": {str(pcr): value.hex() for pcr, value in pcrs.items()}}
        return self.give("pcrs", json.dumps(shown).encode())

    def give_quote(self, forger: Forger, attest: bytes, signature: bytes | None = None) -> None:
        """Hold a quote of a key in the test's own hands, without logs."""
        self.leave_out("event-log", "ima-log")
        self.give("ak", forger.ak_public)
        self.give("ek", forger.ek_public)
        self.give("quote", attest)
        self.give("signature", forger.sign(attest) if signature is None else signature)

    def leave_out(self, *options: str) -> None:
        """Do not give these."""
        for option in options:
            self.files.pop(option, None)

    def arguments(self) -> list[object]:
        """Return the options as they stand."""
        given: list[object] = []
        for option, path in self.files.items():
            given += [f"--{option}", path]
        return given + (["--nonce", self.nonce] if self.nonce is not None else [])

    def verify(self, *more: object) -> Answer:
        """Run `ringfence attest verify --json`."""
        return ringfence("attest", "verify", "--json", *self.arguments(), *more)


def given(case: Case, **changed: object) -> Given:
    """Return what `contract.offline.verify` takes, of a recorded boot."""
    usual: dict[str, object] = {
        "key": read_key(case.read("ak.tpm2b"), case.read("ek.tpm2b")),
        "attest": case.read("quote.attest"),
        "signature": case.read("quote.sig"),
        "nonce": case.nonce,
        "pcrs": case.pcrs,
        "event_log": case.read("eventlog.bin"),
        "ima_log": case.read("ima.bin"),
    }
    return Given(**{**usual, **changed})  # type: ignore[arg-type]
