"""The controller's repository: what a push may bring, and what the online key may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import Rejected
from controller.repository import (
    MAX_BUNDLE_BYTES,
    TIMESTAMP_LIFETIME,
    Repository,
    current_targets,
    latest_root,
)
from tests.parts.signing import SigningKit, minimal_baseline, resigned, signer

NOW = 1_800_000_000.0
DAY = 86_400.0


@pytest.fixture
def kit() -> SigningKit:
    made = SigningKit(now=NOW, targets_keys=3, targets_threshold=2)
    made.publish(minimal_baseline(), now=NOW)
    return made


def refused(kit: SigningKit, bundle: bytes, *, now: float = NOW + 10) -> str:
    """Return the code of the refusal; nothing may have changed."""
    before = dict(kit.state)
    with pytest.raises(Rejected) as caught:
        kit.push(bundle, now=now)
    assert kit.state == before
    return caught.value.code


def edited(bundle: bytes, **fields: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(bundle) | fields)


def test_first_push_brings_root_list_files_and_fresh_metadata() -> None:
    kit = SigningKit(now=NOW)
    assert current_targets(kit.state) is None
    assert latest_root(kit.state) == b""
    new = kit.publish(minimal_baseline(), minimal_baseline("retail", 4), now=NOW)
    assert sorted((b.name, b.version) for b in new.baselines) == [("factory", 1), ("retail", 4)]
    assert latest_root(kit.state) == kit.roots[0]
    listed = current_targets(kit.state)
    assert listed is not None
    assert set(listed.entries) == {"factory/1.toml", "retail/4.toml"}


def test_same_push_again_changes_nothing(kit: SigningKit) -> None:
    new = kit.push(kit.bundle(), now=NOW + 10)
    assert (new.files, new.obsolete, new.baselines) == ({}, (), ())


def test_one_signature_more_is_the_same_list(kit: SigningKit) -> None:
    kit.push(kit.bundle(kit.targets_signers[:2]), now=NOW + 10)
    assert kit.push(kit.bundle(), now=NOW + 20).baselines == ()


def test_next_push_adds_only_what_is_new(kit: SigningKit) -> None:
    new = kit.publish(minimal_baseline(version=2), now=NOW + 10)
    assert [(b.name, b.version) for b in new.baselines] == [("factory", 2)]
    assert "metadata/1.root.json" not in new.files
    for number in range(3, 9):
        kit.publish(minimal_baseline(version=number), now=NOW + 10 * number)
    assert len([n for n in kit.state if n.endswith(".snapshot.json")]) == 2


def test_files_that_the_controller_has_may_be_left_out(kit: SigningKit, tmp_path: Path) -> None:
    first = kit.files.pop("factory/1.toml")
    kit.publish(minimal_baseline(version=2), now=NOW + 10)
    kit.files["factory/1.toml"] = first
    assert kit.updates(tmp_path).get(kit.wanted("factory", 1), now=NOW + 11).version == 1


def test_c01_push_short_of_the_threshold_is_rejected(kit: SigningKit) -> None:
    kit.targets.version += 1
    kit.add(minimal_baseline(version=2))
    for signers in ([], kit.targets_signers[:1], [kit.targets_signers[0], signer()], [kit.online]):
        assert refused(kit, kit.bundle(signers)) == "metadata.signatures"
    assert kit.push(kit.bundle(kit.targets_signers[1:]), now=NOW + 10).baselines[0].version == 2


def test_c01_push_of_an_older_or_another_list_of_the_same_version_is_rejected(kit: SigningKit) -> None:
    old = kit.bundle()
    kit.add(minimal_baseline(version=3))
    assert refused(kit, kit.bundle()) == "metadata.version"  # same version, other content
    kit.publish(minimal_baseline(version=2), now=NOW + 10)
    assert refused(kit, old) == "metadata.version"


def test_c01_push_that_changes_a_signed_version_is_rejected(kit: SigningKit) -> None:
    kit.targets.version += 1
    kit.add(minimal_baseline(extra="# changed\n"))
    assert refused(kit, kit.bundle()) == "bundle.target-changed"


def test_c01_push_with_missing_tampered_or_unlisted_files_is_rejected(kit: SigningKit) -> None:
    kit.targets.version += 1
    kit.add(minimal_baseline(version=2))
    good = kit.bundle()
    kit.files["factory/2.toml"] += b"#"
    assert refused(kit, kit.bundle()) == "baseline.digest"
    del kit.files["factory/2.toml"]
    assert refused(kit, kit.bundle()) == "bundle.missing-file"
    kit.files["../../evil"] = b""
    assert refused(kit, kit.bundle()) == "bundle.unlisted-file"
    assert kit.push(good, now=NOW + 10).baselines[0].version == 2


def test_c01_push_of_a_signed_file_that_is_no_baseline_is_rejected(kit: SigningKit) -> None:
    kit.targets.version += 1
    kit.add(b"not toml", path="factory/2.toml")
    assert refused(kit, kit.bundle()) == "baseline.syntax"


def test_c01_push_of_another_root_is_rejected(kit: SigningKit) -> None:
    other = SigningKit(now=NOW)
    other.add(minimal_baseline())
    assert refused(kit, other.bundle()) == "bundle.other-root"


def test_c01_push_with_a_gap_in_the_roots_is_rejected(kit: SigningKit) -> None:
    kit.rotate(lambda root: None)
    kit.rotate(lambda root: None)
    third = kit.roots[2]
    kit.roots = [third]
    assert refused(kit, kit.bundle()) == "bundle.other-root"


def test_c01_push_of_a_root_that_the_last_one_did_not_sign_is_rejected(kit: SigningKit) -> None:
    kit.root_signers = [signer()]
    kit.rotate(lambda root: None)
    assert refused(kit, kit.bundle()) == "metadata.signatures"


def test_c01_push_with_expired_root_or_list_is_rejected(kit: SigningKit) -> None:
    kit.publish(minimal_baseline(version=2), now=NOW + 10)
    kit.targets.version += 1
    kit.add(minimal_baseline(version=3))
    assert refused(kit, kit.bundle(), now=NOW + 366 * DAY) == "metadata.expired"
    kit.targets.expires = kit.time(NOW)
    assert refused(kit, kit.bundle()) == "metadata.expired"


def test_c01_root_that_gives_freshness_to_another_key_is_rejected() -> None:
    kit = SigningKit(now=NOW)
    kit.add(minimal_baseline())
    kit.repository = Repository(SigningKit(now=NOW).online_key)
    assert refused(kit, kit.bundle()) == "bundle.online-key"


def test_c01_root_where_the_online_key_could_sign_lists_is_rejected() -> None:
    kit = SigningKit(now=NOW)
    kit.add(minimal_baseline())
    kit.root.add_key(kit.online.public_key, "targets")
    kit.roots = [kit.signed(kit.root, kit.root_signers)]
    assert refused(kit, kit.bundle()) == "metadata.roles"


def test_c01_garbage_bundles_are_rejected(kit: SigningKit) -> None:
    good = kit.bundle()
    assert refused(kit, b"") == "bundle.malformed"
    assert refused(kit, good + b"{}") == "bundle.malformed"
    assert refused(kit, edited(good, extra=1)) == "bundle.malformed"
    assert refused(kit, edited(good, root=[])) == "bundle.malformed"
    assert refused(kit, edited(good, targets="!")) == "bundle.malformed"
    assert refused(kit, edited(good, targets="")) == "metadata.malformed"
    assert refused(kit, edited(good, root=[""])) == "metadata.malformed"
    assert refused(kit, b" " * (MAX_BUNDLE_BYTES + 1)) == "bundle.too-large"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["root", "targets", "all"]))
def test_c01_no_bundle_raises_anything_but_rejected(garbage: bytes, place: str) -> None:
    kit = SigningKit(now=NOW)
    bundle = {"root": kit.roots, "targets": b"", "files": {}}
    bundle |= {"root": {"root": [garbage]}, "targets": {"targets": garbage}, "all": {}}[place]
    with pytest.raises(Rejected):
        kit.push(garbage if place == "all" else msgspec.json.encode(bundle), now=NOW)


def test_timestamp_is_renewed_in_time_and_not_all_the_time(kit: SigningKit, tmp_path: Path) -> None:
    half = TIMESTAMP_LIFETIME.total_seconds() / 2
    assert kit.repository.refresh(kit.state, now=NOW + half - 60).files == {}
    new = kit.store(kit.repository.refresh(kit.state, now=NOW + half + 60))
    assert "metadata/timestamp.json" in new.files
    assert kit.updates(tmp_path).get(kit.wanted("factory", 1), now=NOW + 1.4 * DAY).version == 1
    assert kit.repository.refresh({}, now=NOW).files == {}


def test_timestamp_of_a_clock_that_ran_ahead_is_replaced(kit: SigningKit, tmp_path: Path) -> None:
    """Else it would outlive its day by as much as the clock was wrong."""
    kit.store(kit.repository.refresh(kit.state, now=NOW + 100 * DAY))
    updates = kit.updates(tmp_path)
    updates.get(kit.wanted("factory", 1), now=NOW)
    kit.store(kit.repository.refresh(kit.state, now=NOW))
    assert updates.get(kit.wanted("factory", 1), now=NOW + DAY / 2).version == 1
    with pytest.raises(Rejected, match=r"metadata\.expired"):
        updates.get(kit.wanted("factory", 1), now=NOW + 2 * DAY)


def test_c02_database_from_last_week_downgrades_no_node_and_recovers(kit: SigningKit, tmp_path: Path) -> None:
    last_week = dict(kit.state)
    later = NOW + 7 * DAY
    kit.publish(minimal_baseline(version=2), now=later)
    updates = kit.updates(tmp_path)
    updates.get(kit.wanted("factory", 2), now=later)
    bundle = kit.bundle()

    kit.state = last_week
    kit.store(kit.repository.refresh(kit.state, now=later + 60))
    with pytest.raises(Rejected, match=r"metadata\.version"):
        updates.get(kit.wanted("factory", 1), now=later + 61)
    kit.push(bundle, now=later + 120)  # the offline repository is pushed again
    assert updates.get(kit.wanted("factory", 2), now=later + 121).version == 2


def test_online_key_is_replaced_by_a_new_root(kit: SigningKit, tmp_path: Path) -> None:
    updates = kit.updates(tmp_path)
    updates.get(kit.wanted("factory", 1), now=NOW)
    new = SigningKit(now=NOW)
    old = kit.online.public_key.keyid

    def replace(root: Any) -> None:
        for role in ("snapshot", "timestamp"):
            root.revoke_key(old, role)
            root.add_key(new.online.public_key, role)

    kit.rotate(replace)
    bundle = kit.bundle()
    assert refused(kit, bundle) == "bundle.online-key"  # the old controller must not go on
    kit.repository = Repository(new.online_key)
    kit.push(bundle, now=NOW + 10)
    assert updates.get(kit.wanted("factory", 1), now=NOW + 11).version == 1


def test_damaged_state_is_named_and_not_served_on(kit: SigningKit) -> None:
    name = "metadata/1.targets.json"
    kit.state[name] = resigned(kit.state[name], lambda s: None, signer())
    with pytest.raises(Rejected, match=r"metadata\.signatures"):
        kit.repository.refresh(kit.state, now=NOW + DAY)
    del kit.state[name]
    with pytest.raises(Rejected, match=r"metadata\.missing"):
        kit.repository.refresh(kit.state, now=NOW + DAY)
