"""Where sessions are kept so that they outlive their calls: in this process, in a file, or in Redis."""

import asyncio
import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

Value = TypeVar("Value")

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
# A store that does not answer may hold a reply up for no longer.
STORE_TIMEOUT_SECONDS = 1.0


class JournalError(Exception):
    """The store did not do what it was asked to."""


class Superseded(Exception):
    """Another call has taken the entry: this one may change it no more."""


@dataclass(frozen=True)
class Entry:
    """What is kept under a key: named fields; `fence` counts how often it was taken."""

    fence: int
    fields: Mapping[str, bytes]


class Journal(Protocol):
    """Keeps entries of named fields for a time. Whoever took an entry last may change it, and nobody else.

    All methods raise JournalError where the store fails; those with a `fence` raise Superseded where another one has
    taken the entry since.
    """

    async def write(self, key: str, fence: int, changed: Mapping[str, bytes], dropped: Iterable[str] = ()) -> None:
        """Changes the entry, at once and as a whole; it is made where there is none."""

    async def keep(self, key: str, fence: int, seconds: float | None = None) -> None:
        """Lets the entry last from now on as long as entries do, or this long."""

    async def peek(self, key: str, name: str) -> bytes | None:
        """One field of an entry."""
        ...

    async def take(self, key: str) -> Entry | None:
        """The entry, with the fence of the one who takes it; None where there is none."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """The block in which the journal can be used and forgets what has expired."""
        ...


def journal_key(token: str) -> str:
    """What a session is kept under: nobody finds the token in it."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_journal(place: str | None, *, seconds: float, limit_bytes: int) -> Journal:
    """The journal at a Redis URL or in a file; in this process's memory where nothing is said."""
    if place is not None and place.startswith(REDIS_SCHEMES):
        return RedisJournal(place, seconds=seconds)
    return SqliteJournal(None if place is None else Path(place), seconds=seconds, limit_bytes=limit_bytes)


