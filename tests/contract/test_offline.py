"""`contract.offline`: recorded evidence verified from bytes, and every way to be wrong."""

from __future__ import annotations

import hashlib
import struct
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract import eventlog, tpm
from contract.auditkey import read_key
from contract.boot import BootPolicy
from contract.errors import Rejected
from contract.imapolicy import ImaPolicy
from contract.offline import Unusable, Verdict, verify
from contract.offlinelogs import numbers
from contract.quote import Counters
from tests.contract.forge import (
    AK_ATTRIBUTES,
    CASES,
    COUNTERS,
    PCRS,
    QUALIFYING,
    RSASSA_SHA256,
    Case,
    Forger,
    one_selection,
    rsa_public,
    selection,
)
from tests.contract.imaforge import Log
from tests.parts.auditor import given

GOOD = Case("good-rsa")
LOGS = ("event_log", "ima_log")
FORGER = Forger("ecc256")


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


def forged(forger: Forger, attest: bytes, **more: object) -> Verdict:
    usual: dict[str, object] = {
        "key": read_key(forger.ak_public, forger.ek_public),
        "attest": attest,
        "signature": forger.sign(attest),
        "nonce": QUALIFYING,
        "pcrs": PCRS,
        "event_log": None,
        "ima_log": None,
    }
    return verify(given(GOOD, **{**usual, **more}))


@pytest.fixture(scope="module", params=["rsa2048", "rsa3072", "ecc256", "ecc384"])
def forger(request: pytest.FixtureRequest) -> Forger:
    return Forger(request.param)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shown", [True, False], ids=["values shown", "values from the logs"])
def test_recorded_boots_are_verified(name: str, shown: bool) -> None:
    case = Case(name)
    verdict = verify(given(case, pcrs=case.pcrs if shown else None))
    assert verdict.findings == ()
    assert verdict.verified
    assert verdict.claims["signer"] == verdict.claims["nonce"] == "checked"
    explained = {int(p): v["explained_by"] for p, v in verdict.claims["pcrs"].items()}  # type: ignore[attr-defined]
    assert explained == {p: "IMA log" if p == 10 else "event log" for p in case.wanted}
    assert verdict.claims["secure_boot"] is (name == "secureboot-on")
    assert verdict.claims["proved"]["secure_boot"] is True  # type: ignore[index]
    assert verdict.claims["ima"]["lines_proved"] > 490  # type: ignore[index]


def test_every_kind_of_key_is_verified(forger: Forger) -> None:
    verdict = forged(forger, forger.attest())
    assert verdict.findings == ()
    algorithm = tpm.parse_public(forger.ak_public).algorithm
    assert verdict.claims["key"] == {"algorithm": algorithm, "attributes": "checked"}


def test_what_was_not_given_is_told_as_not_checked() -> None:
    key = read_key(GOOD.read("ak.pem"))
    verdict = verify(given(GOOD, key=key, nonce=None, event_log=None, ima_log=None))
    assert verdict.verified
    assert verdict.claims["signer"] == verdict.claims["nonce"] == "not checked"
    assert verdict.claims["key"]["attributes"] == "not checked"  # type: ignore[index]
    assert {v["explained_by"] for v in verdict.claims["pcrs"].values()} == {"nothing"}  # type: ignore[attr-defined]
    assert "secure_boot" not in verdict.claims
    assert verdict.claims["policy"] == {"boot": "not given", "ima": "not given"}


def test_b02_a_key_that_signs_foreign_bytes_is_refused() -> None:
    free = Forger("rsa2048")
    free.ak_public = rsa_public(free.key, AK_ATTRIBUTES & ~(1 << 16), RSASSA_SHA256)  # type: ignore[arg-type]
    attest = free.attest(signer=read_key(free.ak_public, free.ek_public).qualified_name)
    assert codes(forged(free, attest)) == ["ak.attributes"]


def test_q01_another_nonce_is_refused_and_the_rest_is_still_looked_at() -> None:
    wrong = {**GOOD.pcrs, 4: bytes(31) + b"\1"}
    verdict = verify(given(GOOD, nonce=b"another", pcrs=wrong))
    assert codes(verdict) == ["quote.nonce", "quote.pcr-digest", "quote.pcr-values"]
    assert verdict.findings[-1].pcr == 4
    assert verdict.claims["nonce"] == "not checked"


