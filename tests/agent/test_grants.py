"""What a grant may open, and when: decisions, and the books over restarts, full disks and changed clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import grants
from agent.firewall import nft as nft_rules
from agent.firewall import tables
from agent.firewall.model import Local
from agent.firewall.section import OutboundRule, Zone
from agent.firewall.section import Section as FirewallSection
from agent.grants import Bounds, Clock, bounded, due
from agent.probes.access import Network, Section, Usb
from agent.spool import Spool
from agent.store import Store
from contract.errors import Rejected
from contract.grant import Access, Grant
from tests.agent.grantrun import RULES, VENDOR_PORT, grant
from tests.agent.rig import Rig, in_own_namespace, nft
from tests.agent.test_hold import until
from tests.parts.signing import minimal_baseline

NOW = 1_700_000_000.0
ZONES = {"vendor": Zone(addresses=["198.51.100.0/24", "2001:db8:7::/48"], interfaces=["uplink0"])}
SECTION = Section(
    network=[
        Network(
            name="ssh",
            direction="in",
            zone="vendor",
            protocol="tcp",
            ports=[22, "8000-8010"],
            max_s=3600,
            reason="remote service",
        )
    ],
    usb=[Usb(ids=["0781:5581"], interfaces=["08:*:*"], max_s=600, reason="a stick")],
)
BOUNDS = Bounds(SECTION, ZONES)
PEER = ("198.51.100.7",)


def ask(seconds: float = 600, **more: object) -> Grant:
    """A grant that fits, but for what is said otherwise."""
    fitting: dict[str, object] = {"peers": PEER, "ports": (22,), "starts": NOW}
    return grant(seconds, **{**fitting, **more})  # type: ignore[arg-type]


def code_of(wanted: Grant, bounds: Bounds = BOUNDS) -> str:
    """Why it is refused; empty when it is not."""
    try:
        bounded(wanted, bounds)
    except Rejected as refused:
        return refused.code
    return ""


def test_what_fits_is_opened_as_the_baseline_says() -> None:
    opened = bounded(ask(peers=("198.51.100.0/25", "2001:db8:7:1::/64"), ports=(22, 8004)), BOUNDS)
    (port,) = opened.ports
    assert (port.inbound, port.protocol, port.ports) == (True, "tcp", (22, 8004))
    assert port.interfaces == ("uplink0",), "the zone's interfaces hold for the grant too"


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (ask(ports=(23,)), "grant.beyond"),
        (ask(ports=(22, 23)), "grant.beyond"),
        (ask(peers=("198.51.101.1",)), "grant.beyond"),
        (ask(peers=("198.51.100.7", "10.0.0.1")), "grant.beyond"),
        (ask(peers=("198.51.0.0/16",)), "grant.beyond"),
        (ask(peers=("0.0.0.0/0",)), "grant.beyond"),
        (ask(peers=("::/0",)), "grant.beyond"),
        (ask(3601), "grant.too-long"),
        (ask(601, usb=["0781:5581"]), "grant.too-long"),
        (ask(usb=["0781:5582"]), "grant.beyond"),
        (ask(accounts=["vendor"]), "grant.beyond"),
        (ask(doors=["cage-2"]), "grant.beyond"),
        (ask(requested_by="boss"), "grant.one-person"),
    ],
)
def test_a07_a_grant_beyond_the_signed_baseline_is_refused_whole(wanted: Grant, code: str) -> None:
    assert code_of(wanted) == code


def test_a07_without_an_access_section_nothing_is_granted() -> None:
    assert code_of(ask(), Bounds(None, ZONES)) == "grant.unbounded"
    assert code_of(ask(), Bounds(Section(), ZONES)) == "grant.beyond"
    assert code_of(ask(), Bounds(SECTION, {})) == "grant.beyond"


def test_another_direction_or_protocol_is_beyond() -> None:
    for changed in ({"direction": "out"}, {"protocol": "udp"}):
        opening = msgspec.structs.replace(ask().access.openings[0], **changed)
        wanted = msgspec.structs.replace(ask(), access=Access(openings=[opening]))
        assert code_of(wanted) == "grant.beyond"


@given(
    peers=st.lists(
        st.sampled_from(
            [
                "198.51.100.0/24",
                "198.51.100.9",
                "198.51.96.0/20",
                "2001:db8:7::/48",
                "2001:db8:6::1",
                "0.0.0.0/1",
            ]
        ),
        min_size=1,
        max_size=6,
    ),
    ports=st.lists(st.sampled_from([21, 22, 23, 7999, 8000, 8010, 8011, 65535]), min_size=1, max_size=6),
    seconds=st.sampled_from([1, 3599, 3600, 3601, 86400]),
)
def test_c16_nothing_is_opened_that_is_not_inside(peers: list[str], ports: list[int], seconds: int) -> None:
    good = (
        set(peers) <= {"198.51.100.0/24", "198.51.100.9", "2001:db8:7::/48"}
        and set(ports) <= {22, 8000, 8010}
        and seconds <= 3600
    )
    assert (code_of(ask(seconds, peers=tuple(peers), ports=tuple(ports))) == "") is good


# -- time ------------------------------------------------------------------------------------------------


def opened(wanted: Grant, at: Clock, kept: grants.Kept | None = None) -> tuple[bool, grants.Kept]:
    """Whether it is open, and the record of it."""
    (one,) = due([wanted], {} if kept is None else {wanted.id: kept}, BOUNDS, "normal", at)
    return one.opened is not None, grants.running(one.kept, at.boottime_s)


def test_a_grant_waits_opens_and_ends() -> None:
    wanted = ask(600, starts=NOW + 60)
    is_open, kept = opened(wanted, Clock(NOW, 1000.0, "b"))
    assert not is_open
    assert opened(wanted, Clock(NOW, 1059.9, "b"), kept)[0] is False
    assert opened(wanted, Clock(NOW, 1060.0, "b"), kept)[0] is True
    assert opened(wanted, Clock(NOW, 1659.9, "b"), kept)[0] is True
    assert opened(wanted, Clock(NOW, 1660.0, "b"), kept)[0] is False


def test_a04_a_clock_that_is_set_does_not_lengthen_a_grant() -> None:
    wanted = ask(600)
    _, kept = opened(wanted, Clock(NOW, 1000.0, "b"))
    for now in (NOW - 365 * 86400, NOW + 365 * 86400):
        assert opened(wanted, Clock(now, 1599.0, "b"), kept)[0] is True
        assert opened(wanted, Clock(now, 1600.0, "b"), kept)[0] is False


def test_a04_after_a_reboot_a_grant_opens_for_no_longer_than_was_left() -> None:
    wanted = ask(600)
    _, kept = opened(wanted, Clock(NOW, 1000.0, "b"))
    _, kept = opened(wanted, Clock(NOW + 400, 1400.0, "b"), kept)
    year = 365 * 86400.0
    for now, left in ((NOW + 430, 170.0), (NOW - year, 200.0), (NOW + year, 0.0)):
        (one,) = due([wanted], {1: kept}, BOUNDS, "normal", Clock(now, 5.0, "c"))
        assert one.kept.ends_s == pytest.approx(5.0 + left)


def test_a04_a_clock_behind_the_controllers_last_word_is_not_believed() -> None:
    at = grants.clock(NOW - 3600.0, NOW + 500.0, 1000.0, "b")
    (one,) = due([ask(600)], {}, BOUNDS, "normal", at)
    assert one.kept.ends_s == pytest.approx(1100.0)


def test_a07_what_stands_under_an_id_never_changes() -> None:
    _, kept = opened(ask(600), Clock(NOW, 1000.0, "b"))
    longer = ask(3000)
    (one,) = due([longer], {1: kept}, BOUNDS, "normal", Clock(NOW, 1000.0, "b"))
    assert one.opened is None
    assert one.refused is not None
    assert one.refused.code == "grant.changed"


def test_nothing_is_open_in_isolation_and_it_comes_back_for_what_is_left() -> None:
    _, kept = opened(ask(600), Clock(NOW, 1000.0, "b"))
    (one,) = due([ask(600)], {1: kept}, BOUNDS, "isolated", Clock(NOW, 1010.0, "b"))
    assert (one.opened, one.why) == (None, "isolated")
    assert opened(ask(600), Clock(NOW, 1599.0, "b"), one.kept)[0] is True


def test_a04_renewing_the_addresses_of_names_gives_no_grant_more_time() -> None:
    zone = msgspec.structs.replace(ZONES["vendor"], names=["vendor.example"])
    section = FirewallSection(
        zones={"vendor": zone},
        outbound=[OutboundRule(zone="vendor", protocol="tcp", ports=[443], reason="updates")],
    )
    around = SimpleNamespace(controller=(), fenced=(), grants=(bounded(ask(), BOUNDS),))
    here = Local(names={"vendor.example": (("203.0.113.9", 60),)})
    rules = nft_rules.rules(section, "normal", around, here)
    assert "grant1_0_peers4" in rules.text()
    renewal = tables.renewal(rules.tables)
    assert "203.0.113.9" in renewal
    assert "grant" not in renewal


# -- the whole machine side ------------------------------------------------------------------------------


class Held:
    """A running agent with the grants' baseline in force."""

    def __init__(self, folder: Path, *, store: type[Store] = Store, max_bytes: int = 1024 * 1024) -> None:
        self.rig = Rig(folder, store=store, spool_max_bytes=max_bytes)
        self.rig.start()
        self.rig.adopt(minimal_baseline("factory", 1, extra=RULES), 1, 1)
        self.wanted = self.rig.kit.wanted("factory", 1)
        self.number = 1

    def direct(self, *some: Grant, **more: object) -> None:
        """The next directive, with these grants."""
        self.number += 1
        self.rig.direct(self.rig.signed(self.number, wanted=self.wanted, grants=list(some), **more))  # type: ignore[arg-type]

    def events(self, kind: str) -> list[dict[str, str]]:
        """Details of the events of a kind."""
        return [event.detail for event in self.rig.events() if event.kind == kind]


