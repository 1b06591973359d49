"""`ringfence attest verify` and `show`: the files, the exit codes, the JSON and the text, with independent witnesses."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import eventtypes as ev
from contract.boot import reference_from
from contract.claims import claims_under
from contract.eventlog import parse_event_log
from contract.imalog import MAX_LOG_BYTES, read_lines
from contract.learn import Learned, propose
from contract.toml import MAX_TOML_BYTES
from controller.cli.inputs import Amiss, parse_pcrs
from tests.contract.eventforge import header, old_record
from tests.contract.eventwitness import LOGS, pcrs_by_tpm2_eventlog
from tests.contract.forge import CASES, PCRS, QUALIFYING, Case, Forger
from tests.contract.test_credential import Machine
from tests.parts.auditor import OPTIONS, Auditor, ringfence

REPO = Path(__file__).resolve().parents[2]
PUBLIC = REPO.parent / "shared/evidence/public"
SEPARATED_SHA1 = hashlib.sha1(bytes(20) + hashlib.sha1(bytes(4)).digest()).hexdigest()
TERMINAL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def auditor(tmp_path: Path) -> Auditor:
    return Auditor(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_recorded_boots_are_verified(name: str, tmp_path: Path) -> None:
    auditor = Auditor(tmp_path, name)
    answer = auditor.verify()
    assert (answer.code, answer.err) == (0, "")
    assert answer.json["verdict"] == "verified"
    assert answer.json["findings"] == []
    assert answer.json["claims"]["secure_boot"] is (name == "secureboot-on")
    auditor.leave_out("pcrs", "ek")
    auditor.give("ak", auditor.case.read("ak.pem"))
    again = auditor.verify()
    assert (again.code, again.json["verdict"]) == (0, "verified")
    assert again.json["claims"]["pcrs"] == answer.json["claims"]["pcrs"]
    assert again.json["claims"]["signer"] == "not checked"


def test_the_json_is_stable(auditor: Auditor) -> None:
    assert auditor.verify().out == auditor.verify().out
    assert list(auditor.verify().json) == ["verdict", "findings", "claims"]
    auditor.give("event-log", Case("cmdline-changed").read("eventlog.bin"))
    found = auditor.verify()
    assert found.code == 1
    assert found.json["verdict"] == "rejected"
    assert [sorted(finding) for finding in found.json["findings"]] == [["code", "detail", "pcr"]] * 2


@pytest.mark.parametrize("option", OPTIONS)
def test_another_boots_file_is_rejected(auditor: Auditor, option: str) -> None:
    auditor.give(option, Case("secureboot-on").read(OPTIONS[option]))
    answer = auditor.verify()
    assert answer.code == 1
    assert answer.json["verdict"] == "rejected"
    assert answer.codes


@pytest.mark.parametrize("option", ["quote", "signature", "event-log", "ima-log"])
@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 100, bytes(5000), b"{}\n"])
def test_evidence_that_is_none_is_rejected_with_a_code(auditor: Auditor, option: str, content: bytes) -> None:
    auditor.give(option, content)
    answer = auditor.verify()
    assert (answer.code, answer.err) == (1, "")
    assert all(re.fullmatch(r"[a-z]+(\.[a-z0-9-]+)+", code) for code in answer.codes)
    assert ringfence("attest", "verify", *auditor.arguments()).out.startswith("rejected: ")


@pytest.mark.parametrize("option", [*OPTIONS, "pcrs", "policy"])
def test_files_that_cannot_be_read_are_the_auditors_own(
    auditor: Auditor, option: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (
        tmp_path / "nothing",
        tmp_path,
        fifo,
        tmp_path / "ak.file/below",
        Path("/dev/null"),
    ):
        auditor.files[option] = path
        answer = auditor.verify()
        assert (answer.code, answer.out) == (2, "")
        assert str(path) in answer.err
        assert "Traceback" not in answer.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_the_auditors_own(auditor: Auditor) -> None:
    auditor.files["quote"].chmod(0)
    assert auditor.verify().code == 2


def test_a_nonce_is_hexadecimal(auditor: Auditor) -> None:
    for nonce in ("", "xy", "abc", "0x00", "00 11", "00" * 65, "\u0660\u0660"):
        auditor.nonce = nonce
        answer = auditor.verify()
        assert (answer.code, answer.out) == (2, ""), nonce
        assert "--nonce" in answer.err
    auditor.nonce = auditor.case.nonce.hex().upper()
    assert auditor.verify().code == 0
    auditor.nonce = "00"
    assert auditor.verify().codes == ["quote.nonce"]


BAD_PCRS = [
    b"", b"x", b"[]", b"{}", b"null", b'"sha256"', b'{"sha256": []}', b'{"sha256": {"0": 1}}', b'{"sha256": {"0": "xy"}}',
    b'{"sha256": {"00": "aa"}}', b'{"sha256": {"-1": "aa"}}', b'{"sha256": {"0": "abc"}}', b'{"sha1": {"0": "aa"}}',
    b'{"sha256": {}, "sha1": {}}', b'{"sha256": {"0": "aa", "0": "bb"}}', b'{"sha256": {}, "sha256": {}}', b"\xff\xfe",
    b"[" * 50_000, b'{"sha256": {"0": "' + b"a" * 70_000 + b'"}}', b'{"sha256": {"0": NaN}}', b"9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("content", BAD_PCRS, ids=range(len(BAD_PCRS)))
def test_pcr_values_of_another_shape_are_the_auditors_own(auditor: Auditor, content: bytes) -> None:
    auditor.give("pcrs", content)
    answer = auditor.verify()
    assert (answer.code, answer.out) == (2, "")
    assert str(auditor.files["pcrs"]) in answer.err


def test_q09_q10_q13_pcr_values_that_do_not_fit_are_rejected(auditor: Auditor) -> None:
    good = auditor.case.pcrs
    for shown, code in (
        ({}, "quote.pcr-values"),
        ({**good, 4: good[4][:20]}, "quote.pcr-values"),
        ({**good, 16: bytes(32)}, "quote.pcr-values"),
        ({**good, 200: bytes(32)}, "quote.pcr-values"),
        ({pcr: value for pcr, value in good.items() if pcr != 7}, "quote.pcr-values"),
        ({**good, 7: good[1]}, "quote.pcr-digest"),
    ):
        auditor.give_pcrs(shown)
        answer = auditor.verify()
        assert answer.code == 1
        assert code in answer.codes
    wrong = next(f for f in answer.json["findings"] if f["code"] == "quote.pcr-values")
    assert wrong["pcr"] == 7
    assert good[7].hex() in wrong["detail"]
    assert good[1].hex() in wrong["detail"]


def test_a_policy_is_a_baseline_or_its_sections(auditor: Auditor) -> None:
    pins = "\n".join(f'{pcr} = ["{value.hex()}"]' for pcr, value in auditor.case.pcrs.items() if pcr != 10)
    boot = f'[boot]\nreference = "pinned"\n[boot.pinned]\n{pins}\n'
    head = '[baseline]\nname = "line"\nversion = 1\nsummary = "s"\n'
    usb = "[usb]\nwhatever = 1\n"
    for text in (boot, head + boot, head + usb + boot):
        auditor.give("policy", text.encode())
        answer = auditor.verify()
        assert (answer.code, answer.json["claims"]["policy"]) == (0, {"boot": "checked", "ima": "not given"})
    auditor.give("policy", boot.replace(auditor.case.pcrs[4].hex(), "0" * 64).encode())
    answer = auditor.verify()
    assert answer.code == 1
    assert [(f["code"], f["pcr"]) for f in answer.json["findings"]] == [("boot.pcr", 4)]
    for bad in ("", head, usb, boot + usb, "[boots]\n", "[boot]\npcr = [0]\n", "[boot", "[ima]\nexclude = ['/']\n", "boot = 1"):  # fmt: skip
        auditor.give("policy", bad.encode())
        answer = auditor.verify()
        assert (answer.code, answer.out) == (2, ""), bad
        assert str(auditor.files["policy"]) in answer.err


def test_a_policy_may_be_as_large_as_a_baseline(auditor: Auditor) -> None:
    files = b"".join(b'"/opt/models/%d" = ["sha256:%064x"]\n' % (n, n) for n in range(4000))
    padding = (b"#" + b"-" * 2000 + b"\n") * 1850
    auditor.give("policy", b'[ima]\nunknown_files = "ignore"\n[ima.allow]\n' + files + padding)
    assert 4_000_000 < auditor.files["policy"].stat().st_size <= MAX_TOML_BYTES
    assert auditor.verify().json["claims"]["policy"] == {"boot": "not given", "ima": "checked"}
    auditor.give("policy", b"#" * (MAX_TOML_BYTES + 1))
    assert auditor.verify().code == 2


def test_a_learned_policy_is_kept_by_the_node_it_was_learned_from_and_no_other(tmp_path: Path) -> None:
    auditor = Auditor(tmp_path, "secureboot-on")
    log = parse_event_log(auditor.case.read("eventlog.bin"))
    boot = Learned(
        reference=reference_from(log, auditor.case.quote().pcrs),
        claims=claims_under(log, auditor.case.quote().pcrs),
    )
    policy = propose({"node-1": boot}).encode()
    auditor.give("policy", policy)
    answer = auditor.verify()
    assert (answer.code, answer.codes) == (0, ["boot.not-compared"])
    (tmp_path / "other").mkdir()
    other = Auditor(tmp_path / "other", "good-rsa")
    other.give("policy", policy)
    answer = other.verify()
    assert answer.code == 1
    assert "boot.secure-boot" in answer.codes


def test_the_shipped_baselines_say_what_only_the_controller_can_compare(auditor: Auditor) -> None:
    shipped = sorted((REPO / "baselines").glob("*.toml"))
    with_boot = [each for each in shipped if "\n[boot]\n" in each.read_text()]
    assert {each.stem for each in shipped} - {each.stem for each in with_boot} == {"legacy"}, "no TPM there"
    for baseline in with_boot:
        auditor.files["policy"] = baseline
        answer = auditor.verify()
        assert {"boot.no-reference", "boot.not-compared"} & set(answer.codes)


def test_every_truncation_of_what_the_auditor_gives_ends_with_one_or_two(auditor: Auditor) -> None:
    auditor.leave_out("event-log", "ima-log")
    policy = b'[boot]\nreference = "pinned"\npcrs = [0]\nevent_log = "optional"\n[boot.pinned]\n0 = ["%s"]\n'
    auditor.give("policy", policy % auditor.case.pcrs[0].hex().encode())
    assert auditor.verify().code == 0
    for option in ("ak", "ek", "pcrs", "policy"):
        whole = auditor.files[option].read_bytes()
        for end in range(0, len(whole) - 2, 3):
            auditor.give(option, whole[:end])
            answer = auditor.verify()
            assert answer.code in (1, 2), (option, end)
            assert "Traceback" not in answer.err
        auditor.give(option, whole)


def test_m09_files_without_end_are_read_to_their_cap_and_no_further(auditor: Auditor) -> None:
    for option, code in (
        ("event-log", "eventlog.too-large"),
        ("ima-log", "ima.too-large"),
        ("quote", "quote.signature"),
    ):
        path = auditor.give(option, auditor.files[option].read_bytes())
        os.truncate(path, 20 * MAX_LOG_BYTES)
        answer = auditor.verify()
        assert answer.code == 1
        assert code in answer.codes
        auditor.give(option, auditor.case.read(OPTIONS[option]))
    for option in ("ak", "pcrs"):
        os.truncate(auditor.files[option], 20 * MAX_LOG_BYTES)
        assert auditor.verify().code == 2


def test_values_without_a_log_that_explains_them_are_the_auditors_own(auditor: Auditor) -> None:
    auditor.leave_out("pcrs", "ima-log")
    answer = auditor.verify()
    assert (answer.code, answer.out) == (2, "")
    assert "PCR 10: give --pcrs, or the --ima-log" in answer.err


def test_people_are_told_where_what_and_what_to_do(auditor: Auditor) -> None:
    auditor.give("event-log", Case("cmdline-changed").read("eventlog.bin"))
    auditor.leave_out("ek")
    auditor.nonce = None
    text = ringfence("attest", "verify", *auditor.arguments()).out
    assert text.startswith("rejected: 2 findings\n\neventlog.replay  (PCR 8)\n  PCR 8: the log leads to ")
    assert "  What to do: fetch log and quote of the same boot" in text
    assert "signer         not checked (no --ek" in text
    assert "nonce          not checked (no --nonce)" in text


def test_people_are_told_which_pcrs_of_the_log_nobody_quoted(auditor: Auditor) -> None:
    forger = Forger("ecc256")
    few = {pcr: auditor.case.pcrs[pcr] for pcr in (0, 4, 7)}
    log = auditor.files["event-log"]
    auditor.give_quote(forger, forger.attest(pcrs=few))
    auditor.files["event-log"], auditor.nonce = log, QUALIFYING.hex()
    auditor.give_pcrs(few)
    assert auditor.verify().json["claims"]["coverage"]["unquoted"] == [1, 2, 3, 5, 6, 8, 9, 14]
    text = ringfence("attest", "verify", *auditor.arguments()).out
    assert text.startswith("verified\n")
    told = "PCRs           1-3, 5-6, 8-9, 14: in the firmware log and not quoted: only the log's word"
    assert told in text


def test_c12_nothing_in_evidence_reaches_the_terminal_as_it_is(auditor: Auditor, tmp_path: Path) -> None:
    log = auditor.case.read("eventlog.bin")
    at = log.index(b"kernel_cmdline: ") + 16
    painted = log[:at] + b"\x1b[2J\x07\r\n\xe2\x80\xae\xc2\x9b"[:12] + log[at + 12 :]
    auditor.give("event-log", painted)
    lines = auditor.case.read("ima.bin")
    path = lines.index(b"/usr/")
    auditor.give("ima-log", lines[:path] + b"\x1b]0;" + lines[path + 4 :])
    for command in (
        ("attest", "verify", *auditor.arguments()),
        ("attest", "show", "--event-log", auditor.files["event-log"], "--ima-log", auditor.files["ima-log"]),
        ("attest", "verify", "--ak", tmp_path / "\x1b[31mred", "--quote", "q", "--signature", "s"),
    ):
        answer = ringfence(*command)
        assert TERMINAL.search(answer.out + answer.err) is None
        assert TERMINAL.search(ringfence(*command, "--json").out) is None


def test_show_lists_every_event_with_its_coverage() -> None:
    case = Case("secureboot-on")
    files = ("--event-log", case.folder / "eventlog.bin", "--ima-log", case.folder / "ima.bin")
    answer = ringfence("attest", "show", *files)
    assert answer.code == 0
    log = parse_event_log(case.read("eventlog.bin"))
    for event in log.events:
        assert re.search(rf"^ *{event.index} +\S+ +{event.type_name} +(yes|-) ", answer.out, re.MULTILINE)
    assert "Secure Boot    on" in answer.out
    assert answer.out.count("sha256:") == len(list(read_lines(case.read("ima.bin"))))
    shown = ringfence("attest", "show", *files, "--json").json
    assert len(shown["events"]) == len(log.events)
    assert shown["claims"]["secure_boot"] is True
    assert shown["ima"][0]["name"] == "boot_aggregate"


@pytest.mark.parametrize("path", LOGS, ids=[str(path.relative_to(path.parents[1])) for path in LOGS])
def test_show_tells_every_bank_as_tpm2_eventlog_does(path: Path) -> None:
    shown = ringfence("attest", "show", "--event-log", path, "--json").json
    ours, theirs = {name: bank["pcrs"] for name, bank in shown["banks"].items()}, pcrs_by_tpm2_eventlog(path)
    if parse_event_log(path.read_bytes()).startup_locality:
        # tpm2_eventlog 5.4 (Debian 12) extends the locality event instead of starting from it.
        for bank in (*ours.values(), *theirs.values()):
            del bank["0"]
    assert ours == theirs
    assert all(event["digests"].keys() == shown["banks"].keys() for event in shown["events"])
    assert all(event["fields"] for event in shown["events"])
    text = ringfence("attest", "show", "--event-log", path).out
    for name, bank in shown["banks"].items():
        for pcr, value in bank["pcrs"].items():
            assert re.search(rf"^  {name} +PCR +{pcr} +{value}$", text, re.MULTILINE)


def test_l11_a_log_of_sha1_is_shown_and_said_to_prove_nothing(tmp_path: Path) -> None:
    auditor = Auditor(tmp_path)
    old = auditor.give("event-log", b"".join(old_record(pcr, ev.EV_SEPARATOR, bytes(4)) for pcr in range(8)))
    answer = ringfence("attest", "show", "--event-log", old)
    assert answer.code == 0
    assert answer.out.startswith("eventlog.no-sha256\n")
    assert "SHA-1 alone proves nothing to us" in answer.out
    assert answer.out.count("EV_SEPARATOR") == 8
    assert "covered: whether the sha1 digest" in answer.out
    shown = ringfence("attest", "show", "--event-log", old, "--json").json
    assert (shown["bank"], list(shown["banks"])) == ("sha1", ["sha1"])
    assert shown["banks"]["sha1"]["pcrs"]["7"] == SEPARATED_SHA1
    assert shown["events"][7]["digests"] == {"sha1": hashlib.sha1(bytes(4)).hexdigest()}
    # The same log is no evidence.
    answer = auditor.verify()
    assert (answer.code, answer.codes) == (1, ["eventlog.no-sha256"])


def test_show_tells_a_bank_that_it_cannot_read_and_shows_the_others(tmp_path: Path) -> None:
    path = tmp_path / "log"
    two = struct.pack("<III", 4, ev.EV_SEPARATOR, 2)
    digests = struct.pack("<H20sH32s", 4, hashlib.sha1(bytes(4)).digest(), 0x12, b"3" * 32)
    path.write_bytes(header(((4, 20), (0x12, 32))) + two + digests + struct.pack("<I4x", 4))
    answer = ringfence("attest", "show", "--event-log", path, "--json")
    assert (answer.code, answer.codes[:2]) == (0, ["eventlog.no-sha256", "eventlog.no-bank"])
    assert "sm3_256: " in answer.json["findings"][1]["detail"]
    assert list(answer.json["banks"]) == ["sha1"]
    only = struct.pack("<IIIH32sI4x", 4, ev.EV_SEPARATOR, 1, 0x12, b"3" * 32, 4)
    path.write_bytes(header(((0x12, 32),)) + only)
    answer = ringfence("attest", "show", "--event-log", path, "--json")
    assert (answer.code, answer.codes) == (1, ["eventlog.no-bank", "eventlog.no-sha256"])
    assert "events" not in answer.json


def test_show_tells_a_malformed_log_and_shows_what_can_be_read(tmp_path: Path) -> None:
    auditor = Auditor(tmp_path)
    lines = auditor.give("ima-log", auditor.case.read("ima.bin")[:-1])
    answer = ringfence("attest", "show", "--ima-log", lines)
    assert answer.code == 1
    assert answer.out.startswith("ima.truncated")
    assert "boot_aggregate" in answer.out
    answer = ringfence("attest", "show", "--event-log", auditor.give("event-log", b""), "--json")
    assert answer.code == 1
    assert answer.codes == ["eventlog.empty"]
    assert ringfence("attest", "show").code == 2
    assert ringfence("attest", "show", "--event-log", tmp_path / "nothing").code == 2


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public logs are not here")
def test_logs_of_real_machines_are_shown() -> None:
    for path in sorted(PUBLIC.rglob("*.eventlog.bin")):
        answer = ringfence("attest", "show", "--event-log", path)
        assert answer.code == 0
        assert "EV_EFI_VARIABLE_AUTHORITY" in answer.out


def test_it_needs_no_home_no_profile_and_no_network(auditor: Auditor) -> None:
    program = "import sys; from controller.cli import main; main()"
    command = [sys.executable, "-c", program, "attest", "verify", *map(str, auditor.arguments())]
    isolated = ["unshare", "-n", *command] if os.geteuid() == 0 else command
    done = subprocess.run(
        isolated, cwd=REPO, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verified\n")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("tpm"))
    yield made
    made.tpm.close()


@pytest.mark.parametrize("ak", ["ecc256:ecdsa-sha256:null", "rsa2048:rsassa-sha256:null"])
def test_what_tpm2_quote_writes_is_verified_and_tpm2_checkquote_agrees(
    machine: Machine, tmp_path: Path, ak: str
) -> None:
    ek_public, ak_public = machine.keys("ecc256:null:aes128cfb", ak, "sha256")
    machine.must("tpm2_readpublic", "-Q", "-c", "ak.ctx", "-f", "pem", "-o", "ak.pem")
    attest, signature, pcrs = machine.quote(b"nonce")
    auditor = Auditor(tmp_path)
    auditor.leave_out("ima-log")
    auditor.nonce = b"nonce".hex()
    auditor.give("ak", ak_public)
    auditor.give("ek", ek_public)
    auditor.give("quote", attest)
    auditor.give("signature", signature)
    auditor.give_pcrs(pcrs)
    assert auditor.verify().code == 0
    auditor.give("ak", machine.read("ak.pem"))
    auditor.leave_out("ek")
    assert auditor.verify().code == 0
    for message, signed, nonce in tampered(attest, signature):
        auditor.give("quote", message)
        auditor.give("signature", signed)
        auditor.nonce = nonce
        witness = checkquote(machine.folder / "ak.pem", auditor)
        answer = auditor.verify()
        assert (answer.code == 0) == witness, answer.out


def tampered(attest: bytes, signature: bytes) -> Iterator[tuple[bytes, bytes, str]]:
    """Yield quotes, signatures and nonces: the good ones, then those with one fault each."""
    nonce = b"nonce".hex()
    yield attest, signature, nonce
    for at in range(0, len(attest), 9):
        yield attest[:at] + bytes([attest[at] ^ 0x10]) + attest[at + 1 :], signature, nonce
    for at in (7, len(signature) // 2, len(signature) - 1):
        yield attest, signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :], nonce
    yield attest, signature, "00"
    yield attest, signature[:-1], nonce
    yield attest[:-1], signature, nonce


def checkquote(pem: Path, auditor: Auditor) -> bool:
    """Ask the witness. It looks at signature and nonce only, unless it is given PCR values in a format of its own."""
    files = ("-m", auditor.files["quote"], "-s", auditor.files["signature"])
    done = subprocess.run(
        ["tpm2_checkquote", "-Q", "-u", pem, *files, "-q", auditor.nonce or ""], capture_output=True
    )
    return done.returncode == 0


def test_q15_a_signer_is_named_only_where_the_ek_speaks_for_it(auditor: Auditor) -> None:
    forger = Forger("ecc256")
    auditor.give_quote(forger, forger.attest())
    auditor.give_pcrs(PCRS)
    auditor.nonce = QUALIFYING.hex()
    assert auditor.verify().json["claims"]["signer"] == "checked"
    auditor.give("ek", Forger("ecc256").ek_public)
    assert auditor.verify().codes == ["quote.signer"]
    auditor.leave_out("ek")
    assert auditor.verify().json["claims"]["signer"] == "not checked"


def test_every_value_of_pcrs_is_what_it_says() -> None:
    assert parse_pcrs(b'{"sha256": {"0": "aB", "23": ""}}', "f") == {0: b"\xab", 23: b""}
    with pytest.raises(Amiss):
        parse_pcrs(b"\0\0\0\7", "f")


@pytest.mark.parametrize(("nonce", "code"), [(None, 0), ("00", 1)])
def test_a_reader_that_goes_away_changes_nothing_about_the_verdict(
    auditor: Auditor, nonce: str | None, code: int
) -> None:
    auditor.nonce = nonce
    program = "import sys; from controller.cli import main; main()"
    command = [sys.executable, "-c", program, "attest", "verify", *map(str, auditor.arguments())]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=REPO, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, b"")