def test_q05_q06_q07_what_is_no_quote_is_refused(forger: Forger) -> None:
    assert codes(forged(forger, forger.attest(magic=0x12345678))) == ["quote.magic"]
    for kind in (0x8017, 0x801A, 0x8019):
        assert codes(forged(forger, forger.attest(kind=kind))) == ["quote.type"]
    assert codes(forged(forger, forger.attest() + b"\0")) == ["quote.length"]
    assert codes(forged(forger, forger.attest()[:-1])) == ["quote.length"]
    assert codes(forged(forger, b"")) == ["quote.length"]


def test_q08_a_quote_over_nothing_proves_nothing(forger: Forger) -> None:
    empty = hashlib.new("sha384" if forger.hash_id == 0x0C else "sha256").digest()
    for selections in (struct.pack(">I", 1) + selection(bytes(3)), struct.pack(">I", 0)):
        verdict = forged(forger, forger.attest(selections=selections, digest=empty), pcrs={})
        assert not verdict.verified
        assert set(codes(verdict)) <= {"quote.pcr-selection", "quote.length"}
        assert verdict.claims == {}


def test_q09_values_beyond_the_quote_are_not_taken_for_proved(forger: Forger) -> None:
    few = {pcr: PCRS[pcr] for pcr in (0, 1, 2)}
    assert codes(forged(forger, forger.attest(pcrs=few), pcrs=PCRS)) == ["quote.pcr-values"]
    assert codes(forged(forger, forger.attest(), pcrs=few)) == ["quote.pcr-values"]


def test_q10_values_of_another_pcr_are_refused(forger: Forger) -> None:
    swapped = {**PCRS, 0: PCRS[1], 1: PCRS[0]}
    assert codes(forged(forger, forger.attest(), pcrs=swapped)) == ["quote.pcr-digest"]


def test_q11_q12_other_selections_and_banks_are_refused(forger: Forger) -> None:
    two = struct.pack(">I", 2) + selection(b"\1\0\0") * 2
    assert codes(forged(forger, forger.attest(selections=two))) == ["quote.pcr-selection"]
    for bank in (0x04, 0x0C):
        assert codes(forged(forger, forger.attest(selections=one_selection(PCRS, bank)))) == [
            "quote.pcr-bank"
        ]


def test_q13_q14_digests_and_signatures_that_do_not_fit_are_refused(forger: Forger) -> None:
    assert codes(forged(forger, forger.attest(digest=b"d" * 20))) == ["quote.length"]
    attest = forger.attest()
    good = forger.sign(attest)
    swapped = {0x14: 0x18, 0x18: 0x14}[int.from_bytes(good[:2], "big")].to_bytes(2, "big") + good[2:]
    for broken, code in (
        (swapped, "quote.signature-scheme"),
        (good[:2] + b"\0\4" + good[4:], "quote.signature-scheme"),
        (good[:-1] + bytes([good[-1] ^ 1]), "quote.signature"),
        (good + b"\0", "quote.signature-length"),
        (b"", "quote.signature-length"),
    ):
        verdict = forged(forger, attest, signature=broken)
        assert codes(verdict) == [code]
        assert verdict.claims == {}


def test_q12_pem_takes_no_sha1_signature() -> None:
    signature = GOOD.read("quote.sig")
    for broken in (signature[:2] + b"\0\4" + signature[4:], signature[:3]):
        verdict = verify(given(GOOD, key=read_key(GOOD.read("ak.pem")), signature=broken))
        assert codes(verdict)[0] in ("quote.signature-scheme", "quote.signature-length")
        assert not verdict.verified


def test_q15_the_signer_is_checked_where_the_ek_is_there(forger: Forger) -> None:
    other = read_key(forger.ak_public, Forger("ecc256").ek_public)
    verdict = forged(forger, forger.attest(), key=other)
    assert codes(verdict) == ["quote.signer"]
    assert verdict.claims["signer"] == "not checked"
    assert forged(forger, forger.attest(), key=read_key(forger.ak_public)).verified


def test_q19_an_unsafe_clock_is_worth_a_look_and_no_reason_to_refuse(forger: Forger) -> None:
    verdict = forged(forger, forger.attest(counters=Counters(**{**counters(), "safe": False})))
    assert codes(verdict) == ["quote.clock-unsafe"]
    assert verdict.verified


def counters() -> dict[str, object]:
    return {name: getattr(COUNTERS, name) for name in COUNTERS.__struct_fields__}