def table() -> str:
    return nft("list", "table", "inet", "ringfence")


def held(folder: Path, job: Callable[[Held], None]) -> None:
    def inside() -> None:
        made = Held(folder)
        try:
            job(made)
        finally:
            made.rig.stop()

    in_own_namespace(inside)


def test_a_grant_is_told_when_it_opens_closes_and_is_revoked(tmp_path: Path) -> None:
    def job(made: Held) -> None:
        epoch = table().split("ct mark set")[1].splitlines()[0]
        made.direct(grant(1.5, number=7), grant(300, number=8))
        assert "grant7_0_peers4" in table()
        assert f"{VENDOR_PORT}" in table()
        assert table().split("ct mark set")[1].splitlines()[0] == epoch, "no other flow is judged again"
        opened = made.events("grant.opened")
        assert [each["grant"] for each in opened] == ["7", "8"]
        assert (opened[0]["company"], opened[0]["evidence"]) == ("Press Works", "contract 4711")
        until(lambda: "grant7_" not in table(), 6)
        assert [each["why"] for each in made.events("grant.closed")] == ["ended"]
        made.direct()
        assert "grant8_" not in table()
        assert [each["why"] for each in made.events("grant.closed")] == ["ended", "revoked"]
        assert "firewall.healed" not in made.rig.kinds(), "an end is no drift"
        assert "firewall.drift" not in made.rig.kinds()

    held(tmp_path, job)


