"""Passwords, one-time codes and waiting: the pure parts, against the documents that define them."""

from __future__ import annotations

import base64
import hmac
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from contract.errors import Rejected
from controller import lockout, passwords, totp

KEY = b"k" * 32
GOOD = "correct horse battery"


def test_a_password_is_known_again_and_another_is_not() -> None:
    kept = passwords.hashed(GOOD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=1$") and kept != passwords.hashed(GOOD)
    assert passwords.matches(GOOD, kept)
    for wrong in ("correct horse batterz", "", GOOD + " ", "x" * 10_000, chr(0xD800) * 12):
        assert not passwords.matches(wrong, kept)
    assert not passwords.matches(GOOD, None)


def test_one_letter_typed_in_two_ways_is_one_letter() -> None:
    assert passwords.matches("cafe\N{COMBINING ACUTE ACCENT} au lait", passwords.hashed("caf\xe9 au lait"))


def test_a_hash_with_other_costs_is_still_known() -> None:
    older = Argon2id(salt=b"s" * 16, length=32, iterations=1, lanes=1, memory_cost=64)
    assert passwords.matches("from long ago", older.derive_phc_encoded(b"from long ago"))
    assert not passwords.matches("from elsewhere", "$argon2id$v=19$m=64,t=1,p=4$c3Nzc3Nzc3Nzc3Nzc3Nzcw$AAAA")


def test_many_are_hashed_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(passwords.hashed, [GOOD] * 8, timeout=60))
        assert all(pool.map(passwords.matches, [GOOD] * 8, kept, timeout=60))


@pytest.mark.alone
def test_nobodys_password_takes_as_long_as_somebodys() -> None:
    def seconds(kept: str | None) -> float:
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            passwords.matches("a guess of somebody", kept)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert 1 / 4 < seconds(None) / seconds(passwords.hashed(GOOD)) < 4


@pytest.mark.parametrize(
    ("password", "code"),
    [("brief", "password.short"), ("x" * 257, "password.long"), ("ann-smith-2024", "password.name")],
)
def test_what_is_no_password(password: str, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        passwords.check_new(password, user="ann-smith")
    assert refused.value.code == code and password not in str(refused.value)


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_codes_are_those_of_rfc_6238_appendix_b(at: int, code: str) -> None:
    """Of its eight digits the last six."""
    assert totp.step_of(b"12345678901234567890", code, at, after=0) == at // 30


def test_c10_a_code_is_good_for_a_step_before_and_after_and_once() -> None:
    secret, now = b"12345678901234567890", 1_700_000_000.0
    step = int(now // 30)
    codes = {shift: _code(secret, now + 30 * shift) for shift in range(-3, 4)}
    accepted = {shift for shift, code in codes.items() if totp.step_of(secret, code, now, after=0)}
    assert accepted == {-1, 0, 1}
    assert totp.step_of(secret, codes[0], now, after=step - 1) == step
    assert totp.step_of(secret, codes[0], now, after=step) is None
    assert totp.step_of(secret, codes[-1], now, after=step) is None
    for wrong in ("", "000000", codes[0][:5], codes[0] + "2", "\N{ARABIC-INDIC DIGIT TWO}" * 6, "-00001"):
        assert totp.step_of(secret, wrong, now, after=0) is None


def _code(secret: bytes, at: float) -> str:
    """Six digits by the algorithm of RFC 4226, clause 5.3, written out."""
    mac = hmac.digest(secret, int(at // 30).to_bytes(8, "big"), "sha1")
    offset = mac[-1] & 0xF
    return f"{(int.from_bytes(mac[offset : offset + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"


def test_an_authenticator_is_given_what_it_takes() -> None:
    secret = totp.new_secret()
    uri = urlsplit(totp.uri(secret, user="ann", issuer="plant"))
    asked = parse_qs(uri.query)
    assert (uri.scheme, uri.netloc, uri.path) == ("otpauth", "totp", "/plant:ann")
    assert base64.b32decode(asked["secret"][0]) == secret == base64.b32decode(totp.shown(secret))
    assert (asked["digits"], asked["period"], asked["issuer"]) == (["6"], ["30"], ["plant"])


def test_c14_a_stored_secret_opens_for_its_user_with_the_controllers_key_alone() -> None:
    secret = totp.new_secret()
    stored = totp.sealed(KEY, "ann", secret)
    assert secret not in stored and totp.opened(KEY, "ann", stored) == secret
    changed = stored[:-1] + bytes([stored[-1] ^ 1])
    for key, user, what in ((b"x" * 32, "ann", stored), (KEY, "bob", stored), (KEY, "ann", changed)):
        with pytest.raises(Rejected, match=r"login\.sealed"):
            totp.opened(key, user, what)


def test_five_tries_are_free_then_waits_double_up_to_an_hour() -> None:
    waits = [lockout.wait_s(n) for n in (0, 4, 5, 6, 7, 10, 11, 10**9)]
    assert waits == [0, 0, 60, 120, 240, 1920, 3600, 3600]
    assert lockout.left_s(5, 100.0, 130.0) == 30.0 and lockout.left_s(5, 100.0, 160.0) == 0.0
    assert lockout.left_s(9, 0.0, lockout.FORGOTTEN_AFTER_S) == 0.0
    assert lockout.left_s(5, 1000.0, 10.0) == 60.0  # the clock went back: it is not forgotten
