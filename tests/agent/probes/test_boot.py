"""The boot probe, with a software TPM that was extended from a recorded firmware log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Surroundings
from agent.tpm import Tpm
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of
from tests.parts.swtpm import SoftwareTpm

NOW = 1_700_000_000.0
LOG = (Path(__file__).parents[2] / "vectors/good-rsa/eventlog.bin").read_bytes()
TOML = "[boot]\n"


@contextmanager
def machine(folder: Path) -> Iterator[tuple[Surroundings, SoftwareTpm, Path]]:
    """Yield a node that has just booted, its TPM and its log."""
    folder.mkdir(exist_ok=True)
    log = folder / "binary_bios_measurements"
    log.write_bytes(LOG)
    with SoftwareTpm.manufacture(folder) as chip:
        chip.extend_from_log(LOG)
        tpm = Tpm(chip.tcti)
        try:
            yield Surroundings(host=Host(), tpm=tpm, event_log=str(log)), chip, log
        finally:
            tpm.close()


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    with machine(folder / "tpm") as (around, _, log):
        yield Case(
            toml=TOML,
            around=around,
            spoil=lambda: log.write_bytes(LOG[: _last_record(LOG)]) and None,
            blind=log.unlink,
            state=log.read_bytes,
            trace=lambda: (log.read_bytes(), log.stat().st_mtime_ns),
            mends=False,
        )


def _last_record(log: bytes) -> int:
    """Return where the last record begins: found by cutting until the log parses again."""
    from contract.eventlog import parse_event_log

    for end in range(len(log) - 1, 0, -1):
        try:
            parse_event_log(log[:end])
        except Rejected:
            continue
        return end
    raise AssertionError("no shorter log")


def test_a_log_that_does_not_lead_to_the_pcrs_names_the_pcr(tmp_path: Path) -> None:
    with machine(tmp_path) as (around, chip, _):
        probe = probe_of("boot", TOML, around)
        assert probe.observe(NOW) == []
        chip.extend([(4, b"\x01" * 32)])
        assert probe.observe(NOW + 30) == []  # PCRs are read once a minute
        (drift,) = probe.observe(NOW + 61)
        assert drift.key == "event-log PCR 4"
        assert "the TPM holds" in drift.found


def test_l13_no_log_where_one_is_required_is_a_drift(tmp_path: Path) -> None:
    with machine(tmp_path) as (around, _, log):
        log.unlink()
        assert [drift.key for drift in probe_of("boot", TOML, around).observe(NOW)] == ["event-log"]
        assert probe_of("boot", TOML + 'event_log = "optional"\n', around).observe(NOW) == []
        log.write_bytes(b"")
        assert [drift.found for drift in probe_of("boot", TOML, around).observe(NOW)] == ["?"]


def test_a08_a_tpm_that_hangs_is_a_drift_and_heals(tmp_path: Path) -> None:
    with machine(tmp_path) as (around, chip, _):
        probe = probe_of("boot", TOML, around)
        chip.pause()
        try:
            assert probe.observe(NOW) == []  # busy with a slow quote, perhaps
            assert [(drift.key, drift.found) for drift in probe.observe(NOW + 10)] == [("tpm", "?")]
        finally:
            chip.resume()
        time.sleep(0.3)
        assert probe.observe(NOW + 11) == []


def test_a08_a_tpm_that_is_gone_is_a_drift_at_once(tmp_path: Path) -> None:
    with machine(tmp_path) as (around, chip, _):
        chip.stop()
        assert [drift.found for drift in probe_of("boot", TOML, around).observe(NOW)] == ["?"]


def test_no_tpm_is_a_drift(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(LOG)
    around = Surroundings(host=Host(), event_log=str(log))
    assert [drift.key for drift in probe_of("boot", TOML, around).observe(NOW)] == ["tpm"]
    with machine(tmp_path / "tpm") as (complete, _, _log):
        assert [d.key for d in probe_of("boot", TOML, replace(complete, tpm=None)).observe(NOW)] == ["tpm"]


@pytest.mark.parametrize(
    "line",
    [
        "pcrs = [24]",
        "pcrs = [16]",
        "pcrs = [11]",
        "pcrs = [10]",
        "pcrs = [4, 4]",
        'pcrs = ["4"]',
        'reference = "any"',
    ],
)
def test_a_policy_that_proves_nothing_is_refused(line: str) -> None:
    with pytest.raises(Rejected):
        section_of("boot", f"[boot]\n{line}\n")