def test_a07_a_grant_beyond_the_baseline_is_refused_once_and_told(tmp_path: Path) -> None:
    def job(made: Held) -> None:
        beyond, good = grant(300, number=3, ports=(22,)), grant(300, number=4)
        made.direct(beyond, good)
        time.sleep(2.5)
        made.direct(beyond, good)
        assert "grant3_" not in table()
        assert "grant4_" in table(), "one that is refused takes no other with it"
        refused = made.events("grant.refused")
        assert [(each["grant"], each["code"]) for each in refused] == [("3", "grant.beyond")]

    held(tmp_path, job)


def test_a07_the_same_id_with_other_content_is_closed(tmp_path: Path) -> None:
    def job(made: Held) -> None:
        first = grant(300)
        made.direct(first)
        made.direct(msgspec.structs.replace(first, ends=first.ends + 600))
        assert "grant1_" not in table()
        assert [each["code"] for each in made.events("grant.refused")] == ["grant.changed"]

    held(tmp_path, job)


def test_isolation_closes_grants_and_no_other_posture_opens_more(tmp_path: Path) -> None:
    def job(made: Held) -> None:
        first = grant(300)
        made.direct(first)
        made.direct(first, posture="isolated")
        assert "grant1_" not in table()
        assert "grant1_" not in nft("list", "ruleset")
        assert [each["why"] for each in made.events("grant.closed")] == ["isolated"]
        made.direct(first, posture="maintenance")
        assert "grant1_" in table()

    held(tmp_path, job)


