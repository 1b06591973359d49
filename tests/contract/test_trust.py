"""Signed metadata that lies, one lie at a time (ATTACKS c01), seen by a node that fetches it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.exceptions import FormatError
from tuf.api.metadata import Metadata, Role, Root, TargetFile

from contract.errors import Rejected
from contract.trust import refresh, signed_targets, targets_from_proof, trusted_root
from contract.trusted import TrustedBaseline, VerifiedTargets, trusted_baseline
from tests.parts.signing import SigningKit, minimal_baseline, resigned, signer

NOW = 1_800_000_000.0
DAY = 86_400.0


class Node:
    """What a node keeps, and what it is served."""

    def __init__(self, kit: SigningKit) -> None:
        self.kit = kit
        self.anchor = kit.roots[0]
        self.kept: dict[str, bytes] = {}
        self.served = kit.state

    def fetch(self, name: str, max_bytes: int) -> bytes | None:
        return self.served.get(f"metadata/{name}")  # a server that does not care about the limit

    def keep(self, name: str, raw: bytes) -> None:
        self.kept[name] = raw

    def refresh(self, now: float = NOW) -> VerifiedTargets:
        return refresh(self.anchor, self.kept, self.fetch, self.keep, now=now)

    def refused(self, now: float = NOW) -> str:
        """Return the code of the refusal."""
        with pytest.raises(Rejected) as caught:
            self.refresh(now)
        return caught.value.code

    def serve(self, name: str, raw: bytes) -> None:
        self.served = {**self.served, f"metadata/{name}": raw}


@pytest.fixture
def kit() -> SigningKit:
    made = SigningKit(now=NOW)
    made.publish(minimal_baseline(), now=NOW)
    return made


@pytest.fixture
def node(kit: SigningKit) -> Node:
    return Node(kit)


def snapshot_name(kit: SigningKit) -> str:
    return max(name for name in kit.state if name.endswith(".snapshot.json")).removeprefix("metadata/")


def test_a_good_repository_is_trusted_and_kept(kit: SigningKit, node: Node) -> None:
    targets = node.refresh()
    assert set(targets.entries) == {"factory/1.toml"}
    assert set(node.kept) == {"timestamp.json", "snapshot.json", "targets.json"}
    raw = kit.files["factory/1.toml"]
    trusted = trusted_baseline(targets, kit.wanted("factory", 1), raw)
    assert (trusted.name, trusted.version, trusted.raw) == ("factory", 1, raw)


def test_trusted_types_cannot_be_made_elsewhere(node: Node) -> None:
    targets = node.refresh()
    with pytest.raises(TypeError):
        VerifiedTargets(root_version=1, version=1, entries={}, raw=b"", seal=None)
    with pytest.raises(TypeError):
        TrustedBaseline(name="a", version=1, sha256="", baseline=None, raw=targets.raw, seal=None)  # type: ignore[arg-type]


# -- old versions ------------------------------------------------------------------------------------


def test_c01_old_timestamp_is_rejected(kit: SigningKit, node: Node) -> None:
    before = dict(kit.state)
    kit.publish(minimal_baseline(version=2), now=NOW + 10)
    node.served = kit.state
    node.refresh()
    node.served = before
    kept = dict(node.kept)
    assert node.refused() == "metadata.version"
    assert node.kept == kept


def test_c01_old_snapshot_and_old_targets_under_a_new_timestamp_are_rejected(
    kit: SigningKit, node: Node
) -> None:
    kit.publish(minimal_baseline(version=2), now=NOW + 10)
    node.served = kit.state
    node.refresh()
    kit.freshen(1, int(NOW) + 100, now=NOW)  # what a stolen controller can sign: newest says targets 1
    node.served = kit.state
    assert node.refused() == "metadata.version"
    assert msgspec.json.decode(node.kept["targets.json"])["signed"]["version"] == 2


def test_c01_timestamp_that_takes_the_snapshot_back_is_rejected(kit: SigningKit, node: Node) -> None:
    node.refresh()
    raw = resigned(
        kit.state["metadata/timestamp.json"],
        lambda s: (s.update(version=s["version"] + 1), s["meta"]["snapshot.json"].update(version=1)),
        kit.online,
    )
    node.serve("timestamp.json", raw)
    assert node.refused() == "metadata.version"


def test_c01_root_that_skips_or_repeats_a_version_is_rejected(kit: SigningKit, node: Node) -> None:
    kit.root.version = 3
    node.serve("2.root.json", kit.signed(kit.root, kit.root_signers))
    assert node.refused() == "metadata.version"
    node.serve("2.root.json", kit.roots[0])
    assert node.refused() == "metadata.version"


# -- expiry ------------------------------------------------------------------------------------------


def test_c01_expired_timestamp_and_snapshot_are_rejected(kit: SigningKit, node: Node) -> None:
    assert node.refused(NOW + 2 * DAY) == "metadata.expired"
    raw = resigned(
        kit.state[f"metadata/{snapshot_name(kit)}"],
        lambda s: s.update(expires="2020-01-01T00:00:00Z"),
        kit.online,
    )
    node.serve(snapshot_name(kit), raw)
    node.serve("timestamp.json", _without_hash(kit))
    assert node.refused() == "metadata.expired"


def test_c01_expired_root_is_rejected_whatever_else_is_fresh(kit: SigningKit, node: Node) -> None:
    late = NOW + 366 * DAY
    kit.freshen(1, int(late), now=late)
    node.served = kit.state
    assert node.refused(late) == "metadata.expired"


def test_c01_expired_targets_are_rejected(kit: SigningKit, node: Node) -> None:
    kit.targets.expires = kit.time(NOW - 1)
    node.serve("1.targets.json", kit.signed(kit.targets, kit.targets_signers))
    assert node.refused() == "metadata.expired"


def test_c01_one_moment_before_expiry_is_good_and_the_moment_itself_is_not(node: Node) -> None:
    assert node.refresh(NOW + DAY - 1).version == 1
    assert node.refused(NOW + DAY) == "metadata.expired"


# -- signatures --------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> SigningKit:
    """A repository where two of three people must sign."""
    made = SigningKit(now=NOW, targets_keys=3, targets_threshold=2)
    made.publish(minimal_baseline(), now=NOW)
    return made


def test_c01_targets_short_of_the_threshold_are_rejected(pair: SigningKit) -> None:
    node = Node(pair)
    node.serve("1.targets.json", pair.signed(pair.targets, pair.targets_signers[:1]))
    assert node.refused() == "metadata.signatures"
    node.serve("1.targets.json", pair.signed(pair.targets, pair.targets_signers[1:]))
    assert node.refresh().version == 1


def test_c01_one_signature_twice_is_rejected(pair: SigningKit) -> None:
    node = Node(pair)
    document = msgspec.json.decode(pair.signed(pair.targets, pair.targets_signers[:1]))
    document["signatures"] *= 2
    node.serve("1.targets.json", msgspec.json.encode(document))
    assert node.refused() == "metadata.malformed"


def test_c01_one_key_under_two_ids_is_rejected(pair: SigningKit) -> None:
    """The specification counts key ids; a root that names one key twice makes one person count as two."""

    def twice(signed: dict[str, Any]) -> None:
        keyid = signed["roles"]["targets"]["keyids"][0]
        signed["keys"]["ab" * 32] = copy.deepcopy(signed["keys"][keyid])
        signed["roles"]["targets"]["keyids"].append("ab" * 32)
        signed["version"] = 2

    node = Node(pair)
    node.serve("2.root.json", resigned(pair.roots[0], twice, *pair.root_signers))
    assert node.refused() == "metadata.keys"
    with pytest.raises(Rejected, match=r"metadata\.keys"):
        trusted_root(resigned(pair.roots[0], twice, *pair.root_signers), [])


def test_c01_one_key_id_twice_in_a_role_is_rejected(pair: SigningKit) -> None:
    def twice(signed: dict[str, Any]) -> None:
        signed["roles"]["targets"]["keyids"].append(signed["roles"]["targets"]["keyids"][0])
        signed["version"] = 2

    node = Node(pair)
    node.serve("2.root.json", resigned(pair.roots[0], twice, *pair.root_signers))
    assert node.refused() == "metadata.malformed"


@pytest.mark.parametrize("threshold", [0, -1, 1.0, True, "1", None, 2**70])
@pytest.mark.parametrize("role", ["root", "targets", "timestamp"])
def test_c01_threshold_zero_or_no_number_is_rejected(kit: SigningKit, role: str, threshold: object) -> None:
    node = Node(kit)
    document = msgspec.json.decode(kit.roots[0])
    document["signed"]["version"] = 2
    document["signed"]["roles"][role]["threshold"] = 9
    raw = resigned(msgspec.json.encode(document), lambda s: None, *kit.root_signers)
    text = raw.decode().replace(
        '"threshold":9', f'"threshold":{msgspec.json.encode(_jsonable(threshold)).decode()}'
    )
    node.serve("2.root.json", text.encode())
    assert node.refused() == "metadata.malformed"


def test_c01_threshold_zero_is_rejected_in_a_well_signed_root(kit: SigningKit, node: Node) -> None:
    def zero(signed: dict[str, Any]) -> None:
        signed["roles"]["targets"]["threshold"] = 0
        signed["version"] = 2

    node.serve("2.root.json", resigned(kit.roots[0], zero, *kit.root_signers))
    assert node.refused() == "metadata.malformed"


def test_c01_root_not_signed_by_the_one_before_it_is_rejected(kit: SigningKit, node: Node) -> None:
    new = signer()

    def take_over(signed: dict[str, Any]) -> None:
        signed["keys"][new.public_key.keyid] = new.public_key.to_dict()
        signed["roles"]["root"]["keyids"] = [new.public_key.keyid]
        signed["version"] = 2

    node.serve("2.root.json", resigned(kit.roots[0], take_over, new))
    assert node.refused() == "metadata.signatures"
    # ... and one that its own new key did not sign:
    node.serve("2.root.json", resigned(kit.roots[0], take_over, *kit.root_signers))
    assert node.refused() == "metadata.signatures"
    node.serve("2.root.json", resigned(kit.roots[0], take_over, new, *kit.root_signers))
    assert node.refresh().root_version == 2


def test_c01_list_signed_by_the_controllers_own_key_is_rejected(kit: SigningKit, node: Node) -> None:
    """A stolen controller cannot write a rule."""
    node.serve("1.targets.json", kit.signed(kit.targets, [kit.online]))
    assert node.refused() == "metadata.signatures"


@pytest.mark.parametrize(("offline", "online"), [("targets", "timestamp"), ("root", "snapshot")])
def test_c01_root_with_one_key_offline_and_online_is_rejected(
    kit: SigningKit, node: Node, offline: str, online: str
) -> None:
    def mix(signed: dict[str, Any]) -> None:
        signed["roles"][offline]["keyids"] += signed["roles"][online]["keyids"]
        signed["version"] = 2

    node.serve("2.root.json", resigned(kit.roots[0], mix, *kit.root_signers))
    assert node.refused() == "metadata.roles"


def test_c01_root_without_consistent_snapshots_is_rejected(kit: SigningKit, node: Node) -> None:
    """Without them a file can change between the look at its hash and its download."""
    raw = resigned(kit.roots[0], lambda s: s.update(version=2, consistent_snapshot=False), *kit.root_signers)
    node.serve("2.root.json", raw)
    assert node.refused() == "metadata.malformed"


def test_c01_role_without_a_key_that_is_there_is_rejected(kit: SigningKit, node: Node) -> None:
    def lose(signed: dict[str, Any]) -> None:
        signed["keys"].pop(signed["roles"]["targets"]["keyids"][0])
        signed["version"] = 2

    node.serve("2.root.json", resigned(kit.roots[0], lose, *kit.root_signers))
    assert node.refused() == "metadata.keys"


def test_c01_revoked_key_signs_nothing_any_more(kit: SigningKit, node: Node) -> None:
    node.refresh()
    old = kit.targets_signers
    new = signer()

    def replace(root: Root) -> None:
        root.revoke_key(old[0].public_key.keyid, "targets")
        root.add_key(new.public_key, "targets")

    kit.rotate(replace)
    node.serve("2.root.json", kit.roots[-1])
    assert node.refused() == "metadata.signatures"  # kept and served targets are both the old key's


# -- mixed and malformed -----------------------------------------------------------------------------


def test_c01_files_of_two_repositories_mixed_are_rejected(kit: SigningKit, node: Node) -> None:
    other = SigningKit(now=NOW)
    other.publish(minimal_baseline(), now=NOW)
    for name in ("timestamp.json", snapshot_name(kit), "1.targets.json"):
        mixed = Node(kit)
        foreign = snapshot_name(other) if "snapshot" in name else name
        mixed.serve(name, other.state[f"metadata/{foreign}"])
        assert mixed.refused() in {"metadata.signatures", "metadata.hash"}
    node.serve("2.root.json", other.roots[0])
    assert node.refused() == "metadata.signatures"


def test_c01_files_of_two_versions_mixed_are_rejected(kit: SigningKit) -> None:
    first = dict(kit.state)
    old_snapshot = snapshot_name(kit)
    kit.publish(minimal_baseline(version=2), now=NOW + 10)
    node = Node(kit)
    node.serve(snapshot_name(kit), first[f"metadata/{old_snapshot}"])
    assert node.refused() == "metadata.hash"
    node = Node(kit)
    node.serve("2.targets.json", first["metadata/1.targets.json"])
    assert node.refused() == "metadata.version"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("timestamp.json", "1.targets.json"),
        ("1.targets.json", "timestamp.json"),
        ("2.root.json", "timestamp.json"),
    ],
)
def test_c01_one_role_served_as_another_is_rejected(
    kit: SigningKit, node: Node, name: str, other: str
) -> None:
    node.serve(name, kit.state[f"metadata/{other}"])
    assert node.refused() == "metadata.malformed"


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "SNAPSHOT", "1.targets.json"])
def test_c01_malformed_files_are_rejected(kit: SigningKit, name: str) -> None:
    name = snapshot_name(kit) if name == "SNAPSHOT" else name
    good = kit.roots[0] if "root" in name else kit.state[f"metadata/{name}"]
    node = Node(kit)
    for raw, codes in (
        (b"", {"metadata.malformed"}),
        (b"null", {"metadata.malformed"}),
        (b"[" * 10_000, {"metadata.malformed"}),
        (good[:-1], {"metadata.malformed"}),
        (good + b"{}", {"metadata.malformed"}),
        (good.replace(b'"signed"', b'"extra":1,"signed"', 1), {"metadata.malformed"}),
        (good.replace(b'"version"', b'"extra":1,"version"', 1), {"metadata.malformed"}),
        (good + b" " * 5_000_000, {"metadata.too-large"}),
    ):
        node.serve(name, raw)
        if "snapshot" in name:  # its hash is in the timestamp: take that away, to reach the parser
            node.serve("timestamp.json", _without_hash(kit))
        assert node.refused() in codes, raw[:80]
        assert name not in node.kept


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.targets.json"])
def test_c01_key_that_stands_twice_in_one_object_is_rejected(kit: SigningKit, name: str) -> None:
    """Two parsers may read such a file in two ways, and only one of the readings was checked."""
    good = kit.roots[0] if "root" in name else kit.state[f"metadata/{name}"]
    node = Node(kit)
    for twice in (
        good.replace(b'"version":', b'"version":7,"version":', 1),
        good.replace(b'"signed":', b'"signed":{},"signed":', 1),
        good[:-1] + b',"signatures":[]}',
    ):
        node.serve(name, twice)
        assert node.refused() == "metadata.malformed"


def test_c01_missing_files_are_rejected(kit: SigningKit) -> None:
    for name in ("timestamp.json", snapshot_name(kit), "1.targets.json"):
        node = Node(kit)
        node.served = {k: v for k, v in kit.state.items() if k != f"metadata/{name}"}
        assert node.refused() == "metadata.missing"


def test_c01_delegations_and_odd_paths_are_rejected(kit: SigningKit, node: Node) -> None:
    delegations = {"keys": {}, "roles": []}
    for change in (
        lambda s: s.update(delegations=delegations),
        lambda s: s["targets"].update({"../../etc/passwd": s["targets"]["factory/1.toml"]}),
        lambda s: s["targets"].update({"factory/01.toml": s["targets"]["factory/1.toml"]}),
        lambda s: s["targets"].update({"factory/1.toml\n": s["targets"]["factory/1.toml"]}),
        lambda s: s["targets"]["factory/1.toml"].update(custom={"run": "me"}),
        lambda s: s["targets"]["factory/1.toml"].update(hashes={"md5": "0" * 32}),
    ):
        raw = resigned(kit.state["metadata/1.targets.json"], change, *kit.targets_signers)
        node.serve("1.targets.json", raw)
        assert node.refused() == "metadata.malformed"


def test_c01_endless_root_rotation_ends(kit: SigningKit, node: Node) -> None:
    for _ in range(260):
        kit.rotate(lambda root: None)
    for version, raw in enumerate(kit.roots, 1):
        node.served[f"metadata/{version}.root.json"] = raw
    assert node.refused() == "metadata.version"


# -- cached before it was checked --------------------------------------------------------------------


def test_c01_nothing_is_kept_before_it_is_checked(kit: SigningKit) -> None:
    for name in ("timestamp.json", snapshot_name(kit), "1.targets.json", "2.root.json"):
        node = Node(kit)
        bad = resigned(
            kit.roots[0] if "root" in name else kit.state[f"metadata/{name}"], lambda s: None, signer()
        )
        node.serve(name, bad)
        assert node.refused() in {"metadata.signatures", "metadata.hash", "metadata.version"}
        assert bad not in node.kept.values()


def test_c01_kept_files_are_not_believed_either(kit: SigningKit, node: Node) -> None:
    node.refresh()
    for name in list(node.kept):
        good = node.kept[name]
        for bad in (b"", b"{}", good[:-9], resigned(good, lambda s: None, signer())):
            node.kept[name] = bad
            assert node.refresh().version == 1
            assert node.kept[name] == good


def test_c01_expired_kept_timestamp_still_guards_against_rollback(kit: SigningKit, node: Node) -> None:
    kit.freshen(1, int(NOW) + 50, now=NOW)
    node.served = kit.state
    node.refresh()
    kit.freshen(1, int(NOW) + 40, now=NOW + 5 * DAY)
    node.served = kit.state
    assert node.refused(NOW + 5 * DAY) == "metadata.version"


# -- the baseline itself -----------------------------------------------------------------------------


def refused_baseline(*arguments: Any, **facts: Any) -> str:
    with pytest.raises(Rejected) as caught:
        trusted_baseline(*arguments, **facts)
    return caught.value.code


def test_c01_older_baseline_is_rejected(kit: SigningKit, node: Node) -> None:
    targets, wanted, raw = node.refresh(), kit.wanted("factory", 1), kit.files["factory/1.toml"]
    assert trusted_baseline(targets, wanted, raw, highest_version=1).version == 1
    assert refused_baseline(targets, wanted, raw, highest_version=2) == "baseline.rollback"


def test_a07_baseline_that_is_not_on_the_signed_list_is_rejected(kit: SigningKit, node: Node) -> None:
    kit.files["factory/2.toml"] = minimal_baseline(version=2)  # never signed
    wanted = kit.wanted("factory", 2)
    assert refused_baseline(node.refresh(), wanted, kit.files["factory/2.toml"]) == "baseline.not-signed"


def test_a07_order_for_other_content_than_was_signed_is_rejected(kit: SigningKit, node: Node) -> None:
    signed = kit.files["factory/1.toml"]
    kit.files["factory/1.toml"] += b"# more\n"
    wanted = kit.wanted("factory", 1)
    for raw in (signed, kit.files["factory/1.toml"]):
        assert refused_baseline(node.refresh(), wanted, raw) == "baseline.digest"


@pytest.mark.parametrize("change", [b"#", b" ", b"\n"])
def test_c01_one_byte_more_or_another_byte_is_rejected(kit: SigningKit, node: Node, change: bytes) -> None:
    targets, wanted, raw = node.refresh(), kit.wanted("factory", 1), kit.files["factory/1.toml"]
    assert refused_baseline(targets, wanted, raw + change) == "baseline.digest"
    assert refused_baseline(targets, wanted, change + raw[1:]) == "baseline.digest"
    assert refused_baseline(targets, wanted, b"") == "baseline.digest"


def test_c01_baseline_signed_under_another_name_or_version_is_rejected(kit: SigningKit) -> None:
    raw = minimal_baseline("retail", 7)
    for path in ("factory/7.toml", "retail/8.toml"):
        kit.targets.version += 1
        kit.targets.targets[path] = TargetFile.from_data(path, raw, ["sha256"])
        kit.files[path] = raw
        targets = signed_targets(kit.root, kit.signed(kit.targets, kit.targets_signers))
        name, version = path.removesuffix(".toml").split("/")
        assert refused_baseline(targets, kit.wanted(name, int(version)), raw) == "baseline.head"


def test_c01_signed_file_that_does_not_parse_is_rejected(kit: SigningKit) -> None:
    kit.add(b"[baseline", path="factory/2.toml")
    targets = signed_targets(kit.root, kit.signed(kit.targets, kit.targets_signers))
    assert refused_baseline(targets, kit.wanted("factory", 2), b"[baseline") == "baseline.syntax"


# -- offline -----------------------------------------------------------------------------------------


def test_c01_proof_holds_without_network_and_after_expiry_but_not_when_forged(
    kit: SigningKit, node: Node
) -> None:
    targets = node.refresh()
    assert targets_from_proof(node.anchor, {}, targets.proof()).entries == targets.entries
    bad = signer()
    forged = resigned(targets.raw, lambda s: s["targets"].clear(), bad)
    proof = msgspec.msgpack.encode({"root_version": 1, "targets": forged})
    for untrusted, code in (
        (proof, "metadata.signatures"),
        (b"", "metadata.malformed"),
        (targets.proof() + b"\0", "metadata.malformed"),
        (msgspec.msgpack.encode({"root_version": 2, "targets": targets.raw}), "metadata.missing"),
        (msgspec.msgpack.encode({"root_version": 0, "targets": targets.raw}), "metadata.version"),
    ):
        with pytest.raises(Rejected) as caught:
            targets_from_proof(node.anchor, {}, untrusted)
        assert caught.value.code == code


# -- anything at all ---------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=9)
    | st.just("0" * 64),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
_KIT = SigningKit(now=NOW)
_KIT.publish(minimal_baseline(), now=NOW)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in _places(inner, (*at, key)))]


@settings(max_examples=150, deadline=None)
@given(st.data(), _JSON, st.sampled_from(["2.root.json", "timestamp.json", "SNAPSHOT", "1.targets.json"]))
def test_c01_no_value_at_any_place_raises_anything_but_rejected(data: Any, value: object, name: str) -> None:
    name = snapshot_name(_KIT) if name == "SNAPSHOT" else name
    document = msgspec.json.decode(_KIT.roots[0] if "root" in name else _KIT.state[f"metadata/{name}"])
    at = data.draw(st.sampled_from(_places(document)[1:]))
    inner = document
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    node = Node(_KIT)
    node.serve("timestamp.json", _without_hash(_KIT))
    raw = msgspec.json.encode(document)
    try:
        raw = resigned(raw, lambda s: None, *_KIT.root_signers, *_KIT.targets_signers, _KIT.online)
    except (FormatError, UnicodeError):
        pass  # not representable in canonical JSON: served with the old signatures
    node.serve(name, raw)
    try:
        node.refresh()
    except Rejected as error:
        assert error.code.startswith("metadata.")


@given(st.binary(max_size=200))
def test_c01_no_byte_string_raises_anything_but_rejected(garbage: bytes) -> None:
    checks: list[Callable[[], object]] = [
        lambda: trusted_root(garbage, []),
        lambda: signed_targets(_KIT.root, garbage),
        lambda: targets_from_proof(_KIT.roots[0], {}, garbage),
    ]
    for check in checks:
        with pytest.raises(Rejected):
            check()


def _without_hash(kit: SigningKit) -> bytes:
    def strip(signed: dict[str, Any]) -> None:
        meta = signed["meta"]["snapshot.json"]
        meta.pop("hashes", None)
        meta.pop("length", None)

    return resigned(kit.state["metadata/timestamp.json"], strip, kit.online)


def _jsonable(value: object) -> object:
    return msgspec.Raw(b"1180591620717411303424") if value == 2**70 else value


def test_roles_of_the_kit_are_what_tuf_thinks_they_are(kit: SigningKit) -> None:
    root = Metadata[Root].from_bytes(kit.roots[0]).signed
    assert all(isinstance(root.roles[name], Role) for name in ("root", "targets", "snapshot", "timestamp"))
