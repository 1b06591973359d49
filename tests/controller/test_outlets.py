"""Outlets with real receivers over real TLS: in order, at least once, however long they were away; and what each format says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from contract.errors import Rejected
from controller.authority import SERVER_CA_LIFETIME_S, Authority
from controller.bell import Bell
from controller.config import parse_config
from controller.delivery import Delivery
from controller.outlets import kinds, make, parse_outlets
from controller.outlets._ocsf import ocsf
from controller.outlets.cef import cef
from controller.outlets.syslog import MAX_MESSAGE_BYTES, rfc5424
from controller.outlets.webhook import sign
from controller.permissions import EVERYWHERE
from controller.records import EventView
from controller.store import Store, Transaction, events
from controller.store import outlets as rows
from tests.parts.fleets import T0

OpenStore = Callable[[], Store]
HOSTILE = 'a]b"c\\d|e=f\ng\x00<script>\u202eh'


class Receiver:
    """What a receiver got; `answers` are the HTTP statuses it gives, the last one for ever."""

    def __init__(self, answers: list[int] | None = None) -> None:
        self.answers = answers or [200]
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: Callable[[bytes], bool] = lambda body: False
        self.port = 0

    @property
    def ids(self) -> list[int]:
        """Ids of the events in the batches that were taken, in order."""
        return [e["id"] for body in self.bodies for e in json.loads(body)["events"]]

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if self.refuse(body):
            status = 422
        if status == 200:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
        return web.Response(status=status)


class Pki:
    """An authority and a server certificate for localhost, in files."""

    def __init__(self, folder: Path) -> None:
        authority = Authority.new("receivers", time.time(), SERVER_CA_LIFETIME_S)
        certificate, key = authority.issue_server(["localhost", "127.0.0.1"], time.time())
        from cryptography.hazmat.primitives import serialization as s

        self.folder = folder
        (folder / "ca.pem").write_bytes(authority.pem)
        (folder / "server.pem").write_bytes(
            certificate.public_bytes(s.Encoding.PEM)
            + key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        )
        (folder / "secret").write_text("correct horse\n")
        (folder / "secret").chmod(0o600)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(folder / "server.pem")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@contextlib.asynccontextmanager
async def listening(receiver: Receiver, pki: Pki, port: int = 0) -> AsyncIterator[Receiver]:
    app = web.Application()
    app.router.add_post("/in", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=pki.context)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def happened(store: Store, count: int, *, severity: str = "warning", summary: str = "x") -> list[int]:
    def job(tx: Transaction) -> list[int]:
        before = events.last_id(tx, EVERYWHERE)
        for n in range(count):
            events.add(tx, "firewall.healed", severity, f"{summary} {n}", now=T0 + n, node="n1", site="s1")  # type: ignore[arg-type]
        return list(range(before + 1, events.last_id(tx, EVERYWHERE) + 1))

    return await store.run(job)


def settings(kind: str, **keys: object) -> object:
    table = {"name": "soc", "kind": kind, "timeout_s": 5.0, **keys}
    return parse_outlets([table], text="", file="controller.toml", code="config")[0]


def delivery(store: Store, pki: Pki, kind: str, **keys: object) -> Delivery:
    wanted = settings(kind, **keys)
    return Delivery(store, Bell(), wanted, make(wanted, pki.folder))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def going(*deliveries: Delivery) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in deliveries]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in done), done


async def until(true: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.02)


def hook(port: int, **keys: object) -> dict[str, object]:
    return {"url": f"https://localhost:{port}/in", "ca": "ca.pem", "secret_file": "secret", **keys}


async def test_a_webhook_gets_everything_in_order_signed_and_in_batches(
    open_store: OpenStore, pki: Pki
) -> None:
    store = open_store()
    wanted = await happened(store, 25)
    async with (
        listening(Receiver(), pki) as receiver,
        going(delivery(store, pki, "webhook", **hook(receiver.port, batch=10))),
    ):
        await until(lambda: len(receiver.ids) == 25)
    assert receiver.ids == wanted
    assert [len(json.loads(body)["events"]) for body in receiver.bodies] == [10, 10, 5]
    for body, headers in zip(receiver.bodies, receiver.headers, strict=True):
        stamp = headers["X-Ringfence-Timestamp"]
        assert abs(int(stamp) - time.time()) < 60
        assert headers["X-Ringfence-Signature"] == sign("correct horse", stamp, body)
        assert headers["X-Ringfence-Signature"] != sign("another", stamp, body)


async def test_a_receiver_that_was_away_gets_everything_in_order_when_it_is_back(
    open_store: OpenStore, pki: Pki
) -> None:
    store = open_store()
    async with listening(Receiver(), pki) as receiver:
        port = receiver.port
    wanted = await happened(store, 30)
    back = Receiver(answers=[503, 500, 200])
    async with going(delivery(store, pki, "webhook", **hook(port, batch=7))):
        failing = await wait_row(store, lambda row: row.failing_since is not None)
        assert failing.cursor == 0 and failing.why
        wanted += await happened(store, 5)
        async with listening(back, pki, port):
            await until(lambda: set(wanted) <= set(back.ids))
    told = [id_ for id_ in back.ids if id_ in wanted]
    assert told == wanted, "in order, once each"
    kinds_ = [
        e.kind
        for e in await store.run(
            lambda tx: events.read(tx, after=0, limit=100, node=None, scope=EVERYWHERE, order="up")
        )
    ]
    assert kinds_.count("outlet.failing") == 1, "one word for one outage, however many tries"
    assert "outlet.recovered" in kinds_


async def wait_row(store: Store, true: Callable[[rows.OutletRow], bool]) -> rows.OutletRow:
    deadline = time.monotonic() + 30
    while True:
        row = await store.run(lambda tx: rows.load(tx, "soc"))
        if row is not None and true(row):
            return row
        assert time.monotonic() < deadline, row
        await asyncio.sleep(0.02)


async def test_what_is_refused_for_good_is_laid_aside_and_stops_nobody(
    open_store: OpenStore, pki: Pki
) -> None:
    store = open_store()
    wanted = await happened(store, 9)
    bad = wanted[4]
    receiver = Receiver()
    receiver.refuse = lambda body: any(e["id"] == bad for e in json.loads(body)["events"])
    async with (
        listening(receiver, pki),
        going(delivery(store, pki, "webhook", **hook(receiver.port, batch=9))),
    ):
        await until(lambda: len(receiver.ids) == 8)
    assert receiver.ids == [id_ for id_ in wanted if id_ != bad]
    letters = await store.run(lambda tx: rows.dead(tx, "soc", after=0, limit=10))
    assert [(letter.event, letter.why) for letter in letters] == [(bad, "HTTP 422")]


async def test_a_restart_goes_on_where_it_was_and_two_controllers_send_once(
    open_store: OpenStore, pki: Pki
) -> None:
    store, other = open_store(), open_store()
    wanted = await happened(store, 12)
    async with listening(Receiver(), pki) as receiver:
        keys = hook(receiver.port, batch=5)
        async with going(delivery(store, pki, "webhook", **keys)):
            await wait_row(
                store, lambda row: row.cursor >= wanted[-1]
            )  # or the last batch comes twice, as it may
        wanted += await happened(store, 20)
        async with going(delivery(store, pki, "webhook", **keys), delivery(other, pki, "webhook", **keys)):
            await until(lambda: len(receiver.ids) >= 32)
            await asyncio.sleep(0.5)
    assert receiver.ids == wanted


async def test_events_below_the_least_severity_are_passed_over(open_store: OpenStore, pki: Pki) -> None:
    store = open_store()
    await happened(store, 5, severity="info")
    [wanted] = await happened(store, 1, severity="critical")
    async with (
        listening(Receiver(), pki) as receiver,
        going(delivery(store, pki, "webhook", **hook(receiver.port, least="critical"))),
    ):
        await until(lambda: receiver.ids == [wanted])


async def test_a_receiver_that_another_authority_vouches_for_gets_nothing(
    open_store: OpenStore, pki: Pki, tmp_path: Path
) -> None:
    store = open_store()
    await happened(store, 1)
    (tmp_path / "other").mkdir()
    other = Pki(tmp_path / "other")
    async with (
        listening(Receiver(), other) as receiver,
        going(delivery(store, pki, "webhook", **hook(receiver.port))),
    ):
        row = await wait_row(store, lambda row: row.failing_since is not None)
    assert receiver.bodies == []
    assert "correct horse" not in row.why


async def test_syslog_is_framed_and_resent_after_a_broken_connection(open_store: OpenStore, pki: Pki) -> None:
    store = open_store()
    got: list[bytes] = []
    open_ones: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
            while True:
                length = int((await reader.readuntil(b" "))[:-1])
                got.append(await reader.readexactly(length))
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=pki.context)
    port = server.sockets[0].getsockname()[1]
    ids = await happened(store, 7, summary=HOSTILE)
    async with going(delivery(store, pki, "syslog", host="localhost", port=port, ca="ca.pem", batch=3)):
        await until(lambda: len(got) == 7)
        server.close()
        for writer in open_ones:
            writer.transport.abort()
        ids += await happened(store, 2)
        await wait_row(store, lambda row: row.failing_since is not None or row.cursor >= ids[-1])
        server = await asyncio.start_server(take, "127.0.0.1", port, ssl=pki.context)
        await until(lambda: set(ids) <= {int(message.split(b" ")[4]) for message in got})
    server.close()
    for message in got:
        assert re.match(rb"<10[0-9]>1 \S+Z \S+ ringfence \d+ [!-~]+ \[ringfence@32473 ", message), message


async def test_a_file_takes_lines_and_may_be_moved_away(
    open_store: OpenStore, pki: Pki, tmp_path: Path
) -> None:
    store = open_store()
    await happened(store, 3, summary=HOSTILE)
    file = tmp_path / "events.jsonl"
    async with going(delivery(store, pki, "ocsf_file", path="events.jsonl")):
        await wait_row(store, lambda row: row.delivered == 3)
        file.rename(tmp_path / "old")
        await happened(store, 2)
        await wait_row(store, lambda row: row.delivered == 5)
    lines = [json.loads(line) for path in (tmp_path / "old", file) for line in path.read_text().splitlines()]
    assert [each["metadata"]["event_code"] for each in lines] == ["firewall.healed"] * 5


async def test_a03_a_file_on_a_full_disk_gets_no_half_line(open_store: OpenStore, pki: Pki) -> None:
    store = open_store()
    await happened(store, 1)
    async with going(delivery(store, pki, "ocsf_file", path="/dev/full")):
        row = await wait_row(store, lambda row: row.failing_since is not None)
    assert row.cursor == 0


def event(**changes: object) -> EventView:
    fields: dict[str, object] = {
        "id": 7, "at": 1_700_000_000.125, "stored_at": 1_700_000_001.0, "source": "agent", "node": "press-1", "site": "lyon",
        "seq": 3, "kind": "firewall.healed", "severity": "critical", "summary": HOSTILE, "detail": {"k": "v"}, **changes,
    }  # fmt: skip
    return msgspec.convert(fields, EventView)


def test_c12_hostile_text_stays_inside_its_field_in_syslog() -> None:
    message = rfc5424(event(node='x"] evil="1\n'), 13, "host name").decode()
    assert message.startswith("<106>1 2023-11-14T22:13:20.125000Z host_name ringfence 7 firewall.healed [")
    head, _, _ = message.partition("] \ufeff")
    assert head.endswith('source="agent"')
    assert 'node="x\\"\\] evil=\\"1 "' in head
    assert "\n" not in message
    assert len(rfc5424(event(summary="é" * 20_000), 13, "h")) <= MAX_MESSAGE_BYTES
    rfc5424(event(summary="é" * 20_000), 13, "h").decode()


def test_c12_hostile_text_stays_inside_its_field_in_cef() -> None:
    head, _, extension = cef(event()).partition("rt=")
    assert re.split(r"(?<!\\)\|", head)[:2] == ["CEF:0", "Ringfence"]
    assert len(re.split(r"(?<!\\)\|", head)) == 8
    assert "\n" not in extension and "msg=a]b" in extension and "e\\=f" in extension


def test_ocsf_has_what_its_classes_demand() -> None:
    finding, base = ocsf(event()), ocsf(event(severity="info"))
    for found in (finding, base):
        for key in (
            "class_uid",
            "category_uid",
            "activity_id",
            "type_uid",
            "time",
            "severity_id",
            "metadata",
        ):
            assert key in found
        assert found["type_uid"] == found["class_uid"] * 100 + found["activity_id"]  # type: ignore[operator]
    assert (finding["class_uid"], finding["severity_id"], base["class_uid"]) == (2004, 5, 0)
    assert finding["finding_info"]["uid"] == "7"  # type: ignore[index]


CONFIG = """
node_url = "https://localhost:1"
admin_url = "https://localhost:2"
[nodes]
listen = "[::]:1"
[admins]
listen = "[::]:2"
[[outlet]]
name = "soc"
kind = "webhook"
url = "https://soc.example/in"
secret_file = "s"
"""


@pytest.mark.parametrize(
    ("find", "replace", "told"),
    [
        (
            'kind = "webhook"',
            'kind = "carrier-pigeon"',
            r":10: outlet\[0\].kind: expected one of: cef, ocsf_file",
        ),
        ("https://soc", "http://soc", r":11"),
        ("secret_file", "secret", r":12"),
        ('name = "soc"', "", r"name"),
        ("https://soc", "https://user:pass@soc", r":11"),
    ],
)
def test_a09_a_wrong_outlet_is_refused_with_file_line_and_key(find: str, replace: str, told: str) -> None:
    assert parse_config(CONFIG.encode()).outlet
    with pytest.raises(Rejected, match=told):
        parse_config(CONFIG.replace(find, replace).encode())


def test_c14_a_secret_that_others_may_read_is_refused(pki: Pki) -> None:
    (pki.folder / "secret").chmod(0o644)
    with pytest.raises(Rejected, match=r"outlet\.secret"):
        make(settings("webhook", **hook(1)), pki.folder)  # type: ignore[arg-type]


def test_each_kind_is_one_file() -> None:
    assert list(kinds()) == ["cef", "ocsf_file", "ocsf_http", "syslog", "webhook"]


def test_alert_rules_and_dashboard_name_only_figures_that_there_are() -> None:
    from controller.metrics import Metrics
    from controller.outlet_records import OutletView
    from controller.records import FleetCounts

    counts = FleetCounts(
        nodes={"healthy": 1}, connected=1, sites=1, sites_isolated=0, incidents_open=0,
        incidents_needing_a_person=0, enrolments_waiting=0, last_event=1,
    )  # fmt: skip
    outlet = OutletView(
        name="soc", kind="cef", delivered=1, delivered_at=None, behind=3, failing_since=1.0, attempts=1, next_at=2.0,
        why="x", dead_letters=2,
    )  # fmt: skip
    exposed = Metrics().text(counts, [outlet]).decode()
    assert 'ringfence_outlet_behind{outlet="soc"} 3.0' in exposed
    there = set(re.findall(r"^# TYPE (\w+) ", exposed, re.M)) | set(re.findall(r"^(\w+)[{ ]", exposed, re.M))
    folder = Path(__file__).resolve().parents[2] / "packaging/monitoring"
    for name in ("alerts.yaml", "grafana.json"):
        named = set(re.findall(r"\bringfence_\w+", (folder / name).read_text()))
        assert named - {n + "_bucket" for n in there} <= there, name
    json.loads((folder / "grafana.json").read_text())