class SqliteJournal:
    """A journal in SQLite; several processes of a machine may share a file.

    What has expired is overwritten, not only given free. A file survives the process, but it is not synchronised at
    each write: the last of them may be lost with the machine. When it would grow beyond its limit, the entries that
    would expire first are forgotten: those of the sessions that were lost first.
    """

    def __init__(
        self, path: Path | None, *, seconds: float, limit_bytes: int, now: Callable[[], float] = time.time
    ) -> None:
        """`now` is the time in seconds, the same for all who share the file."""
        self._path = path
        self._seconds = seconds
        self._limit_bytes = limit_bytes
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._database: sqlite3.Connection | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The block in which the journal can be used and forgets what has expired."""
        try:
            await self._do(self._open)
            purging = asyncio.create_task(self._purge_at_times())
            try:
                yield
            finally:
                purging.cancel()
                with suppress(asyncio.CancelledError):
                    await purging
                await self._do(self._close)
        finally:
            self._thread.shutdown()

    async def write(self, key: str, fence: int, changed: Mapping[str, bytes], dropped: Iterable[str] = ()) -> None:
        """As in Journal."""
        await self._do(lambda: self._write(key, fence, changed, tuple(dropped)))

    async def keep(self, key: str, fence: int, seconds: float | None = None) -> None:
        """As in Journal."""
        await self._do(lambda: self._keep(key, fence, self._seconds if seconds is None else seconds))

    async def peek(self, key: str, name: str) -> bytes | None:
        """As in Journal."""
        return (await self._do(lambda: self._fields(key, name))).get(name)

    async def take(self, key: str) -> Entry | None:
        """As in Journal."""
        return await self._do(lambda: self._take(key))

    async def purge(self) -> None:
        """Forgets what has expired."""
        await self._do(self._purge)

    async def _purge_at_times(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 10)
            with suppress(JournalError):  # a file that another process is busy with is there the next time
                await self.purge()

    async def _do(self, action: Callable[[], Value]) -> Value:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, action)
        except (sqlite3.Error, OSError, RuntimeError) as failure:  # the last: it is closed
            raise JournalError(str(failure)) from failure

    # All below run in the one thread.

    def _open(self) -> None:
        if self._path is not None and not self._path.exists():
            _make_file(self._path)
        self._database = _opened_database(":memory:" if self._path is None else self._path)
        self._purge()

    def _close(self) -> None:
        self._opened.close()

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._database is not None, "running() comes first"
        return self._database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._opened
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    def _fence(self, key: str) -> int | None:
        row = self._opened.execute("SELECT fence FROM entry WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def _write(self, key: str, fence: int, changed: Mapping[str, bytes], dropped: tuple[str, ...]) -> None:
        with self._transaction() as database:
            if self._fence(key) not in (None, fence):
                raise Superseded
            expires = self._now() + self._seconds
            database.execute(
                "INSERT INTO entry VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET expires = excluded.expires",
                (key, fence, expires),
            )
            database.executemany("DELETE FROM field WHERE key = ? AND name = ?", [(key, name) for name in dropped])
            database.executemany(
                "INSERT OR REPLACE INTO field VALUES (?, ?, ?)", [(key, name, data) for name, data in changed.items()]
            )

            while self._used_bytes() > self._limit_bytes:
                oldest = "DELETE FROM entry WHERE key = (SELECT key FROM entry WHERE key != ? ORDER BY expires LIMIT 1)"
                if not database.execute(oldest, (key,)).rowcount:
                    break

    def _used_bytes(self) -> int:
        page_count, free_count, page_bytes = (
            int(self._opened.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (page_count - free_count) * page_bytes

    def _keep(self, key: str, fence: int, seconds: float) -> None:
        with self._transaction() as database:
            if self._fence(key) not in (None, fence):
                raise Superseded
            database.execute("UPDATE entry SET expires = ? WHERE key = ?", (self._now() + seconds, key))

    def _fields(self, key: str, name: str | None = None) -> dict[str, bytes]:
        rows = self._opened.execute(
            "SELECT name, data FROM field JOIN entry USING (key) "
            "WHERE key = ? AND expires > ? AND (? IS NULL OR name = ?)",
            (key, self._now(), name, name),
        )
        return dict(rows.fetchall())

    def _take(self, key: str) -> Entry | None:
        with self._transaction() as database:
            fields = self._fields(key)
            if not fields:
                return None
            database.execute(
                "UPDATE entry SET fence = fence + 1, expires = ? WHERE key = ?", (self._now() + self._seconds, key)
            )
            fence = self._fence(key)
            assert fence is not None
            return Entry(fence, fields)

    def _purge(self) -> None:
        with self._transaction() as database:
            count = database.execute("DELETE FROM entry WHERE expires <= ?", (self._now(),)).rowcount
        if count and self._path is not None:
            # What was deleted is still in the log of writes.
            self._opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _opened_database(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=STORE_TIMEOUT_SECONDS, isolation_level=None)
    database.execute("PRAGMA secure_delete = ON")
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("CREATE TABLE IF NOT EXISTS entry (key TEXT PRIMARY KEY, fence INTEGER, expires REAL)")
    database.execute(
        "CREATE TABLE IF NOT EXISTS field (key TEXT REFERENCES entry ON DELETE CASCADE, name TEXT, data BLOB, "
        "PRIMARY KEY (key, name))"
    )
    return database


def _make_file(path: Path) -> None:
    """Makes a journal without entries, unless another process is faster.

    It appears as a whole: of two who turn a new file into one with a log of writes, SQLite refuses one ("database is
    locked"), and does not let it wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as made:  # 0600
        _opened_database(made.name).close()
        with suppress(FileExistsError):
            os.link(made.name, path)


# A fence that is not there yet is nobody else's.
_REDIS_WRITE = """
local held = redis.call('HGET', KEYS[1], 'fence')
if held and held ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
local dropped_count = tonumber(ARGV[3])
for i = 4, 3 + dropped_count do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 4 + dropped_count, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_REDIS_KEEP = """
local held = redis.call('HGET', KEYS[1], 'fence')
if held and held ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_REDIS_TAKE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""


class RedisJournal:
    """A journal in Redis or Valkey, for any number of orchestrators; entries are hashes `chroma:session:<key>`."""

    def __init__(self, url: str, *, seconds: float) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as missing:
            raise JournalError(
                "a journal in Redis needs the extra 'redis': pip install chroma-mesh[redis]"
            ) from missing
        self._milliseconds = round(seconds * 1000)
        self._redis: Any = Redis.from_url(
            url,
            socket_timeout=STORE_TIMEOUT_SECONDS,
            socket_connect_timeout=STORE_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
        self._write_script = self._redis.register_script(_REDIS_WRITE)
        self._keep_script = self._redis.register_script(_REDIS_KEEP)
        self._take_script = self._redis.register_script(_REDIS_TAKE)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The block in which the journal can be used; Redis itself forgets what has expired."""
        try:
            yield
        finally:
            await self._redis.aclose()

    async def write(self, key: str, fence: int, changed: Mapping[str, bytes], dropped: Iterable[str] = ()) -> None:
        """As in Journal."""
        names = [_field(name) for name in dropped]
        pairs = [it for name, data in changed.items() for it in (_field(name), data)]
        _check(await self._do(self._write_script, key, fence, self._milliseconds, len(names), *names, *pairs))

    async def keep(self, key: str, fence: int, seconds: float | None = None) -> None:
        """As in Journal."""
        milliseconds = self._milliseconds if seconds is None else round(seconds * 1000)
        _check(await self._do(self._keep_script, key, fence, milliseconds))

    async def peek(self, key: str, name: str) -> bytes | None:
        """As in Journal."""
        with _redis_failures():
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                data = await self._redis.hget(_name(key), _field(name))
        return None if data is None else bytes(data)

    async def take(self, key: str) -> Entry | None:
        """As in Journal."""
        found = await self._do(self._take_script, key, self._milliseconds)
        if found is None:
            return None
        pairs = dict(zip(found[::2], found[1::2], strict=True))
        fence = int(pairs.pop(b"fence"))
        return Entry(fence, {name.decode().removeprefix("field:"): data for name, data in pairs.items()})

    async def _do(self, script: Any, key: str, *arguments: Any) -> Any:
        with _redis_failures():
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                return await script(keys=[_name(key)], args=arguments)


def _name(key: str) -> str:
    return f"chroma:session:{key}"


def _field(name: str) -> str:
    return f"field:{name}"


def _check(was_done: int) -> None:
    if not was_done:
        raise Superseded


@contextmanager
def _redis_failures() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as failure:
        # Its message may name the server's address, but holds nothing of what was kept.
        raise JournalError(f"{type(failure).__name__}: {failure}") from failure
