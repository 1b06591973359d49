"""Large tables: pages of 100,000 nodes and of ten million events, through the API of a running controller on SQLite."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from bench.controllers import Controllers, Member
from bench.figures import Figure, figure, percentile
from tests.parts.adminapi import AdminApi

NODES, QUICK_NODES = 100_000, 5_000
EVENTS, QUICK_EVENTS = 10_000_000, 100_000
LIMIT_S = 600.0
"""Making the rows stops after so long, and the figure says how many there are."""
_PIECE = 250_000
PAGES = 40


def run(controllers: Controllers, *, quick: bool) -> list[Figure]:
    """Fill a copy of the first one's database up to so many rows, by SQL, and read pages of it at a controller of its own."""
    with _copy(controllers) as member:
        path = str(member.folder / "ringfence.db")
        nodes = _nodes(path, QUICK_NODES if quick else NODES)
        events = _events(path, QUICK_EVENTS if quick else EVENTS)
        print(f"  {nodes} nodes, {events} events stored", flush=True)
        api = member.start(controllers.token)
        bare = _asked(api, ["/me"] * PAGES)
        figures: list[Figure] = []
        for how, query in (
            ("", ""),
            (" by last report", "&sort=last_report_at&descending=true"),
            (" by standing", "&sort=standing"),
        ):
            label = f"a page of 100 of {nodes} nodes{how}"
            figures += _figures(label, _turned(api, f"/nodes?limit=100{query}"), bare)
        for how, query in (
            ("newest first", "newest_first=true"),
            ("of a site", "newest_first=true&site=site-001"),
            ("of a node", "newest_first=true&node=sim-00051"),
            ("from the middle on", f"after={events // 2}"),
        ):
            label = f"a page of 100 of {events} events, {how}"
            figures += _figures(label, _turned(api, f"/events?limit=100&{query}"), bare)
        return [*figures, *_figures(f"counts of {nodes} nodes", _asked(api, ["/status"] * PAGES), bare)]


@contextmanager
def _copy(controllers: Controllers) -> Iterator[Member]:
    """A controller with the same keys and a copy of the database, not started yet."""
    first, member = controllers.members[0], Member(controllers.folder / "archive")
    shutil.copytree(
        first.folder, member.folder, ignore=shutil.ignore_patterns("log", "ringfence.db*", "server.*")
    )
    config = member.folder / "controller.toml"
    text = config.read_text()
    for mine, its in ((first.nodes, member.nodes), (first.admins, member.admins)):
        text = text.replace(f":{mine}", f":{its}")
    config.write_text(text)
    with (
        closing(sqlite3.connect(first.folder / "ringfence.db")) as there,
        closing(sqlite3.connect(member.folder / "ringfence.db")) as here,
    ):
        there.backup(here)
    try:
        yield member
    finally:
        member.stop()
        shutil.rmtree(member.folder)


def _opened(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=OFF")  # a copy: nothing of it must outlive a crash
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-1000000")
    return connection


def _nodes(path: str, wanted: int) -> int:
    """Copy nodes under other names and keys; returns how many there are."""
    with closing(_opened(path)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(nodes)")]
        own = {
            "node": "'more-' || printf('%06d', n) ",
            "ek_id": "printf('%064d', n)",
            "ak_name": "printf('%068d', n)",
            "certificate_sha256": "NULL",
            "next_certificate_sha256": "NULL",
            "connected": "0",
            "session_holder": "''",
            "last_report_at": "last_report_at + n * 0.001",
        }
        [there] = connection.execute("SELECT count(*) FROM nodes").fetchone()
        chosen = ", ".join(own.get(name, name) for name in columns)
        connection.execute(
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {wanted - there})"
            " , kept AS (SELECT *, row_number() OVER (ORDER BY node) - 1 AS place FROM nodes)"
            f" INSERT INTO nodes ({', '.join(columns)}) SELECT {chosen} FROM numbers JOIN kept ON place = n % {there}"
        )
        [now] = connection.execute("SELECT count(*) FROM nodes").fetchone()
        return int(now)


def _events(path: str, wanted: int) -> int:
    """Add events as nodes report them, spread over nodes and sites; returns how many there are."""
    end = time.monotonic() + LIMIT_S
    with closing(_opened(path)) as connection:
        made = 0
        while made < wanted and time.monotonic() < end:
            some = min(_PIECE, wanted - made)
            connection.execute(
                f"WITH RECURSIVE numbers(n) AS (SELECT {made + 1} UNION ALL SELECT n + 1 FROM numbers"
                f" WHERE n < {made + some})"
                " INSERT INTO events (at, stored_at, source, node, site, seq, kind, severity, summary, detail)"
                " SELECT 1.7e9 + n, 1.7e9 + n, 'agent', printf('sim-%05d', n * 7 % 10000),"
                " printf('site-%03d', n * 7 % 10000 / 50), n, 'firewall.healed', 'warning',"
                " 'table inet ringfence was changed by nft[' || n || '] and put back',"
                ' \'{"table":"inet ringfence","took_ms":"12"}\' FROM numbers'
            )
            made += some
        [now] = connection.execute("SELECT max(id) FROM events").fetchone()
        return int(now)


def _asked(api: AdminApi, paths: Iterable[str]) -> list[float]:
    """Ask one after the other; milliseconds of each."""
    took = []
    for path in paths:
        begun = time.perf_counter()
        api("GET", path)
        took.append((time.perf_counter() - begun) * 1000)
    return took


def _turned(api: AdminApi, path: str) -> list[float]:
    """Turn so many pages, cursor after cursor; milliseconds of each."""
    took: list[float] = []
    start, cursor = path, ""
    for _ in range(PAGES):
        begun = time.perf_counter()
        page = api("GET", path + cursor)
        took.append((time.perf_counter() - begun) * 1000)
        path = start.partition("&after=")[0]
        cursor = f"&cursor={page['next']}" if "next" in page else f"&after={page['after']}"
    return took


def _figures(label: str, took: list[float], bare: list[float]) -> list[Figure]:
    return [
        figure(f"{label}, p{percent}", percentile(took, percent), "ms", "GET /me", percentile(bare, percent))
        for percent in (50, 99)
    ]
