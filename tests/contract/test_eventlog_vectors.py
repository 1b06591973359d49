"""Every vector of `tests/vectors/eventlog` gives the code that its header names, and tpm2_eventlog sees the good ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.claims import claims_of
from contract.errors import Rejected
from contract.eventlog import parse_event_log
from tests.contract.eventwitness import agrees_with_tpm2_eventlog
from tests.contract.make_eventlog_vectors import main
from tests.contract.vectorfile import FOLDER, found_in, read

PATHS = sorted(FOLDER.glob("*.vec"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_vector_gives_the_code_that_its_header_names(path: Path) -> None:
    vector = read(path)
    codes, details = found_in(vector)
    assert codes == vector.expect
    assert vector.detail in details
    assert path.stem.startswith(vector.case.partition(" ")[0])
    try:
        log = parse_event_log(vector.log, vector.bank)
    except Rejected:
        return
    claims_of(log)


# tpm2_eventlog 5.4 (Debian 12) refuses an event without a PCR, which firmware does write.
WITNESSED = [p for p in PATHS if not read(p).expect and p.stem != "l17-no-pcr"]


@pytest.mark.parametrize("path", WITNESSED, ids=lambda path: path.stem)
def test_tpm2_eventlog_agrees_on_every_good_vector(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "eventlog.bin"
    log.write_bytes(read(path).log)
    agrees_with_tpm2_eventlog(log)


def test_the_vectors_are_as_they_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("make_eventlog_vectors", "vectorfile"):
        monkeypatch.setattr(f"tests.contract.{module}.FOLDER", tmp_path)
    main()
    made = {path.name: path.read_text() for path in tmp_path.glob("*.vec")}
    assert made == {path.name: path.read_text() for path in PATHS}


def test_every_number_of_the_log_has_a_vector() -> None:
    seen = {path.stem[:3] for path in PATHS}
    # l15 is a matter of two boots and their reference.
    assert seen == {f"l{number:02}" for number in range(1, 18)} - {"l15"}
