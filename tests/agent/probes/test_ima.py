"""The IMA probe, with the log of a recorded boot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import UNSEEN, Surroundings
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of

NOW = 1_700_000_000.0
LOG = (Path(__file__).parents[2] / "vectors/good-rsa/ima.bin").read_bytes()
TOML = "[ima]\n"


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    log = folder / "binary_runtime_measurements"
    log.write_bytes(LOG)
    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(), ima_log=str(log)),
        spoil=lambda: log.write_bytes(b"") and None,
        blind=log.unlink,
        state=log.read_bytes,
        trace=lambda: (log.read_bytes(), log.stat().st_mtime_ns),
        mends=False,
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "nothing measured"),
        (LOG[:30], "ima.truncated"),
        (LOG[LOG.index(b"boot_aggregate") + 19 :], "'/init'"),
        (LOG[:28] + b"ima-new" + LOG[35:], "ima.unknown-template"),
    ],
)
def test_a_log_that_no_kernel_with_a_policy_makes_is_a_drift(
    tmp_path: Path, content: bytes, found: str
) -> None:
    log = tmp_path / "log"
    log.write_bytes(content)
    (drift,) = probe_of("ima", TOML, Surroundings(host=Host(), ima_log=str(log))).observe(NOW)
    assert (drift.section, drift.key) == ("ima", "log")
    assert found in drift.found


def test_no_log_is_a_drift(tmp_path: Path) -> None:
    around = Surroundings(host=Host(), ima_log=str(tmp_path / "none"))
    assert [drift.found for drift in probe_of("ima", TOML, around).observe(NOW)] == [UNSEEN]


def test_m12_an_exclusion_that_takes_in_everything_is_refused_with_file_and_line() -> None:
    with pytest.raises(Rejected) as refused:
        section_of("ima", '[ima]\nexclude = ["/usr/*/"]\n')
    assert refused.value.code == "baseline.key"
    assert "'/usr/*/' takes in everything in /usr" in refused.value.detail
