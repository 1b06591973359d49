"""No byte string makes the IMA parser or the follower raise, or report anything but findings of its own."""

from __future__ import annotations

import struct
from contextlib import suppress

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contract.errors import Rejected
from contract.ima import ImaState
from contract.imalog import TEMPLATES, fields_of, read_lines, shown
from contract.imapolicy import ImaPolicy
from contract.imarules import ImaRules
from contract.imasig import key_id_of, load_signer, verifies
from contract.messages import PackageChange
from tests.contract.forge import PCRS, Case
from tests.contract.imaforge import Log, judged, sha256
from tests.contract.imavectors import recorded
from tests.contract.test_imapolicy import RSA, pem_of

EDGES = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
GOOD = recorded()
RULES = ImaRules(
    ImaPolicy(signers={"s": pem_of(RSA)}, exclude=["/var/log/", "/run/*/x*"], buffers={".ima": ["*"]})
)
MANY = Log().file("/a", sha256(b"a"), third=b"\3\2\4" + bytes(40)).violation("/b").buffer(".ima", b"k")
SEEDS = [GOOD.raw, MANY.raw, Log(template="ima").file("/a", bytes(20)).raw, Log(template="ima-ngv2").raw]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a good log, cut, spliced, flipped, or with a border number written into it."""
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 4)))
        how = draw(st.sampled_from(["flip", "number", "cut", "splice", "insert"]))
        if how == "flip" and raw:
            raw[at] ^= draw(st.integers(1, 255))
        elif how == "number":
            raw[at : at + 4] = struct.pack("<I", draw(st.sampled_from(EDGES)))
        elif how == "cut":
            del raw[at : at + draw(st.integers(1, 64))]
        elif how == "splice":
            other = draw(st.sampled_from(SEEDS))
            raw[at:] = other[draw(st.integers(0, len(other))) :]
        else:
            raw[at:at] = draw(st.binary(max_size=40))
    return bytes(raw)


@given(st.one_of(st.binary(max_size=400), mutated()), st.booleans())
@example(raw=b"", more=True)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_following_garbage_only_finds(raw: bytes, more: bool) -> None:
    change = PackageChange(name="base", after="2", files={"/a": sha256(b"a")})
    result = judged(RULES, raw, GOOD.value, more=more, changes=[change])
    if result.caught_up:  # then what is proved is what was measured, whatever no hash covers
        assert _data(raw)[: result.state.lines] == _data(GOOD.raw)
    assert result.findings or result.caught_up
    for finding in result.findings:
        assert finding.code.startswith("ima.")
        assert finding.detail.isprintable()
    again = judged(RULES, raw, GOOD.value, more=more, changes=[change])
    assert again == result  # memory changes no answer


def _data(raw: bytes) -> list[bytes]:
    found = []
    with suppress(Rejected):
        for record, _ in read_lines(raw):
            found.append(record.data)
    return found


@given(mutated(), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_what_is_followed_in_two_parts_is_what_is_followed_in_one(raw: bytes, lines: int) -> None:
    offsets = [0]
    with suppress(Rejected):
        offsets += [record.end for record, _ in read_lines(raw)]
    cut = offsets[min(lines, len(offsets) - 1)]
    value = bytes(32)
    with suppress(Rejected):
        for record, _ in read_lines(raw):
            if record.pcr == 10:
                extension = b"\xff" * 32 if not any(record.template_sha1) else sha256(record.data)
                value = sha256(value + extension)
    whole = judged(RULES, raw[: offsets[-1]], value)
    first = judged(RULES, raw[:cut], value, more=True)
    if first.caught_up:
        return
    state = first.pending or first.state
    second = judged(RULES, raw[cut : offsets[-1]], value, state=state)
    assert (second.caught_up, second.findings) == (whole.caught_up, whole.findings)


@given(st.sampled_from([*TEMPLATES, b"", b"d-ng|n-ng"]), st.binary(max_size=300))
@settings(max_examples=600, deadline=None)
def test_fields_of_garbage_are_refused_by_code(template: bytes, data: bytes) -> None:
    with suppress(Rejected):
        fields = fields_of(template, data)
        assert b"\0" not in fields.name
        RULES.judge(fields)


@given(st.binary(max_size=6000))
@settings(max_examples=300, deadline=None)
def test_every_name_can_be_shown(name: bytes) -> None:
    text = shown(name)
    assert text.isprintable()
    assert len(text) <= 160


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_no_garbage_is_a_signature(signature: bytes) -> None:
    key_id_of(signature)
    assert not verifies(load_signer("s", pem_of(RSA)), signature, b"ima", b"sha256", bytes(32))


def test_a_recorded_log_cut_anywhere_and_flipped_anywhere_is_found() -> None:
    case = Case("good-rsa")
    log = case.read("ima.bin")[:6000]
    end = 0
    value = bytes(32)
    with suppress(Rejected):
        for record, _ in read_lines(log):
            value, end = sha256(value + sha256(record.data)), record.end
    rules = ImaRules(ImaPolicy(unknown_files="ignore"))
    assert judged(rules, log[:end], value, pcrs=case.pcrs).caught_up
    for at in range(0, end, 7):
        assert not judged(rules, log[:at], value, pcrs=case.pcrs).caught_up
        flipped = log[:at] + bytes([log[at] ^ 0x41]) + log[at + 1 : end]
        result = judged(rules, flipped, value, pcrs=case.pcrs)
        assert result.findings or not result.caught_up


def test_states_of_the_store_are_strict() -> None:
    assert judged(RULES, b"", GOOD.value, state=ImaState(lines=3, offset=9), pcrs=PCRS).findings
