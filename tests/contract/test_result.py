"""Results: what findings come to, and who can be made to believe a token."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from contract.errors import Rejected
from contract.messages import Finding, Tier
from contract.result import AREAS, Facts, Result, Weighed, areas_of, result_of, status, tiers, vector
from contract.resultkey import ResultKey, load_result_key, verify_result

T0 = 1_700_000_000.0


def facts(*found: tuple[str, Tier], **changes: object) -> Facts:
    """Facts of evidence that verified, with these findings."""
    values: dict[str, object] = {
        "node": "press-1",
        "site": "factory",
        "kind": "boot",
        "at": T0,
        "tier": "affirming",
        "verified": True,
        "findings": [Weighed(finding=Finding(code=code, detail="x"), tier=tier) for code, tier in found],
        "judged": ["firmware", "boot", "configuration"],
        "ek_trust": "certificate",
        "ek_sha256": "ab" * 32,
        "ak_name": "000b" + "cd" * 32,
        "nonce": b"n" * 32,
        **{f"{what}_sha256": bytes(32) for what in ("quote", "signature", "body", "policy", "certificate")},
        **changes,
    }
    return Facts(**values)  # type: ignore[arg-type]


def result(given: Facts, **changes: object) -> Result:
    """A result that holds for a minute."""
    values = {"issuer": "here", "build": "x 1", "issued_at": T0 + 5, "until": T0 + 60, "still_holds": True}
    return result_of(given, **{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def key() -> ResultKey:
    return ResultKey(ec.generate_private_key(ec.SECP256R1()))


def refused(code: str, token: str | bytes, key: ResultKey, now: float | None = None) -> None:
    """The token is refused with this code."""
    with pytest.raises(Rejected) as caught:
        verify_result(
            token if isinstance(token, bytes) else token.encode(), load_result_key(key.pem), now=now
        )
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("code", "pcr", "areas"),
    [
        ("quote.signature", None, ("identity",)),
        ("quote.firmware-version", None, ("firmware",)),
        ("boot.pcr", 0, ("firmware",)),
        ("boot.pcr", 7, ("boot",)),
        ("boot.observe.boot.pcr", 2, ("firmware",)),
        ("boot.firmware-version", None, ("firmware",)),
        ("eventlog.replay", 4, ("boot",)),
        ("eventlog.replay", 1, ("firmware",)),
        ("ima.not-allowed", 10, ("runtime",)),
        ("ima.observe.ima.violation", None, ("runtime",)),
        ("drift.sysctl", None, ("configuration",)),
        ("drift.boot", None, ("boot",)),
        ("posture.differs", None, ("configuration",)),
        ("something.new", None, AREAS),
    ],
)
def test_r10_each_finding_has_its_area_and_a_stranger_counts_everywhere(
    code: str, pcr: int | None, areas: tuple[str, ...]
) -> None:
    assert areas_of(Finding(code=code, detail="", pcr=pcr)) == areas


def test_what_was_not_judged_is_none_and_what_was_is_affirming() -> None:
    assert tiers(facts()) == {
        "identity": "affirming",
        "firmware": "affirming",
        "boot": "affirming",
        "runtime": "none",
        "configuration": "affirming",
    }
    assert vector(facts())["executables"] == 3
    assert vector(facts(judged=["firmware", "boot", "runtime"]))["executables"] == 2
    assert vector(facts())["runtime-opaque"] == 0


@pytest.mark.parametrize(
    ("found", "claim", "value"),
    [
        (("boot.pcr", "contraindicated"), "executables", 96),
        (("ima.unknown-file", "contraindicated"), "executables", 96),
        (("ima.package-updated", "warning"), "executables", 33),
        (("quote.firmware-version", "warning"), "hardware", 32),
        (("drift.sysctl", "warning"), "configuration", -33),
        (("drift.files", "warning"), "file-system", 32),
        (("quote.signer", "contraindicated"), "instance-identity", 96),
    ],
)
def test_the_vector_follows_from_the_findings(found: tuple[str, Tier], claim: str, value: int) -> None:
    given = facts(found, tier=found[1])
    assert vector(given)[claim] == value
    assert status(given) == found[1]


def test_r10_an_endorsement_key_that_nothing_proves_never_affirms() -> None:
    given = facts(ek_trust="unverified")
    assert (tiers(given)["identity"], status(given), vector(given)["instance-identity"]) == (
        "warning",
        "warning",
        -33,
    )


def test_r07_refused_evidence_proves_nothing_and_a_malfunction_says_so() -> None:
    given = facts(("quote.pcr-digest", "contraindicated"), verified=False, tier="contraindicated")
    assert set(vector(given).values()) == {99, 0}
    assert tiers(given) == dict.fromkeys(AREAS, "none") | {"identity": "contraindicated"}
    own = facts(("verification.failed", "contraindicated"), verified=False, tier="contraindicated")
    assert set(vector(own).values()) == {-1, 0}


def test_a_token_is_read_back_by_whoever_has_the_key(key: ResultKey) -> None:
    given = facts(("boot.pcr", "contraindicated"), tier="contraindicated")
    token = key.sign(result(given, nonce=b"12345678"))
    found = verify_result(token.encode(), load_result_key(key.pem), now=T0 + 30)
    assert (found.ear_status, found.sub, found.exp) == ("contraindicated", "press-1", int(T0 + 60))
    assert found.eat_nonce == "MTIzNDU2Nzg"
    assert found.appraisal.appraised.findings == [
        {"code": "boot.pcr", "detail": "x", "tier": "contraindicated"}
    ]
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert claims["ear_verifier_id"] == {"developer": "Ringfence", "build": "x 1"}
    assert all(isinstance(claims[name], int) for name in ("iat", "nbf", "exp"))


def test_openssl_agrees_on_the_signature(key: ResultKey, tmp_path: Path) -> None:
    signed, _, signature = key.sign(result(facts())).rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    for name, content in (("key.pem", key.pem), ("sig", der), ("signed", signed.encode())):
        (tmp_path / name).write_bytes(content)
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "sig", "signed"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_r01_a_changed_token_or_one_of_another_key_is_refused(key: ResultKey) -> None:
    head, body, signature = key.sign(result(facts())).split(".")
    other = ResultKey(ec.generate_private_key(ec.SECP256R1()))
    refused("result.signature", f"{head}.{body}.{signature}", other)
    changed = (
        base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b"press-1", b"press-2"))
        .rstrip(b"=")
        .decode()
    )
    refused("result.signature", f"{head}.{changed}.{signature}", key)
    refused("result.malformed", f"{head}.{body}", key)
    refused("result.malformed", b"\xff\xfe.x.y", key)
    refused("result.malformed", b"x" * (1024 * 1024), key)


def test_r02_no_other_algorithm_is_taken(key: ResultKey) -> None:
    payload = msgspec.json.encode(result(facts()))
    refused("result.algorithm", jwt.PyJWS().encode(payload, None, algorithm="none"), key)
    forged = jwt.PyJWS().encode(payload, "the public key is no secret, 32 bytes", algorithm="HS256")
    refused("result.algorithm", forged, key)
    refused(
        "result.algorithm",
        jwt.PyJWS().encode(payload, ed25519.Ed25519PrivateKey.generate(), algorithm="EdDSA"),
        key,
    )


def test_r03_claims_that_no_verifier_of_ours_makes_are_refused(key: ResultKey) -> None:
    good = msgspec.json.decode(msgspec.json.encode(result(facts())))

    def signed(**changes: object) -> bytes:
        token = jwt.PyJWS().encode(msgspec.json.encode({**good, **changes}), key._private, algorithm="ES256")
        return token.encode()

    refused("result.malformed", signed(exp=1.5), key)
    refused("result.malformed", signed(eat_profile="tag:example"), key)
    refused("result.subject", signed(sub="press-2"), key)
    worse = json.loads(json.dumps(good["submods"]))
    worse["press-1"]["urn:ringfence:appraisal:1"]["tiers"]["boot"] = "contraindicated"
    refused("result.status", signed(submods=worse), key)


def test_r04_a_result_holds_from_when_to_when_it_says(key: ResultKey) -> None:
    token = key.sign(result(facts()))
    refused("result.early", token, key, now=T0 - 1)
    refused("result.expired", token, key, now=T0 + 60)
    assert verify_result(token.encode(), load_result_key(key.pem), now=None).sub == "press-1"


def test_the_key_is_named_by_its_thumbprint_as_others_compute_it(key: ResultKey) -> None:
    assert jwt.get_unverified_header(key.sign(result(facts())))["kid"] == key.id
    jwk = jwt.PyJWK({k: v for k, v in key.jwk.items() if k in ("kty", "crv", "x", "y")})
    assert jwt.algorithms.ECAlgorithm.to_jwk(jwk.key, as_dict=True)["x"] == key.jwk["x"]
    for pem in (b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(Rejected) as caught:
            load_result_key(pem)
        assert caught.value.code == "result.key"
