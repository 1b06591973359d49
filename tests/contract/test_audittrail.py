"""The audit log offline: every way to tamper with it shows, with its code."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from contract.audittrail import (
    NO_LINE,
    Entry,
    Proof,
    decode_entry,
    encode_entry,
    verify_proof,
    verify_trail,
)
from contract.checkpoint import Checkpoint, log_key, parse_log_key, sign_checkpoint, verify_checkpoint
from contract.errors import Rejected
from contract.merkle import inclusion_proof, leaf_hash, root_of

ORIGIN = "ringfence-audit"
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = log_key(ORIGIN, PRIVATE.public_key())
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
T0 = 1_800_000_000.25


def written(count: int, *, reason: str = "because") -> list[bytes]:
    lines: list[bytes] = []
    previous = NO_LINE
    for number in range(1, count + 1):
        entry = Entry(
            number=number, at=T0 + number, actor="ann", act="isolated", target=f"node n{number}",
            reason=reason, previous=previous,
        )  # fmt: skip
        lines.append(encode_entry(entry))
        previous = leaf_hash(lines[-1]).hex()
    return lines


def signed(lines: list[bytes], size: int | None = None, private: Ed25519PrivateKey = PRIVATE) -> bytes:
    size = len(lines) if size is None else size
    root = root_of([leaf_hash(line) for line in lines[:size]])
    return sign_checkpoint(Checkpoint(origin=ORIGIN, size=size, root=root, at=int(T0)), private).encode()


def test_a_whole_log_verifies_and_says_what_is_covered() -> None:
    lines = written(9)
    found = verify_trail(lines, KEY, [signed(lines, 4), signed(lines, 7)])
    assert (found.entries, found.covered, found.checkpoints) == (9, 7, 2)
    assert (found.first_at, found.last_at) == (T0 + 1, T0 + 9)


def test_an_empty_log_verifies() -> None:
    assert verify_trail([], KEY, [signed([])]).entries == 0


def edited(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3].replace(b"because", b"by mistake"), *lines[4:]]


TAMPERED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "edited": (edited, "audit.chain"),
    "the last one edited": (lambda lines: [*lines[:-1], lines[-1].replace(b"ann", b"bob")], "audit.root"),
    "cut in the middle": (lambda lines: [*lines[:3], *lines[4:]], "audit.number"),
    "cut at the end": (lambda lines: lines[:-1], "audit.cut"),
    "cut at the beginning": (lambda lines: lines[1:], "audit.number"),
    "re-ordered": (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "audit.number"),
    "repeated": (lambda lines: [*lines[:3], lines[2], *lines[3:]], "audit.number"),
    "another log of the same length": (lambda lines: written(len(lines), reason="other"), "audit.root"),
    "written with spaces": (lambda lines: [lines[0].replace(b",", b", "), *lines[1:]], "audit.malformed"),
    "a field more": (lambda lines: [lines[0].replace(b"}", b',"x":1}'), *lines[1:]], "audit.malformed"),
    "not JSON": (lambda lines: [b"\xff", *lines[1:]], "audit.malformed"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_c20_a_log_that_was_tampered_with_is_shown_for_what_it_is(how: str) -> None:
    tamper, code = TAMPERED[how]
    lines = written(8)
    with pytest.raises(Rejected) as caught:
        verify_trail(tamper(lines), KEY, [signed(lines)])
    assert caught.value.code == code


def test_c20_a_log_written_anew_from_the_beginning_does_not_fit_a_checkpoint_that_was_kept() -> None:
    lines, forged = written(8), written(8, reason="nothing happened")
    with pytest.raises(Rejected, match=r"audit\.root"):
        verify_trail(forged, KEY, [signed(forged), signed(lines, 5)])


def test_c20_without_a_checkpoint_nothing_is_verified() -> None:
    with pytest.raises(Rejected, match=r"audit\.no-checkpoint"):
        verify_trail(written(3), KEY, [])


def test_c20_a_checkpoint_by_another_key_is_none() -> None:
    lines = written(3)
    with pytest.raises(Rejected, match=r"checkpoint\.signature"):
        verify_trail(lines, KEY, [signed(lines, private=OTHER)])


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_one_act_is_proved_to_a_third_party(size: int) -> None:
    lines = written(size)
    leaves = [leaf_hash(line) for line in lines]
    for number in range(1, size + 1):
        path = inclusion_proof(number - 1, size, lambda a, b: root_of(leaves[a:b]))
        proof = Proof(
            line=lines[number - 1].decode(), number=number,
            path=[base64.b64encode(each).decode() for each in path], checkpoint=signed(lines).decode(),
        )  # fmt: skip
        entry, checkpoint = verify_proof(msgspec.json.encode(proof), KEY)
        assert (entry.number, checkpoint.size) == (number, size)
        other = written(size, reason="another")[number - 1].decode()
        with pytest.raises(Rejected, match=r"audit\.root"):
            verify_proof(msgspec.json.encode(msgspec.structs.replace(proof, line=other)), KEY)
        with pytest.raises(Rejected, match=r"audit\.(number|root)"):
            verify_proof(msgspec.json.encode(msgspec.structs.replace(proof, number=number + 1)), KEY)


def test_the_signature_is_openssl_s_too(tmp_path: Path) -> None:
    note = signed(written(3)).decode()
    body, _, line = note.rpartition("\n\n")
    (tmp_path / "body").write_text(body + "\n")
    (tmp_path / "sig").write_bytes(base64.b64decode(line.split(" ")[2])[4:])
    (tmp_path / "key").write_bytes(
        PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    told = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "key", "-rawin",
         "-in", tmp_path / "body", "-sigfile", tmp_path / "sig"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_key_goes_by_name_hash_and_key() -> None:
    text = KEY.text()
    assert parse_log_key(text + "\n") == KEY
    assert text.startswith(f"{ORIGIN}+")
    digest = hashlib.sha256(ORIGIN.encode() + b"\n\x01" + KEY.public).digest()
    assert text.split("+")[1] == digest[:4].hex()


@pytest.mark.parametrize(
    "bent", ["", "x", "a+b+c", KEY.text()[:-4], KEY.text().replace("+", "+0", 1), "a b" + KEY.text()]
)
def test_a_key_that_was_mistyped_is_refused(bent: str) -> None:
    with pytest.raises(Rejected, match=r"checkpoint\.key"):
        parse_log_key(bent)


NOTE = signed(written(3))


@given(st.integers(0, len(NOTE) - 1), st.integers(1, 255))
def test_c20_a_bent_checkpoint_is_refused_whatever_was_bent(position: int, flip: int) -> None:
    bent = bytearray(NOTE)
    bent[position] ^= flip
    with pytest.raises(Rejected, match=r"checkpoint\."):
        verify_checkpoint(bytes(bent), KEY)


@pytest.mark.parametrize("tail", [b"\n", b" ", NOTE, b"x\n", "— other AAAA\n".encode()[:-1]])
def test_c20_nothing_may_follow_a_checkpoint(tail: bytes) -> None:
    with pytest.raises(Rejected, match=r"checkpoint\."):
        verify_checkpoint(NOTE + tail, KEY)


def test_a_witness_may_sign_beside_us() -> None:
    witness = base64.b64encode(b"\0\0\0\1" + bytes(64)).decode()
    assert verify_checkpoint(NOTE + f"— witness.example {witness}\n".encode(), KEY).size == 3


@given(st.binary(max_size=300))
def test_no_bytes_make_a_parser_raise_anything_but_rejected(untrusted: bytes) -> None:
    for parse in (
        decode_entry,
        lambda b: verify_checkpoint(b, KEY),
        lambda b: verify_proof(b, KEY),
        lambda b: parse_log_key(b.decode("latin-1")),
    ):
        with pytest.raises(Rejected):
            parse(untrusted)
