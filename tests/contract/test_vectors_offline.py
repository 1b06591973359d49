"""Every vector, through the verifier that auditors run: quotes, firmware logs and IMA logs, each with its code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract import tpm
from contract.auditkey import read_key
from contract.errors import Rejected
from contract.offline import Verdict, verify
from contract.offlinelogs import ADVISORY_CODES
from contract.quote import AttestationKey, verify_quote
from tests.contract import imavectors, quotevectors, vectorfile
from tests.contract.forge import CASES, QUALIFYING, Case, Forger
from tests.parts.auditor import given

QUOTES = sorted(quotevectors.FOLDER.glob("*.vec"))
LOGS = sorted(vectorfile.FOLDER.glob("*.vec"))
FORGER = Forger("ecc256")
KEY = read_key(FORGER.ak_public, FORGER.ek_public)


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


@pytest.mark.parametrize("path", QUOTES, ids=lambda path: path.stem)
def test_quote_gives_the_codes_that_its_header_names(path: Path) -> None:
    vector = quotevectors.read(path)
    found: list[str] = []
    try:
        quote = verify_quote(
            AttestationKey.from_public(vector.ak, vector.ek),
            vector.attest,
            vector.signature,
            qualifying_data=vector.nonce,
            pcrs=vector.pcrs,
            wanted_pcrs=frozenset(vector.pcrs),
            previous=vector.previous,
        )
        found = [finding.code for finding in quote.findings]
    except Rejected as rejected:
        found = [rejected.code]
    # The controller looks at the key when it is enrolled; and it asked for these PCRs, an auditor takes what the quote has.
    asked = path.stem.startswith(("q09", "b02"))
    assert asked or found == vector.expect
    assert path.stem.startswith(vector.case.partition(" ")[0])


@pytest.mark.parametrize("path", QUOTES, ids=lambda path: path.stem)
def test_quote_gives_an_auditor_the_same_codes(path: Path) -> None:
    vector = quotevectors.read(path)
    if vector.previous is not None:
        pytest.skip("an auditor has no quote before")
    verdict = verify(
        given(
            Case("good-rsa"),
            key=read_key(vector.ak, vector.ek),
            attest=vector.attest,
            signature=vector.signature,
            nonce=vector.nonce,
            pcrs=vector.pcrs,
            event_log=None,
            ima_log=None,
        )
    )
    assert codes(verdict) == vector.expect
    assert verdict.verified is (set(vector.expect) <= ADVISORY_CODES)


# tpm2_checkquote 5.4 looks at signature and nonce alone: it takes a structure that no TPM made, with bytes behind it.
SEEN_BY_US_ALONE = (
    *("q05", "q06", "q07-trailing", "q08", "q09", "q10", "q11", "q12-sha1-bank", "q12-sha384", "q13"),
    *("q14-pss", "q14-trailing", "q15", "q16", "q19", "q20", "b02"),
)


@pytest.mark.parametrize("path", QUOTES, ids=lambda path: path.stem)
def test_tpm2_checkquote_takes_no_quote_that_we_refuse_for_what_it_looks_at(
    path: Path, tmp_path: Path
) -> None:
    vector = quotevectors.read(path)
    pem = tpm.parse_public(vector.ak).key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, content in (("ak", pem), ("m", vector.attest), ("s", vector.signature)):
        (tmp_path / name).write_bytes(content)
    command = ["tpm2_checkquote", "-Q", "-u", "ak", "-m", "m", "-s", "s", "-q", vector.nonce.hex()]
    taken = subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    if set(vector.expect) <= ADVISORY_CODES or vector.expect == ["quote.counters"]:
        assert taken
    elif not path.stem.startswith(SEEN_BY_US_ALONE):
        assert not taken


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_firmware_log_gives_an_auditor_the_codes_that_its_header_names(path: Path) -> None:
    vector = vectorfile.read(path)
    if vector.bank != vectorfile.BANKS["sha256"]:
        pytest.skip("another bank: shown, never judged")
    if vector.base is None:
        verdict = _quoted({0: b"0" * 32, 7: b"7" * 32}, event_log=vector.log)
        assert set(codes(verdict)) - {"eventlog.replay"} == vector.expect
    else:
        verdict = verify(given(vector.base, event_log=vector.log, ima_log=None))
        assert set(codes(verdict)) == vector.expect
        assert verdict.verified is not bool(vector.expect)


@pytest.mark.parametrize("path", imavectors.VECTORS, ids=lambda path: path.stem)
def test_ima_log_gives_an_auditor_the_codes_that_its_header_names(path: Path) -> None:
    vector = imavectors.read_vector(path)
    if vector.offset or vector.more or vector.changes or vector.state.reports:
        pytest.skip("a matter of several reports")
    pcrs = {pcr: value for pcr, value in vector.pcrs.items() if pcr < 10} | {10: vector.pcr10}
    verdict = _quoted(pcrs, ima_log=vector.lines, ima_policy=vector.rules.policy)
    assert codes(verdict) == vector.expect
    assert verdict.verified is (set(vector.expect) <= ADVISORY_CODES)


def _quoted(pcrs: dict[int, bytes], **more: object) -> Verdict:
    attest = FORGER.attest(pcrs=pcrs)
    usual: dict[str, object] = {"event_log": None, "ima_log": None, "nonce": QUALIFYING}
    signed = {"key": KEY, "attest": attest, "signature": FORGER.sign(attest), "pcrs": pcrs}
    return verify(given(Case("good-rsa"), **{**usual, **signed, **more}))


def test_every_number_of_the_quote_that_one_quote_can_show_has_a_vector() -> None:
    seen = {path.stem[:3] for path in QUOTES if path.stem.startswith("q")}
    # q02 to q04 are the controller's nonces, several requests at once.
    assert seen == {f"q{number:02}" for number in range(1, 22)} - {"q02", "q03", "q04"}
    assert {path.stem for path in QUOTES} == {name for name, _ in quotevectors.made()}
    assert CASES