def test_q20_pcrs_that_nothing_extended_are_refused(forger: Forger) -> None:
    for pcr in (0, 4):
        unset = {**PCRS, pcr: bytes(32)}
        assert codes(forged(forger, forger.attest(pcrs=unset), pcrs=unset)) == ["quote.pcr-unset"]


def test_q21_a_log_of_another_boot_is_refused() -> None:
    other = Case("cmdline-changed")
    verdict = verify(given(GOOD, event_log=other.read("eventlog.bin")))
    assert {finding.pcr for finding in verdict.findings if finding.code == "eventlog.replay"} == {8, 9}
    assert not verdict.verified
    assert "nothing" in {v["explained_by"] for v in verdict.claims["pcrs"].values()}  # type: ignore[attr-defined]
    assert "ima.mismatch" in codes(verify(given(GOOD, ima_log=other.read("ima.bin"))))


def test_findings_of_all_files_are_collected() -> None:
    log = bytearray(GOOD.read("eventlog.bin"))
    log[-1] ^= 1
    verdict = verify(
        given(
            GOOD,
            nonce=b"x",
            event_log=bytes(log[:-1]),
            ima_log=GOOD.read("ima.bin")[:-1],
            ima_policy=ImaPolicy(),
        )
    )
    assert codes(verdict)[:2] == ["quote.nonce", "eventlog.truncated"]
    assert any(code.startswith("ima.") for code in codes(verdict))


def test_a_bad_signature_stops_everything() -> None:
    broken = bytearray(GOOD.read("quote.sig"))
    broken[-1] ^= 1
    verdict = verify(
        given(GOOD, signature=bytes(broken), event_log=b"", ima_log=b"?", boot_policy=BootPolicy())
    )
    assert codes(verdict) == ["quote.signature"]
    assert verdict.claims == {}


def test_values_are_wanted_where_no_log_was_given() -> None:
    for missing, words in ((("event_log",), "PCR 0-9, 14"), (("ima_log",), "PCR 10"), (LOGS, "PCR 0-9, 14")):
        with pytest.raises(Unusable, match=words):
            verify(given(GOOD, pcrs=None, **dict.fromkeys(missing)))


def test_values_from_logs_that_lead_elsewhere_are_refused() -> None:
    other = Case("cmdline-changed")
    verdict = verify(given(GOOD, pcrs=None, event_log=other.read("eventlog.bin")))
    assert codes(verdict) == ["quote.pcr-digest"]
    assert "PCR 0-9, 14 by the firmware log; PCR 10 by the IMA log" in verdict.findings[0].detail
    assert not verdict.verified


def test_values_from_a_log_that_cannot_be_read_are_not_made_up() -> None:
    verdict = verify(given(GOOD, pcrs=None, event_log=GOOD.read("eventlog.bin")[:-1]))
    assert codes(verdict) == ["eventlog.truncated"]
    assert not verdict.verified
    assert "pcrs" not in verdict.claims


@pytest.mark.parametrize("pcr", [9, 11, 12, 15, 16, 17, 23])
def test_l01_without_values_every_quoted_pcr_must_be_what_a_log_leads_to(pcr: int) -> None:
    log = GOOD.read("eventlog.bin")
    pcrs = {pcr: GOOD.pcrs[pcr] for pcr in range(9)}
    start = eventlog.start_value(pcr)
    for value in (b"\x11" * 32, start):
        quoted = pcrs | {pcr: value}
        verdict = forged(FORGER, FORGER.attest(pcrs=quoted), pcrs=None, event_log=log)
        led_to = eventlog.replay(eventlog.parse_event_log(log)).get(pcr, start)
        assert codes(verdict) == ([] if value == led_to else ["quote.pcr-digest"])
        assert verdict.verified is (value == led_to)


