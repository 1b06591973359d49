"""ID tokens of OpenID Connect: what must hold before one is believed. Pure: keys, nonce and time are given.

    1. size and form: three parts, a header of a known shape without critical extensions (RFC 7515, clause 4.1.11)
    2. the algorithm is one that the owner allows; never `none`, never one with a shared secret (RFC 8725, clause 3.1)
    3. the key is one that the issuer publishes, named by `kid`, of the kind that the algorithm takes, and public
    4. the signature
    5. issuer, exactly (OpenID Connect Core 1.0, clause 3.1.3.7, 2)
    6. audience: us; of several, we are the authorised party (3 to 5)
    7. time: not over, not of the future, and not so old that it was kept for later (9, 10)
    8. a nonce is there; that it is ours and unused is for the caller to say, in the transaction that lets in (11)
    9. the claims that name the person and the groups have the shape that is wanted

Relies on PyJWT for the signature alone; claims and times are judged here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from msgspec import Struct

from contract.errors import Rejected

Algorithm = Literal["RS256", "PS256", "ES256", "EdDSA"]
MAX_TOKEN_CHARS: Final = 16 * 1024
MAX_KEYS: Final = 64
MAX_AGE_S: Final = 600.0
SKEW_S: Final = 60.0
MAX_GROUPS: Final = 1000
MAX_NAME_CHARS: Final = 120
MIN_RSA_BITS: Final = 2048
_KINDS: Final[Mapping[str, tuple[str, str | None]]] = {
    "RS256": ("RSA", None),
    "PS256": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
}
_NAME: Final = re.compile(r"[^\x00-\x20\x7f-\xa0\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class Header(Struct, frozen=True):
    """Of a token. What else stands in it decides nothing, but for `crit`, which would."""

    alg: str
    kid: str = ""
    crit: list[str] | None = None


class Jwk(Struct, frozen=True, omit_defaults=True):
    """A published key, as far as it is looked at (RFC 7517)."""

    kty: str
    kid: str = ""
    use: str = "sig"
    alg: str = ""
    crv: str = ""
    n: str = ""
    e: str = ""
    x: str = ""
    y: str = ""
    d: str = ""


class Jwks(Struct, frozen=True):
    """A set of keys; those that are not of a known shape are left out."""

    keys: list[msgspec.Raw]


class Claims(Struct, frozen=True):
    """What every ID token must say."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: float
    iat: float
    nonce: str
    azp: str | None = None


class Rule(Struct, frozen=True, kw_only=True):
    """What the owner has said of the issuer."""

    issuer: str
    client_id: str
    algorithms: tuple[Algorithm, ...]
    name_claim: str
    groups_claim: str


class Vouched(Struct, frozen=True, kw_only=True):
    """Whom the issuer vouches for. Made by `verified` alone."""

    name: str
    groups: tuple[str, ...]
    nonce: str


class KeyUnknown(Exception):
    """The token names a key that is not among those that are known: the issuer may have published it since."""


def parse_keys(untrusted: bytes) -> list[Jwk]:
    """Return the keys of a published set. Raises Rejected `oidc.keys`."""
    try:
        raw = msgspec.json.decode(untrusted, type=Jwks).keys
    except msgspec.DecodeError as error:
        raise Rejected("oidc.keys", f"the issuer publishes no key set: {error}") from None
    if len(raw) > MAX_KEYS:
        raise Rejected("oidc.keys", f"{len(raw)} keys, at most {MAX_KEYS}")
    found = []
    for one in raw:
        try:
            found.append(msgspec.json.decode(one, type=Jwk))
        except msgspec.DecodeError:
            continue  # of a kind that is not known here
    return found


