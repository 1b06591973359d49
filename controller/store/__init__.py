"""The one way to the database: SQLite by default, PostgreSQL by URL.

One thread owns one connection. Jobs that wait together share one transaction (group commit), so a thousand
reports a second cost far fewer than a thousand commits. When one of them fails, the transaction is rolled back
and each is run again alone: so a job must be a function of the database only, and must bear being run twice.

A job returns its result, or raises; to record something *and* refuse, it returns `Refused(Rejected)`, which
is committed and then raised to the caller: hostile input cannot break up a group.

What isolates is urgent: it goes before everything that waits, and a group that is being worked through ends early for it, with
what was done so far.

SQLite runs with WAL and synchronous=FULL: an acknowledged event is deleted by the agent, and an isolation must
outlive a power cut, so a commit must be on the disk; group commit is what makes that cheap.

Refuses to do: decide anything. Relies on: SQLAlchemy Core and Alembic, which nothing outside this package imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol, TypeVar, cast

import alembic.command
import alembic.config
import psycopg
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.abc import Buffer
from psycopg.types.string import StrDumper
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from contract.errors import Rejected
from controller.store import notices

T = TypeVar("T")
Transaction = Connection

GROUP_JOBS = 128
"""So many jobs share a transaction at most: bounds what one failing job makes the others repeat."""
DEADLOCK_ATTEMPTS = 5
QUEUE_JOBS = 20_000
"""Past this the store refuses at once instead of promising answers that nobody waits for any more."""
_CACHE = "cache_size=-16384"
"""16 MiB, where SQLite's own 2 do not hold the rows of some thousand nodes."""
_OWN_SQLSTATES = ("40",)
"""Of one transaction, not of the server: serialisation failures and deadlocks."""
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


class StoreUnavailable(Exception):
    """The database did not answer: nothing was stored. Try again.

    `for_all`: it is the connection or the disk, not this one transaction (a deadlock).
    """

    def __init__(self, detail: str, *, for_all: bool = True) -> None:
        super().__init__(detail)
        self.for_all = for_all


class Duplicate(Exception):
    """A UNIQUE constraint refused a row. Use cases turn it into their own Rejected."""


class Refused:
    """A job's result that says: commit what I wrote, then raise this to the caller."""

    __slots__ = ("rejected",)

    def __init__(self, rejected: Rejected) -> None:
        self.rejected = rejected


class Terms(Protocol):
    """On what terms the transactions of one request are carried out: see `under`."""

    def on(self, fn: Callable[[Transaction], object]) -> Callable[[Transaction], object]:
        """Return `fn` with what the terms add to it, in the same transaction. Called for each job, in their order."""


_terms: ContextVar[Terms | None] = ContextVar("ringfence.store.terms", default=None)


@contextlib.contextmanager
def under(terms: Terms) -> Iterator[None]:
    """Every `Store.run` of this task within the block is on these terms. Tasks that it starts inherit them, for good."""
    before = _terms.set(terms)
    try:
        yield
    finally:
        _terms.reset(before)