def test_a_run_time_pcr_may_hold_what_no_log_tells_and_the_claims_say_so(forger: Forger) -> None:
    log = GOOD.read("eventlog.bin")
    pcrs = {**{pcr: GOOD.pcrs[pcr] for pcr in range(8)}, 11: b"\x11" * 32, 13: bytes(32)}
    verdict = forged(forger, forger.attest(pcrs=pcrs), pcrs=pcrs, event_log=log)
    assert verdict.verified
    shown = verdict.claims["pcrs"]
    assert shown["11"]["explained_by"] == "nothing"  # type: ignore[index]
    assert shown["13"]["explained_by"] == "start value"  # type: ignore[index]
    assert verdict.claims["coverage"] == {
        "explained": list(range(8)),
        "runtime": [11, 13],
        "unexplained": [],
        "unquoted": [8, 9, 14],
    }
    proved = verdict.claims["proved"]
    assert proved["secure_boot"] is True and proved["kernel_command_line"] is False  # type: ignore[index]
    firmware = {**pcrs, 9: b"\x09" * 32}
    verdict = forged(forger, forger.attest(pcrs=firmware), pcrs=firmware, event_log=log)
    assert [(f.code, f.pcr) for f in verdict.findings] == [("eventlog.replay", 9)]
    policy = BootPolicy(
        pcrs=[0, 4, 7, 9], runtime_pcrs=[9], firmware_versions=None, cmdline_forbidden=[], secure_boot="any"
    )
    verdict = forged(forger, forger.attest(pcrs=firmware), pcrs=firmware, event_log=log, boot_policy=policy)
    assert codes(verdict) == ["boot.no-reference"]


def test_an_ima_log_that_the_quote_does_not_cover_proves_nothing(forger: Forger) -> None:
    pcrs = {pcr: PCRS[pcr] for pcr in range(10)}
    verdict = forged(forger, forger.attest(pcrs=pcrs), pcrs=pcrs, ima_log=GOOD.read("ima.bin"))
    assert codes(verdict) == ["ima.not-quoted"]


@pytest.mark.parametrize("padded", [False, True], ids=["sha256", "sha1 padded"])
def test_pcr10_is_found_at_the_line_of_the_quote(forger: Forger, padded: bool) -> None:
    boot = {pcr: GOOD.pcrs[pcr] for pcr in sorted(GOOD.wanted - {10})}
    log = Log(None if padded else boot)
    if padded:  # a kernel before 5.8 makes the aggregate of the SHA-1 bank, which the quote does not cover
        log.file("boot_aggregate", b"a" * 20, algorithm="sha1")
    for number in range(40):
        log.file(f"/usr/bin/{number}", hashlib.sha256(bytes([number])).digest())
    policy = ImaPolicy(unknown_files="ignore", boot_aggregate="optional") if padded else None
    for line in (1, 17, 41):
        pcrs = boot | {10: (log.padded if padded else log.values)[line]}
        verdict = forged(
            forger,
            forger.attest(pcrs=pcrs),
            pcrs=None,
            event_log=GOOD.read("eventlog.bin"),
            ima_log=b"".join(log.lines),
            ima_policy=policy,
        )
        assert verdict.verified, verdict.findings
        assert verdict.claims["ima"]["lines_proved"] == line  # type: ignore[index]
        assert codes(verdict) == (["ima.sha1-padded"] if padded else [])


def test_a_policy_without_its_log_is_not_kept() -> None:
    assert codes(verify(given(GOOD, ima_log=None, ima_policy=ImaPolicy()))) == ["ima.log-missing"]
    pinned = {str(pcr): [value.hex()] for pcr, value in GOOD.pcrs.items() if pcr != 10}
    policy = BootPolicy(reference="pinned", pinned=pinned)
    assert verify(given(GOOD, boot_policy=policy)).verified
    assert codes(verify(given(GOOD, boot_policy=policy, event_log=None))) == ["boot.event-log-missing"]


def test_a_policy_is_held_against_the_boot() -> None:
    other = Case("cmdline-changed")
    pinned = {str(pcr): [value.hex()] for pcr, value in GOOD.pcrs.items() if pcr != 10}
    verdict = verify(given(other, boot_policy=BootPolicy(reference="pinned", pinned=pinned)))
    assert {(f.code, f.pcr) for f in verdict.findings} == {("boot.pcr", 8), ("boot.pcr", 9)}
    secure = BootPolicy(secure_boot="required")
    assert set(codes(verify(given(GOOD, boot_policy=secure)))) == {"boot.secure-boot", "boot.not-compared"}
    verdict = verify(given(Case("secureboot-on"), boot_policy=secure))
    assert verdict.verified
    assert codes(verdict) == ["boot.not-compared"]
    assert codes(verify(given(GOOD, boot_policy=BootPolicy(pcrs=[])))) == ["boot.policy-empty"]


def test_a_policy_that_only_compares_with_the_accepted_boot_cannot_be_kept_here() -> None:
    assert codes(verify(given(GOOD, boot_policy=BootPolicy()))) == ["boot.no-reference"]