def test_a_baseline_without_access_closes_what_is_open(tmp_path: Path) -> None:
    def job(made: Held) -> None:
        made.direct(grant(300))
        assert "grant1_" in table()
        without = RULES.partition("[access]")[0]
        wanted = made.rig.publish(minimal_baseline("factory", 2, extra=without), 2)
        made.rig.direct(made.rig.signed(3, wanted=wanted, grants=made.rig.loop.hold.state.directive.grants))  # type: ignore[union-attr]
        made.rig.fetch(wanted)
        until(lambda: "grant1_" not in table(), 5)
        assert [each["code"] for each in made.events("grant.refused")] == ["grant.unbounded"]

    held(tmp_path, job)


class FullStore(Store):
    """A disk that takes nothing once `full` is set."""

    full = False

    def save_state(self, state: object) -> None:
        if FullStore.full:
            raise OSError(28, "No space left on device")
        super().save_state(state)  # type: ignore[arg-type]


def test_a_grant_opens_and_ends_on_a_full_disk(tmp_path: Path) -> None:
    def inside() -> None:
        made = Held(tmp_path, store=FullStore)
        try:
            FullStore.full = True
            made.direct(grant(1.5))
            assert "grant1_" in table()
            until(lambda: "grant1_" not in table(), 6)
        finally:
            FullStore.full = False
            made.rig.stop()

    in_own_namespace(inside)


def test_what_is_not_acknowledged_is_still_there_after_a_restart(tmp_path: Path) -> None:
    def job(made: Held) -> None:
        made.direct(grant(300))
        made.rig.stop()
        made.rig.start()
        assert "grant1_" in table()
        assert len(made.events("grant.opened")) == 1, "it was open all the time"
        spool = Spool(Path(made.rig.config.state_dir) / "spool", "press-1", max_bytes=10**6, now=time.time())
        assert "grant.opened" in [event.kind for event in spool.peek(1000, 10**6)]

    held(tmp_path, job)


def test_c16_types_refuse_what_names_nothing() -> None:
    encoded = msgspec.json.encode(ask())
    assert msgspec.json.decode(encoded, type=Grant) == ask()
    raw = msgspec.json.decode(encoded)
    opening = raw["access"]["openings"][0]
    for change in (
        {"access": {}},
        {"access": {"openings": [{**opening, "peers": []}]}},
        {"access": {"openings": [{**opening, "ports": []}]}},
        {"access": {"openings": [{**opening, "ports": [0]}]}},
        {"access": {"openings": [{**opening, "peers": ["vendor.example"]}]}},
        {"access": {"openings": [{**opening, "peers": ["198.51.100.7/24"]}]}},
        {"access": {"openings": [{**opening, "peers": ["fe80::1%eth0"]}]}},
        {"approved_by": []},
        {"ends": raw["starts"]},
        {"ends": raw["starts"] + 366 * 86400},
        {"who": "a\nb"},
        {"who": ""},
        {"id": 0},
        {"extra": 1},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode({**raw, **change}), type=Grant, strict=True)