def rehearsed(fn: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
    """Return a job that does what `fn` does, answers as it does, and leaves nothing of it in the transaction."""

    def rehearse(tx: Transaction) -> T:
        held, attempt = notices.held(tx), tx.begin_nested()
        try:
            return fn(tx)
        finally:
            attempt.rollback()
            notices.put_back(tx, held)

    return rehearse


class _Job:
    __slots__ = ("fn", "future", "loop")

    def __init__(
        self,
        fn: Callable[[Transaction], object],
        future: asyncio.Future[object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.fn = fn
        self.future = future
        self.loop = loop


class _TextDumper(StrDumper):
    """PostgreSQL's text holds no NUL, and a node may tell of one: it becomes the sign for what cannot be shown."""

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))


def engine_of(url: str, *, begin: str = "BEGIN IMMEDIATE") -> Engine:
    """Return an engine; `begin` is how SQLite's transactions begin. Raises Rejected `store.url`."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        # isolation_level None: BEGIN is ours, so that it can be BEGIN IMMEDIATE (no upgrade deadlock between programs).
        engine = sqlalchemy.create_engine(
            parsed, connect_args={"isolation_level": None, "check_same_thread": False, "timeout": 10}
        )

        @sqlalchemy.event.listens_for(engine, "connect")
        def _pragmas(raw: object, _record: object) -> None:
            cursor = raw.cursor()  # type: ignore[attr-defined]
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                "busy_timeout=10000",
                _CACHE,
            ):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @sqlalchemy.event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine
    if parsed.get_backend_name() == "postgresql":
        engine = sqlalchemy.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=1,
            # A statement that hangs must not hold every session for ever.
            connect_args={
                "connect_timeout": 5,
                "options": "-c statement_timeout=30000 -c lock_timeout=10000",
            },
        )

        @sqlalchemy.event.listens_for(engine, "connect")
        def _no_nul(raw: psycopg.Connection[object], _record: object) -> None:
            raw.adapters.register_dumper(str, _TextDumper)

        return engine
    raise Rejected("store.url", f"{parsed.get_backend_name()}: wanted sqlite or postgresql")


def migrate(url: str) -> None:
    """Bring the database to the newest schema; creates it where it is empty. Raises StoreUnavailable."""
    engine = engine_of(url)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            _check_known(connection, ScriptDirectory.from_config(config))
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
    except (OperationalError, InterfaceError) as error:
        raise StoreUnavailable(str(error.orig)) from error
    finally:
        engine.dispose()


def _check_known(connection: Connection, scripts: ScriptDirectory) -> None:
    """Refuse a schema from after this program. Running processes go on over it: migrations only add."""
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise Rejected(
            "store.newer",
            f"the database is of schema {found}, this program knows {scripts.get_current_head()} at most:"
            " install the version that the other controllers have",
        )


class Store:
    """A thread with a connection. `run` from any event loop; `close` waits for what was queued."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy has it: `sqlite:////var/lib/ringfence/ringfence.db`, `postgresql://user@host/name`.

        Raises Rejected `store.url`. The schema must be there: call `migrate` first.
        """
        self.identity = secrets.token_hex(8)
        """This controller among those over one database: a process, not a machine."""
        self.url = url
        self._engine = engine_of(url)
        self._driver = self._engine.dialect.loaded_dbapi
        self._connection: Connection | None = None
        self._news = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._urgent: deque[_Job] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    async def run(self, fn: Callable[[Transaction], T | Refused], *, urgent: bool = False) -> T:
        """Run `fn` in a transaction, on the terms that hold here, and return its result once that is on the disk.

        Where it is `urgent`, before all that waits.

        Raises what `fn` raises (nothing is stored then), the Rejected of a `Refused` (what it wrote is stored),
        and StoreUnavailable.
        """
        terms = _terms.get()
        return cast(T, await self.look(fn if terms is None else terms.on(fn), urgent=urgent))

    async def look(self, fn: Callable[[Transaction], T | Refused], *, urgent: bool = False) -> T:
        """As `run`, on no terms: for a job that only reads, or writes what is no part of any act."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        with self._news:
            if self._closed:
                raise StoreUnavailable("closed")
            if not urgent and len(self._waiting) > QUEUE_JOBS:
                raise StoreUnavailable("too many jobs are waiting")
            (self._urgent if urgent else self._waiting).append(_Job(fn, future, loop))
            self._news.notify()
        result = await future
        if isinstance(result, Refused):
            raise result.rejected
        return cast(T, result)

    def run_sync(self, fn: Callable[[Transaction], T | Refused]) -> T:
        """As `run`, for programs without an event loop (`init`)."""
        return asyncio.run(self.run(fn))

    def close(self) -> None:
        """Finish what is queued, then close the connection. Safe to call twice."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while jobs := self._next_jobs():
            self._settle(jobs)
        self._drop_connection()
        self._engine.dispose()

    def _next_jobs(self) -> list[_Job]:
        """Wait for something to do; nothing when it is closed and all is done."""
        with self._news:
            while not (self._urgent or self._waiting or self._closed):
                self._news.wait()
            queue = self._urgent or self._waiting
            return [queue.popleft() for _ in range(min(len(queue), GROUP_JOBS))]

    def _settle(self, jobs: list[_Job]) -> None:
        if len(jobs) > 1:
            try:
                results = self._transact(jobs)
            except StoreUnavailable as error:
                if error.for_all:
                    # Each of them would wait for the same dead connection in turn.
                    for job in jobs:
                        _deliver(job, None, error)
                    return
            except BaseException:  # noqa: S110  (an outermost place: each runs alone below and tells its own caller)
                pass
            else:
                self._put_back(jobs[len(results) :])
                for job, result in zip(jobs, results, strict=False):
                    _deliver(job, result, None)
                return
        for number, job in enumerate(jobs):
            if number and self._urgent:
                self._put_back(jobs[number:])
                return
            try:
                result = self._alone(job)
            except BaseException as error:  # (an outermost place: it goes to the caller)
                _deliver(job, None, error)
            else:
                _deliver(job, result, None)

    def _put_back(self, jobs: list[_Job]) -> None:
        with self._news:
            self._waiting.extendleft(reversed(jobs))

    def _alone(self, job: _Job) -> object:
        # Two controllers that isolate in one site at once wait for each other's rows; PostgreSQL ends one of them.
        for _ in range(DEADLOCK_ATTEMPTS - 1):
            try:
                return self._transact([job])[0]
            except StoreUnavailable as error:
                if error.for_all:
                    raise
        return self._transact([job])[0]

    def _transact(self, jobs: list[_Job]) -> list[object]:
        """Return the results of the jobs; of the first of them only, where something urgent has come meanwhile."""
        try:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._engine.connect()
            notices.begin(connection)
            with connection.begin():
                results: list[object] = []
                for job in jobs:
                    results.append(job.fn(connection))
                    if self._urgent:
                        break
                notices.send(connection, self.identity)
                return results
        except DBAPIError as error:
            raise self._said(error.orig) or error from error
        except self._driver.Error as error:
            raise self._said(error) or error from error

    def _said(self, error: BaseException | None) -> Exception | None:
        """Return what a driver's error means to a caller; None where it is a bug of ours."""
        if isinstance(error, self._driver.IntegrityError):
            return Duplicate(str(error))
        if not isinstance(error, (self._driver.OperationalError, self._driver.InterfaceError)):
            return None
        own = str(getattr(error, "sqlstate", None) or "").startswith(_OWN_SQLSTATES)
        if not own:
            self._drop_connection()
        return StoreUnavailable(str(error), for_all=not own)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _deliver(job: _Job, result: object, error: BaseException | None) -> None:
    def settle() -> None:
        if job.future.cancelled():
            return
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop was closed while we worked: nobody waits any more
        return
