"""Reference values as CoRIM (draft-ietf-rats-corim): CBOR tag 501 around CoMIDs (tag 506) with reference triples.

Written: one CoMID for each set; the site as group, the hardware class as model, the OS release as version, the stage as
measurement key. What CoRIM has no word for (validity of one set, what it supersedes) stands under one private key, under
a profile of our own. Read: ours, and others' with SHA-256 digests in reference triples, for which the caller says what
theirs leave out. Anything signed (COSE) is refused: who may announce is the controller's to know, not the file's.

Bytes are walked head by head before `cbor2` sees them: bounded in size, depth and number of items, definite lengths,
known tags, so that no decoder for tags that swell is ever reached. Nothing raises but Rejected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Final, get_args

import cbor2
import msgspec
from cbor2 import CBORTag

from contract.errors import Rejected
from contract.references import MAX_IMPORT_BYTES, MAX_SETS, ExpectedStage, ReferenceSet

PROFILE: Final = "urn:ringfence:corim:1"
MAX_DEPTH: Final = 16
MAX_ITEMS: Final = 65536
_CORIM, _COMID, _SIGNED = 501, 506, 502
_TIME, _URI, _BYTES = 1, 32, 560
_TAGS: Final = frozenset({_TIME, _URI, 37, 111, 500, _CORIM, _SIGNED, 505, _COMID, 508, *range(550, 567)})
_SHA256: Final = 1  # IANA Named Information Hash Algorithm Registry
_OURS: Final = -1  # private key of a CoMID: [valid-from, valid-until / null, [* superseded]]
_STAGES: Final = get_args(ExpectedStage)
_ARGUMENT_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}


def encode_corim(sets: Sequence[ReferenceSet]) -> bytes:
    """Return the CoRIM of these sets, the same bytes for the same sets. Raises Rejected `reference.none`."""
    if not sets:
        raise Rejected("reference.none", "no set to write")
    tags = [CBORTag(_COMID, cbor2.dumps(_comid(one), canonical=True)) for one in sets]
    name = sha256(b"".join(tag.value for tag in tags)).hexdigest()[:32]
    corim: dict[int, object] = {0: f"ringfence-{name}", 1: tags, 3: CBORTag(_URI, PROFILE)}
    ends = [one.valid_until for one in sets if one.valid_until is not None]
    if len(ends) == len(sets):
        begin = min(one.valid_from for one in sets)
        corim[4] = {0: CBORTag(_TIME, math.floor(begin)), 1: CBORTag(_TIME, math.ceil(max(ends)))}
    return cbor2.dumps(CBORTag(_CORIM, corim), canonical=True)


def _comid(one: ReferenceSet) -> dict[int, object]:
    environment: dict[int, object] = {2: CBORTag(_BYTES, one.site.encode())}
    if one.hardware_class:
        environment[0] = {2: one.hardware_class}
    measurements: list[dict[int, object]] = []
    for stage, digests in one.values.items():
        value: dict[int, object] = {2: [[_SHA256, bytes.fromhex(digest)] for digest in digests]}
        if one.os_release:
            value[0] = {0: one.os_release}
        if one.note:
            value[11] = one.note
        measurements.append({0: stage, 1: value})
    ours = [one.valid_from, one.valid_until, [bytes.fromhex(digest) for digest in one.supersedes]]
    body: dict[int, object] = {4: {0: [[environment, measurements]]}, _OURS: ours}
    identity = sha256(cbor2.dumps(body, canonical=True)).hexdigest()[:32]
    return {1: {0: f"ringfence-{identity}"}, **body}


def parse_corim(
    untrusted: bytes, *, site: str = "", stage: str = "", valid_from: float | None = None
) -> list[ReferenceSet]:
    """Parse an unsigned CoRIM.

    `site`, `stage` and `valid_from` (seconds since 1970) hold where the file does not say; what it says stands.
    Raises Rejected `corim.too-large`, `corim.malformed`, `corim.signed`, `corim.unsupported`.
    """
    corim = _decoded(untrusted)
    if isinstance(corim, CBORTag) and corim.tag == 500:
        corim = corim.value
    if isinstance(corim, CBORTag) and corim.tag in (18, _SIGNED):
        raise Rejected("corim.signed", "signed by COSE: check the signature, then import what is inside")
    if not isinstance(corim, CBORTag) or corim.tag != _CORIM:
        raise Rejected("corim.malformed", "wanted CBOR tag 501 (corim-map)")
    fields = _map(corim.value, "corim-map")
    ours = _tagged(fields.get(3), _URI) == PROFILE
    begin, end = _validity(fields.get(4), valid_from)
    sets: list[ReferenceSet] = []
    for number, tag in enumerate(_list(fields.get(1), "tags")):
        content = _tagged(tag, _COMID)
        if not isinstance(content, bytes):
            raise Rejected("corim.unsupported", f"tag {number}: wanted a CoMID (CBOR tag 506)")
        comid = _map(_decoded(content), f"CoMID {number}")
        sets += _sets(comid, ours=ours, site=site, stage=stage, span=(begin, end))
        if len(sets) > MAX_SETS:
            raise Rejected("corim.too-large", f"more than {MAX_SETS} sets")
    if not sets:
        raise Rejected("corim.unsupported", "no reference triple in it")
    return sets


def _sets(
    comid: Mapping[object, object],
    *,
    ours: bool,
    site: str,
    stage: str,
    span: tuple[float | None, float | None],
) -> list[ReferenceSet]:
    """Return one set for each reference triple of a CoMID."""
    begin, end = span
    supersedes: list[str] = []
    private = comid.get(_OURS) if ours else None
    if private is not None:
        since, until, gone = _exactly(private, 3, "private part")
        begin, end = _seconds(since), None if until is None else _seconds(until)
        supersedes = [_digest(digest) for digest in _list(gone, "superseded digests", at_least=0)]
    if begin is None:
        raise Rejected("corim.unsupported", "no time from which it holds; name one")
    triples = _map(comid.get(4), "triples").get(0)
    sets = []
    for triple in _list(triples, "reference triples", at_least=0) if triples is not None else ():
        environment, measurements = _exactly(triple, 2, "reference triple")
        named = _map(environment, "environment")
        group = _tagged(named.get(2), _BYTES)
        values: dict[str, list[str]] = {}
        texts = {"os_release": "", "note": ""}
        for measurement in _list(measurements, "measurements"):
            _measurement(_map(measurement, "measurement"), stage, values, texts, ours=ours)
        sets.append(
            _checked(
                {
                    "site": _text(group.decode("utf-8", "replace")) if isinstance(group, bytes) else site,
                    "values": values,
                    "valid_from": begin,
                    "valid_until": end,
                    "hardware_class": _class(named.get(0)),
                    "supersedes": supersedes,
                    **texts,
                }
            )
        )
    return sets


def _measurement(
    measurement: Mapping[object, object],
    stage: str,
    values: dict[str, list[str]],
    texts: dict[str, str],
    *,
    ours: bool,
) -> None:
    """Add one measurement's digests and texts. A version in files of others is that of the thing itself, never of the
    operating system that a node runs with it: it becomes a note."""
    key = measurement.get(0, stage)
    of_stage = key if isinstance(key, str) and key in _STAGES else stage
    if of_stage not in _STAGES:
        raise Rejected("corim.unsupported", f"measurement key {key!r}: name the stage it is of"[:200])
    value = _map(measurement.get(1), "measurement values")
    for entry in _list(value.get(2), "digests"):
        algorithm, digest = _exactly(entry, 2, "digest")
        if algorithm in (_SHA256, "sha-256"):
            values.setdefault(of_stage, []).append(_digest(digest))
    version = value.get(0)
    if version is not None:
        text = _text(_map(version, "version").get(0))
        texts |= {"os_release": text} if ours else {"note": f"version {text}"[:256]}
    if 11 in value:
        texts["note"] = _text(value[11])


def _class(value: object) -> str:
    """Return the class of hardware: our model, or vendor and model of others."""
    if value is None:
        return ""
    of_class = _map(value, "class")
    return " ".join(_text(of_class[key]) for key in (1, 2) if key in of_class)


def _checked(fields: dict[str, object]) -> ReferenceSet:
    try:
        return msgspec.convert(fields, ReferenceSet, strict=True)
    except msgspec.ValidationError as error:
        raise Rejected("corim.malformed", str(error)[:512]) from None


def _validity(value: object, valid_from: float | None) -> tuple[float | None, float | None]:
    if value is None:
        return valid_from, None
    span = _map(value, "rim-validity")
    begin = valid_from if span.get(0) is None else _seconds(_tagged(span.get(0), _TIME))
    return begin, _seconds(_tagged(span.get(1), _TIME))


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**40:
        raise Rejected("corim.malformed", "wanted seconds since 1970")
    return float(value)


def _digest(value: object) -> str:
    if not isinstance(value, bytes) or len(value) != 32:
        raise Rejected("corim.malformed", "wanted a SHA-256 digest of 32 bytes")
    return value.hex()


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise Rejected("corim.malformed", "wanted printable text")
    return value


def _tagged(value: object, tag: int) -> object:
    return value.value if isinstance(value, CBORTag) and value.tag == tag else None


def _map(value: object, what: str) -> Mapping[object, object]:
    if not isinstance(value, dict) or not value:
        raise Rejected("corim.malformed", f"{what}: wanted a map that is not empty")
    return value


def _list(value: object, what: str, *, at_least: int = 1) -> Sequence[object]:
    if not isinstance(value, list) or len(value) < at_least:
        raise Rejected("corim.malformed", f"{what}: wanted a list of at least {at_least}")
    return value


def _exactly(value: object, count: int, what: str) -> Sequence[object]:
    if not isinstance(value, list) or len(value) != count:
        raise Rejected("corim.malformed", f"{what}: wanted a list of exactly {count}")
    return value


def _raw(tag: int) -> Callable[[object, bool], CBORTag]:
    def keep(value: object, immutable: bool) -> CBORTag:
        return CBORTag(tag, value)

    return keep


_DECODERS: Final = {tag: _raw(tag) for tag in _TAGS}


def _decoded(untrusted: bytes) -> object:
    """Decode one item that was walked before."""
    _walk(untrusted)
    try:
        return cbor2.loads(
            untrusted,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_DECODERS,
        )
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Rejected("corim.malformed", str(error)[:512]) from None


def _walk(untrusted: bytes) -> None:
    """Check that the bytes are exactly one item (RFC 8949, clause 3) within the bounds. Linear in the size."""
    if len(untrusted) > MAX_IMPORT_BYTES:
        raise Rejected("corim.too-large", f"{len(untrusted)} bytes, at most {MAX_IMPORT_BYTES}")
    open_ = [1]  # items still to come, at each level
    at = items = 0
    while open_:
        if open_[-1] == 0:
            open_.pop()
            continue
        open_[-1] -= 1
        items += 1
        if at >= len(untrusted):
            raise Rejected("corim.malformed", f"offset {at}: cut short")
        if items > MAX_ITEMS or len(open_) > MAX_DEPTH:
            raise Rejected(
                "corim.too-large", f"offset {at}: more than {MAX_ITEMS} items or {MAX_DEPTH} levels"
            )
        kind, low = untrusted[at] >> 5, untrusted[at] & 31
        size = _ARGUMENT_BYTES.get(low, 0)
        if low > 27 or at + 1 + size > len(untrusted):
            raise Rejected("corim.malformed", f"offset {at}: cut short, or of no definite length")
        argument = int.from_bytes(untrusted[at + 1 : at + 1 + size], "big") if size else low
        where, at = at, at + 1 + size
        if kind in (2, 3):
            at += argument
        elif kind in (4, 5):
            open_.append(argument * (kind - 3))
        elif kind == 6:
            if argument not in _TAGS:
                raise Rejected("corim.malformed", f"offset {where}: tag {argument} has no place here")
            open_.append(1)
        elif kind == 7 and low < 20:
            raise Rejected("corim.malformed", f"offset {where}: an unknown simple value")
    if at != len(untrusted):
        raise Rejected("corim.malformed", f"offset {at}: {len(untrusted) - at} bytes follow or are missing")