def verified(untrusted: str, keys: Sequence[Jwk], rule: Rule, *, now: float) -> Vouched:
    """Return whom a token vouches for. Raises Rejected `oidc.*`, and KeyUnknown where its key is not among `keys`."""
    header = _header(untrusted)  # 1
    if header.alg not in rule.algorithms or header.alg not in get_args(Algorithm):  # 2
        raise Rejected("oidc.algorithm", f"{header.alg[:16]!r}: wanted one of {', '.join(rule.algorithms)}")
    content = _signed(untrusted, _key(header, keys), header.alg)  # 3, 4
    try:
        claims = msgspec.json.decode(content, type=Claims)
        others = msgspec.json.decode(content, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise Rejected("oidc.claims", str(error)) from None
    if claims.iss != rule.issuer:  # 5
        raise Rejected("oidc.issuer", f"wanted {rule.issuer}")
    audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud  # 6
    if rule.client_id not in audience:
        raise Rejected("oidc.audience", f"it is not for {rule.client_id}")
    if (len(audience) > 1 or claims.azp is not None) and claims.azp != rule.client_id:
        raise Rejected("oidc.audience", f"it was not given to {rule.client_id}")
    if not claims.exp > now - SKEW_S:  # 7
        raise Rejected("oidc.expired", "log in again")
    if not -SKEW_S <= now - claims.iat <= MAX_AGE_S:
        raise Rejected("oidc.time", "issued too long ago, or in the future; are the clocks right?")
    if not claims.nonce:  # 8
        raise Rejected("oidc.nonce", "it answers no question of ours")
    return Vouched(name=_name(others, rule), groups=_groups(others, rule), nonce=claims.nonce)  # 9


def _header(untrusted: str) -> Header:
    if len(untrusted) > MAX_TOKEN_CHARS or untrusted.count(".") != 2 or not untrusted.isascii():
        raise Rejected("oidc.token", f"wanted three parts of base64url, at most {MAX_TOKEN_CHARS} characters")
    try:
        raw = jwt.utils.base64url_decode(untrusted.partition(".")[0])
        header = msgspec.json.decode(raw, type=Header)
    except (ValueError, msgspec.DecodeError):
        raise Rejected("oidc.token", "its header is none") from None
    if header.crit is not None:
        raise Rejected("oidc.token", "its header demands an extension that is not known here")
    return header


def _key(header: Header, keys: Sequence[Jwk]) -> Jwk:
    kty, crv = _KINDS[header.alg]
    fitting = [
        key
        for key in keys
        if key.kty == kty
        and crv in (None, key.crv)
        and key.use == "sig"
        and key.alg in ("", header.alg)
        and not key.d
        and key.kid == header.kid
    ]
    if not fitting:
        raise KeyUnknown
    if len(fitting) > 1:
        raise Rejected("oidc.key", "more than one key of the issuer has this name")
    return fitting[0]


def _signed(untrusted: str, key: Jwk, algorithm: str) -> bytes:
    """Return what the key has signed."""
    try:
        public = jwt.PyJWK.from_dict(msgspec.to_builtins(key), algorithm=algorithm).key
        if isinstance(public, RSAPublicKey) and public.key_size < MIN_RSA_BITS:
            raise Rejected("oidc.key", f"an RSA key of {public.key_size} bits, at least {MIN_RSA_BITS}")
        content = jwt.PyJWS().decode(untrusted, public, algorithms=[algorithm])
    except jwt.InvalidSignatureError:
        raise Rejected("oidc.signature", "not signed by this key of the issuer") from None
    except (jwt.PyJWTError, ValueError) as error:
        raise Rejected("oidc.token", type(error).__name__) from None
    if not isinstance(content, bytes):
        raise Rejected("oidc.token", "its content is none")
    return content


def _name(claims: Mapping[str, object], rule: Rule) -> str:
    value = claims.get(rule.name_claim)
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS or _NAME.fullmatch(value) is None:
        raise Rejected(
            "oidc.name", f"claim {rule.name_claim!r}: wanted a name of at most {MAX_NAME_CHARS} characters"
        )
    return value


def _groups(claims: Mapping[str, object], rule: Rule) -> tuple[str, ...]:
    value = claims.get(rule.groups_claim, [])
    if not isinstance(value, list) or len(value) > MAX_GROUPS or not all(isinstance(g, str) for g in value):
        raise Rejected("oidc.groups", f"claim {rule.groups_claim!r}: wanted a list of names")
    return tuple(str(group) for group in value)
