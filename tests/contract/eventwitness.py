"""The independent witness of firmware logs: `tpm2_eventlog` of tpm2-tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from contract.eventlog import SHA1, banks_of, parse_event_log, replay
from tests.contract.eventforge import HASHES
from tests.contract.forge import CASES, VECTORS

PUBLIC = VECTORS.parents[2] / "shared/evidence/public"
LOGS = [VECTORS / name / "eventlog.bin" for name in CASES] + sorted(PUBLIC.rglob("*.eventlog.bin"))
_PCRS = re.compile(r"^  (\w+):\n((?:    \d+\s*: 0x[0-9a-f]+\n)+)", re.MULTILINE)
_PCR = re.compile(r"(\d+)\s*: 0x([0-9a-f]+)")
_DIGESTS = re.compile(r'AlgorithmId: (\w+)\n\s+Digest: "([0-9a-f]+)"')


def pcrs_by_tpm2_eventlog(path: Path) -> dict[str, dict[str, str]]:
    """Return what the witness replays: bank to PCR to value."""
    shown = subprocess.run(["tpm2_eventlog", path], capture_output=True, text=True, check=True).stdout
    return {
        bank: dict(_PCR.findall(values)) for bank, values in _PCRS.findall(shown.partition("\npcrs:\n")[2])
    }


def agrees_with_tpm2_eventlog(path: Path) -> None:
    """Assert that the witness sees the same events, types, digests and PCR values, in every bank."""
    raw = path.read_bytes()
    shown = subprocess.run(["tpm2_eventlog", path], capture_output=True, text=True, check=True).stdout
    events, _, tail = shown.partition("\npcrs:\n")
    # Of the old layout the witness shows records without numbers.
    numbered = "\n- EventNum: " in events
    records = re.split("\n- EventNum: " if numbered else "\n(?=  PCRIndex: )", events)[1:]
    pcrs = {bank: _PCR.findall(values) for bank, values in _PCRS.findall(tail)}
    banks = banks_of(raw)
    old = banks == (SHA1,) and not raw[32:].startswith(b"Spec ID Event03")
    for bank in banks:
        log = parse_event_log(raw, bank)
        name = HASHES[bank]
        ours = {pcr: value.hex() for pcr, value in replay(log).items()}
        theirs = {int(pcr): value for pcr, value in pcrs[name]}
        if log.startup_locality:
            # tpm2_eventlog 5.4 (Debian 12) extends the locality event instead of starting from it.
            del ours[0], theirs[0]
        assert ours == theirs
        told = records if old else records[1:]
        assert len(told) == len(log.events)
        for event, text in zip(log.events, told, strict=True):
            assert old or int(text.partition("\n")[0]) == event.index
            assert event.digest.hex() == dict(_DIGESTS.findall(text))[name]
            assert f"PCRIndex: {event.pcr}\n" in text
            assert f"EventType: {event.type_name}\n" in text
            assert f"EventSize: {len(event.untrusted_data)}\n" in text + "\n"
