"""Escrow without a network: what opens a key, and everything that does not."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from contract.errors import Rejected
from contract.escrow import answer, ask, check_sealed, opened_share, seal, unseal
from contract.messages import MAX_KEY_BYTES, KeyWanted, SealedKey
from tests.parts.softtpm import SoftTpm, new_scalar

KEY = b"the key of a disk"


class Held(NamedTuple):
    """A key in escrow and the TPM that it is sealed to."""

    tpm: SoftTpm
    sealed: SealedKey
    share: bytes

    @property
    def seed(self) -> bytes:
        """What the TPM brings to light."""
        return self.tpm.activate(self.sealed.credential_blob, self.sealed.encrypted_secret)


@pytest.fixture
def held() -> Held:
    tpm = SoftTpm(new_scalar(), new_scalar())
    sealed, share = seal(KEY, node="press-1", name="disk", ek_public=tpm.ek_public, ak_public=tpm.ak_public)
    return Held(tpm, sealed, share)


def refused(code: str, call: object, *args: object, **named: object) -> None:
    """The call is refused with this code."""
    with pytest.raises(Rejected) as caught:
        call(*args, **named)  # type: ignore[operator]
    assert caught.value.code == code


def test_both_halves_open_the_key(held: Held) -> None:
    assert unseal(held.sealed, seed=held.seed, share=held.share, node="press-1", name="disk") == KEY
    assert KEY not in msgspec.msgpack.encode(held.sealed) + held.share


@pytest.mark.parametrize("without", ["seed", "share", "node", "name", "ciphertext"])
def test_s01_s02_s07_nothing_opens_it_without_any_of_them(held: Held, without: str) -> None:
    given: dict[str, object] = {"seed": held.seed, "share": held.share, "node": "press-1", "name": "disk"}
    sealed = held.sealed
    if without == "ciphertext":
        sealed = msgspec.structs.replace(
            sealed, ciphertext=sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1])
        )
    else:
        given[without] = bytes(32) if without in {"seed", "share"} else "other"
    refused("escrow.seal", unseal, sealed, **given)


def test_s02_another_tpm_cannot_activate_it(held: Held) -> None:
    with pytest.raises(ValueError, match="another TPM"):
        SoftTpm(new_scalar(), new_scalar()).activate(
            held.sealed.credential_blob, held.sealed.encrypted_secret
        )


def test_s05_the_share_reaches_the_one_who_asked_and_nobody_else(held: Held) -> None:
    wanted, private = ask("disk")
    released = answer(held.sealed, held.share, wanted, node="press-1")
    assert opened_share(released, wanted, private, node="press-1") == held.share
    assert held.share not in msgspec.msgpack.encode(released)
    again, later = ask("disk")
    refused("escrow.share", opened_share, released, again, later, node="press-1")
    refused("escrow.share", opened_share, released, wanted, X25519PrivateKey.generate(), node="press-1")
    refused("escrow.share", opened_share, released, wanted, private, node="press-2")


@pytest.mark.parametrize("field", ["share", "ephemeral", "sealed"])
def test_s05_an_answer_that_was_changed_on_its_way_does_not_open(held: Held, field: str) -> None:
    wanted, private = ask("disk")
    released = answer(held.sealed, held.share, wanted, node="press-1")
    other: object = bytes(32) if field == "ephemeral" else b"x" * 48
    if field == "sealed":
        other = msgspec.structs.replace(held.sealed, ciphertext=b"x" * 40)
    changed = msgspec.structs.replace(released, **{field: other})
    refused("escrow.share", opened_share, changed, wanted, private, node="press-1")


def test_two_answers_to_one_request_have_nothing_in_common(held: Held) -> None:
    wanted, _ = ask("disk")
    one, two = (answer(held.sealed, held.share, wanted, node="press-1") for _ in range(2))
    assert one.ephemeral != two.ephemeral and one.share != two.share


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_s05_a_request_whose_key_makes_no_secret_is_refused(held: Held, point: bytes) -> None:
    refused(
        "escrow.ephemeral",
        answer,
        held.sealed,
        held.share,
        KeyWanted(name="disk", ephemeral=point),
        node="press-1",
    )


def test_sizes_are_bounded(held: Held) -> None:
    where = {
        "node": "press-1",
        "name": "disk",
        "ek_public": held.tpm.ek_public,
        "ak_public": held.tpm.ak_public,
    }
    for key in (b"", b"x" * (MAX_KEY_BYTES + 1)):
        refused("escrow.size", seal, key, **where)
    sealed, share = seal(b"x" * MAX_KEY_BYTES, **where)  # type: ignore[arg-type]
    check_sealed(sealed, share)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sealed), type=SealedKey) == sealed
    refused("escrow.size", check_sealed, sealed, b"")
    refused("escrow.size", check_sealed, msgspec.structs.replace(sealed, ciphertext=bytes(16)), share)
    refused("ek.attributes", seal, b"x", **{**where, "ek_public": held.tpm.ak_public})
    refused("ak.attributes", seal, b"x", **{**where, "ak_public": held.tpm.ek_public})