@pytest.mark.parametrize("field", ["attest", "signature"])
def test_q07_every_truncation_and_every_flipped_byte_is_refused(field: str) -> None:
    whole = {"attest": GOOD.read("quote.attest"), "signature": GOOD.read("quote.sig")}[field]
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]
        for broken in (whole[:at], flipped):
            verdict = verify(given(GOOD, event_log=None, ima_log=None, **{field: broken}))
            assert not verdict.verified
            assert all(code.startswith("quote.") for code in codes(verdict))


@pytest.mark.parametrize("shown", [True, False], ids=["values shown", "values from the logs"])
def test_l10_a_firmware_log_cut_anywhere_is_refused(shown: bool) -> None:
    whole = GOOD.read("eventlog.bin")
    for end in range(0, len(whole), 7 if shown else 13):
        verdict = verify(given(GOOD, event_log=whole[:end], ima_log=None)) if shown else replayed(whole[:end])
        assert not verdict.verified, end


def replayed(log: bytes) -> Verdict:
    boot = {pcr: GOOD.pcrs[pcr] for pcr in sorted(GOOD.wanted - {10})}
    return forged(FORGER, FORGER.attest(pcrs=boot), pcrs=None, event_log=log)


def test_m01_every_truncation_of_the_ima_log_is_refused() -> None:
    boot = {pcr: GOOD.pcrs[pcr] for pcr in sorted(GOOD.wanted - {10})}
    log = Log(boot)
    for number in range(8):
        log.file(f"/usr/bin/{number}", hashlib.sha256(bytes([number])).digest())
    whole = b"".join(log.lines)
    pcrs = boot | {10: log.values[-1]}
    attest = FORGER.attest(pcrs=pcrs)
    for end in range(len(whole)):
        verdict = forged(FORGER, attest, pcrs=pcrs, ima_log=whole[:end])
        assert not verdict.verified, end
        assert all(code.startswith("ima.") for code in codes(verdict))
    assert forged(FORGER, attest, pcrs=pcrs, ima_log=whole).verified


def test_m02_lines_behind_the_quote_are_counted_and_not_proved() -> None:
    more = Log(None).file("/tmp/evil", b"e" * 32).lines[0]
    verdict = verify(given(GOOD, ima_log=GOOD.read("ima.bin") + more))
    assert verdict.verified
    assert verdict.claims["ima"]["bytes_not_proved"] == len(more)  # type: ignore[index]


def test_numbers_are_written_as_people_do() -> None:
    assert numbers([14, 0, 1, 2, 9]) == "0-2, 9, 14"
    assert numbers([]) == ""


@pytest.mark.parametrize(
    "ak", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\n", GOOD.read("ak.tpm2b")[:-1], bytes(20_000)]
)
def test_what_is_no_key_is_told_apart_from_evidence(ak: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        read_key(ak)
    assert caught.value.code == "ak.unreadable"


def test_the_key_must_be_one_that_a_node_could_enrol() -> None:
    for private in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 1024), rsa.generate_private_key(3, 2048)):  # fmt: skip
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(Rejected, match=r"ak\.unreadable"):
            read_key(pem)
    with pytest.raises(Rejected, match=r"ak\.unreadable.*TPM2B_PUBLIC"):
        read_key(GOOD.read("ak.pem"), GOOD.read("ek.tpm2b"))
    with pytest.raises(Rejected, match=r"ek\.unreadable"):
        read_key(GOOD.read("ak.tpm2b"), GOOD.read("ak.tpm2b"))


def test_m09_time_grows_with_the_size_of_the_logs_and_no_faster() -> None:
    boot = {pcr: GOOD.pcrs[pcr] for pcr in sorted(GOOD.wanted - {10})}
    log = Log(boot, template="ima")
    log.file("f", b"d" * 20)
    tiny = log.lines[-1]

    def seconds(count: int) -> float:
        raw = log.lines[0] + tiny * count
        begun = time.process_time()
        verdict = verify(given(GOOD, ima_log=raw))
        assert "ima.mismatch" in codes(verdict) or "ima.boot-aggregate" in codes(verdict)
        return time.process_time() - begun

    small = min(seconds(20_000) for _ in range(3))
    large = min(seconds(80_000) for _ in range(2))
    assert large < 4 * small * 2.5
