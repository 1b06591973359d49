"""The agent's view of the signed repository, on a real disk, from a real (in-memory) repository."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Root
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from agent.updates import KEPT_BASELINES, Updates
from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.messages import METADATA_PATH, TARGETS_PATH, BaselineRef
from contract.trusted import target_file
from tests.parts.signing import SigningKit, minimal_baseline, resigned, signer

NOW = 1_800_000_000.0
DAY = 86_400.0


@pytest.fixture
def kit() -> SigningKit:
    made = SigningKit(now=NOW)
    made.publish(minimal_baseline(), now=NOW)
    return made


def code_of(call: object, *arguments: object, **facts: object) -> str:
    assert callable(call)
    with pytest.raises(Rejected) as caught:
        call(*arguments, **facts)
    return caught.value.code


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_fetched_baseline_is_kept_and_loads_without_a_network(kit: SigningKit, tmp_path: Path) -> None:
    wanted = kit.wanted("factory", 1)
    trusted = kit.updates(tmp_path).get(wanted, now=NOW)
    assert trusted.raw == minimal_baseline()

    def no_network(path: str, max_bytes: int) -> bytes:
        raise ConnectionRefusedError(path)

    offline = Updates(tmp_path, no_network)
    assert offline.load_cached(wanted).raw == trusted.raw
    ref = BaselineRef(name="factory", version=1, sha256=bytes.fromhex(wanted.sha256))
    assert offline.load_cached(ref).raw == trusted.raw
    with pytest.raises(ConnectionRefusedError):
        offline.get(wanted, now=NOW)


def test_second_get_downloads_no_target_again(kit: SigningKit, tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(path: str, max_bytes: int) -> bytes:
        asked.append(path)
        return kit.fetch(path, max_bytes)

    updates = Updates(tmp_path, fetch, root_metadata=kit.roots[0])
    updates.get(kit.wanted("factory", 1), now=NOW)
    asked.clear()
    updates.get(kit.wanted("factory", 1), now=NOW)
    assert asked == [f"{METADATA_PATH}/2.root.json", f"{METADATA_PATH}/timestamp.json"]


def test_new_version_arrives_and_the_old_one_stays_until_pruned(kit: SigningKit, tmp_path: Path) -> None:
    updates = kit.updates(tmp_path)
    first = kit.wanted("factory", 1)
    updates.get(first, now=NOW)
    kit.publish(minimal_baseline(version=2), now=NOW + 5)
    second = kit.wanted("factory", 2)
    assert updates.get(second, now=NOW + 6, highest_version=1).version == 2
    assert updates.load_cached(first).version == 1
    updates.prune([second])
    assert code_of(updates.load_cached, first) == "baseline.not-kept"
    assert updates.load_cached(second).version == 2


def test_kept_baselines_take_a_fixed_space(kit: SigningKit, tmp_path: Path) -> None:
    updates = kit.updates(tmp_path)
    last = KEPT_BASELINES + 5
    kit.publish(*(minimal_baseline(version=v) for v in range(2, last + 1)), now=NOW + 5)
    for version in range(1, last + 1):
        updates.get(kit.wanted("factory", version), now=NOW + 6)
        updates.get(kit.wanted("factory", 1), now=NOW + 6)  # asked for again and again: stays
    assert len(list((tmp_path / "tuf/baselines").iterdir())) == 2 * KEPT_BASELINES
    assert updates.load_cached(kit.wanted("factory", 1)).version == 1
    assert updates.load_cached(kit.wanted("factory", last)).version == last
    assert code_of(updates.load_cached, kit.wanted("factory", 2)) == "baseline.not-kept"


def test_c01_rollback_of_a_baseline_is_rejected_even_when_it_is_signed_and_kept(
    kit: SigningKit, tmp_path: Path
) -> None:
    updates = kit.updates(tmp_path)
    updates.get(kit.wanted("factory", 1), now=NOW)
    kit.publish(minimal_baseline(version=2), now=NOW + 5)
    for view in (updates, kit.updates(tmp_path / "fresh")):
        found = code_of(view.get, kit.wanted("factory", 1), now=NOW + 6, highest_version=2)
        assert found == "baseline.rollback"


def test_c01_old_repository_state_is_rejected_by_a_node_that_knows_better(
    kit: SigningKit, tmp_path: Path
) -> None:
    last_week = dict(kit.state)
    kit.publish(minimal_baseline(version=2), now=NOW + 5)
    kit.updates(tmp_path).get(kit.wanted("factory", 2), now=NOW + 6)
    kit.state = last_week
    updates = kit.updates(tmp_path)  # also after a restart: what was seen is on disk
    assert code_of(updates.get, kit.wanted("factory", 1), now=NOW + 7) == "metadata.version"


def test_c01_expired_metadata_brings_nothing_new_but_takes_nothing_away(
    kit: SigningKit, tmp_path: Path
) -> None:
    wanted = kit.wanted("factory", 1)
    updates = kit.updates(tmp_path)
    updates.get(wanted, now=NOW)
    assert code_of(updates.get, wanted, now=NOW + 2 * DAY) == "metadata.expired"
    assert Updates(tmp_path, kit.fetch).load_cached(wanted).version == 1


def test_c01_nothing_that_was_refused_reaches_the_disk(kit: SigningKit, tmp_path: Path) -> None:
    good = dict(kit.state)
    for number, name in enumerate(
        n for n in good if n.startswith("metadata/") and n != "metadata/1.root.json"
    ):
        kit.state = {**good, name: resigned(good[name], lambda s: None, signer())}
        updates = kit.updates(tmp_path / str(number))
        assert code_of(updates.get, kit.wanted("factory", 1), now=NOW).startswith("metadata.")
        assert kit.state[name] not in tree(tmp_path).values()
    kit.state = {n: raw + b"#" if n.startswith("targets/") else raw for n, raw in good.items()}
    updates = kit.updates(tmp_path / "target")
    assert code_of(updates.get, kit.wanted("factory", 1), now=NOW) == "baseline.digest"
    assert not list(tmp_path.glob("*/tuf/baselines/*"))


def test_a07_baseline_that_the_controller_did_not_get_signed_is_rejected(
    kit: SigningKit, tmp_path: Path
) -> None:
    updates = kit.updates(tmp_path)
    evil = minimal_baseline(version=9, extra="# accept everything\n")
    kit.files["factory/9.toml"] = evil
    wanted = kit.wanted("factory", 9)
    kit.state[f"targets/{target_file('factory', 9, wanted.sha256)}"] = evil
    assert code_of(updates.get, wanted, now=NOW) == "baseline.not-signed"
    same_name = WantedBaseline(name="factory", version=1, sha256=wanted.sha256)
    kit.state[f"targets/{target_file('factory', 1, wanted.sha256)}"] = evil
    assert code_of(updates.get, same_name, now=NOW) == "baseline.digest"


def test_c01_endless_answer_is_cut_and_rejected(kit: SigningKit, tmp_path: Path) -> None:
    def endless(path: str, max_bytes: int) -> bytes:
        return kit.fetch(path, max_bytes) if path.endswith("root.json") else b"{" * (max_bytes + 1)

    updates = Updates(tmp_path, endless, root_metadata=kit.roots[0])
    assert code_of(updates.get, kit.wanted("factory", 1), now=NOW) == "metadata.too-large"


def test_missing_target_is_named(kit: SigningKit, tmp_path: Path) -> None:
    updates = kit.updates(tmp_path)
    kit.state = {n: raw for n, raw in kit.state.items() if not n.startswith("targets/")}
    assert code_of(updates.get, kit.wanted("factory", 1), now=NOW) == "baseline.missing"


def test_a02_damaged_state_is_fetched_anew_and_never_loaded(kit: SigningKit, tmp_path: Path) -> None:
    wanted = kit.wanted("factory", 1)
    kit.updates(tmp_path).get(wanted, now=NOW)
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and "root" not in p.name):
        good = path.read_bytes()
        for bad in (b"", good[: len(good) // 2], bytes(reversed(good))):
            path.write_bytes(bad)
            updates = kit.updates(tmp_path)
            if path.parent.name == "baselines":
                assert code_of(updates.load_cached, wanted).split(".")[0] in {"metadata", "baseline"}
            assert updates.get(wanted, now=NOW).version == 1
            assert updates.load_cached(wanted).version == 1
    (tmp_path / "tuf/roots/1.root.json").unlink()
    assert code_of(Updates, tmp_path, kit.fetch) == "metadata.no-root"
    assert kit.updates(tmp_path).load_cached(wanted).version == 1


def test_a02_state_of_another_fleet_is_worth_nothing(kit: SigningKit, tmp_path: Path) -> None:
    other = SigningKit(now=NOW)
    raw = minimal_baseline(extra="# theirs\n")
    other.publish(raw, now=NOW)
    other.updates(tmp_path).get(other.wanted("factory", 1), now=NOW)
    mine = kit.updates(tmp_path)  # our pinned root over their folder
    assert code_of(mine.load_cached, other.wanted("factory", 1)) == "metadata.signatures"
    assert mine.get(kit.wanted("factory", 1), now=NOW).version == 1


def test_leftovers_of_a_power_cut_are_cleared(kit: SigningKit, tmp_path: Path) -> None:
    kit.updates(tmp_path)
    leftover = tmp_path / "tuf/baselines/.new-abc"
    leftover.write_bytes(b"half")
    kit.updates(tmp_path)
    assert not leftover.exists()


def test_root_rotation_is_followed_from_the_pinned_root_and_offline_after_it(
    kit: SigningKit, tmp_path: Path
) -> None:
    updates = Updates(tmp_path, kit.fetch, root_metadata=kit.roots[0])
    updates.get(kit.wanted("factory", 1), now=NOW)
    new = signer()
    old = kit.targets_signers[0].public_key.keyid
    kit.rotate(lambda root: (root.revoke_key(old, "targets"), root.add_key(new.public_key, "targets"))[0])
    kit.targets_signers = [new]
    kit.publish(minimal_baseline(version=2), now=NOW + 5)
    assert updates.get(kit.wanted("factory", 2), now=NOW + 6).version == 2
    again = Updates(tmp_path, kit.fetch)
    assert [again.load_cached(kit.wanted("factory", v)).version for v in (1, 2)] == [1, 2]


def test_c01_versions_driven_to_the_end_by_a_stolen_online_key_are_undone_by_a_new_key(
    kit: SigningKit, tmp_path: Path
) -> None:
    """Fast-forward attack (TUF specification, 5.3.11)."""
    kit.freshen(1, 2**53, now=NOW)
    updates = kit.updates(tmp_path)
    updates.get(kit.wanted("factory", 1), now=NOW)
    kit.state = {n: raw for n, raw in kit.state.items() if str(2**53) not in n}
    clean = SigningKit(now=NOW)
    old = kit.online.public_key.keyid

    def replace(root: Root) -> None:
        for role in ("snapshot", "timestamp"):
            root.revoke_key(old, role)
            root.add_key(clean.online.public_key, role)

    kit.rotate(replace)
    kit.repository = clean.repository
    del kit.state["metadata/timestamp.json"]  # the state of a controller set up anew
    kit.publish(minimal_baseline(version=2), now=NOW + 60)
    assert updates.get(kit.wanted("factory", 2), now=NOW + 61, highest_version=1).version == 2


def test_a01_killed_at_any_moment_of_keeping_a_baseline_it_goes_on(tmp_path: Path) -> None:
    kit = SigningKit(now=NOW)
    kit.publish(*(minimal_baseline(version=v) for v in range(1, 12)), now=NOW)
    wanted = [kit.wanted("factory", v) for v in range(1, 12)]
    kit.updates(tmp_path).get(wanted[0], now=NOW)

    def keep_on() -> None:
        while True:
            updates = kit.updates(tmp_path)
            for one in wanted:
                updates.get(one, now=NOW)
            updates.prune([wanted[0]])
            for name in ("timestamp.json", "snapshot.json", "targets.json"):
                (tmp_path / "tuf" / name).unlink()

    for round_ in range(12):
        child = multiprocessing.get_context("fork").Process(target=keep_on)
        child.start()
        time.sleep(0.015 + 0.007 * round_)
        child.kill()
        child.join()
        updates = kit.updates(tmp_path)
        assert updates.load_cached(wanted[0]).version == 1
        for one in wanted:
            try:
                assert updates.load_cached(one).sha256 == one.sha256
            except Rejected as error:
                assert error.code == "baseline.not-kept"
        assert updates.get(wanted[-1], now=NOW).version == 11


def test_a03_full_disk_is_an_error_to_try_again_and_spoils_nothing(kit: SigningKit, tmp_path: Path) -> None:
    updates = kit.updates(tmp_path)
    updates.get(kit.wanted("factory", 1), now=NOW)
    kit.publish(minimal_baseline(version=2), now=NOW + 5)
    before = tree(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # every write beyond 100 bytes fails
    try:
        with pytest.raises(OSError, match="large"):
            updates.get(kit.wanted("factory", 2), now=NOW + 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == before
    assert updates.get(kit.wanted("factory", 2), now=NOW + 6).version == 2


class _KitFetcher(FetcherInterface):
    def __init__(self, kit: SigningKit) -> None:
        self._kit = kit

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter([self._kit.fetch(url.removeprefix("http://kit"), 2**20)])
        except FileNotFoundError:
            raise DownloadHTTPError("not here", 404) from None


def test_tufs_own_client_accepts_our_repository(tmp_path: Path) -> None:
    """An independent witness that what the controller serves is TUF, rotation included."""
    now = time.time()
    kit = SigningKit(now=now)
    kit.publish(minimal_baseline(), now=now)
    kit.rotate(lambda root: None)
    kit.publish(minimal_baseline(version=2), now=now + 1)
    updater = Updater(
        str(tmp_path),
        f"http://kit{METADATA_PATH}",
        str(tmp_path),
        f"http://kit{TARGETS_PATH}",
        fetcher=_KitFetcher(kit),
        bootstrap=kit.roots[0],
    )
    for version in (1, 2):
        info = updater.get_targetinfo(f"factory/{version}.toml")
        assert info is not None
        assert Path(updater.download_target(info)).read_bytes() == minimal_baseline(version=version)
    assert msgspec.json.decode((tmp_path / "root.json").read_bytes())["signed"]["version"] == 2
