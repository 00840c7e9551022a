"""Every journal keeps the same promises."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from glob import glob
from pathlib import Path

import pytest

from services.orchestrator.journal import (
    Entry,
    Journal,
    JournalError,
    RedisJournal,
    SqliteJournal,
    Superseded,
    journal_key,
    new_journal,
)

KEY = journal_key("a token")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of the tests' own."""
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "socket"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "ready to accept connections" in line.lower():
                    break
            yield f"unix://{path}"
        finally:
            process.terminate()


@asynccontextmanager
async def opened(place: str | None) -> AsyncIterator[Journal]:
    journal = new_journal(place, seconds=60, limit_bytes=2**30)
    async with journal.running():
        yield journal


@pytest.fixture(params=["memory", "file", "redis"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    places = {"memory": lambda: None, "file": lambda: str(tmp_path / "journal")}
    place = request.getfixturevalue("redis_url") if request.param == "redis" else places[request.param]()
    async with opened(place) as it:
        yield it
        await it.keep(KEY, (taken.fence if (taken := await it.take(KEY)) else 0), 0.001)


async def test_what_was_written_last_is_taken(journal: Journal) -> None:
    assert await journal.take(KEY) is None
    await journal.write(KEY, 0, {"a": b"1", "b": bytes(range(256)), "c": b""})
    await journal.write(KEY, 0, {"a": b"2"}, dropped=["c", "never there"])
    assert await journal.peek(KEY, "a") == b"2"
    assert await journal.peek(KEY, "c") is None
    assert await journal.take(KEY) == Entry(1, {"a": b"2", "b": bytes(range(256))})


async def test_who_took_an_entry_last_is_the_only_one_to_change_it(journal: Journal) -> None:
    await journal.write(KEY, 0, {"a": b"1"})
    taken = await journal.take(KEY)
    assert taken is not None
    with pytest.raises(Superseded):
        await journal.write(KEY, 0, {"a": b"older"})
    with pytest.raises(Superseded):
        await journal.keep(KEY, 0)
    await journal.write(KEY, taken.fence, {"b": b"newer"})
    await journal.keep(KEY, taken.fence)
    again = await journal.take(KEY)
    assert again == Entry(taken.fence + 1, {"a": b"1", "b": b"newer"})


async def test_two_who_share_a_place_have_one_journal(tmp_path: Path) -> None:
    place = str(tmp_path / "journal")
    async with opened(place) as one, opened(place) as two:
        await one.write(KEY, 0, {"a": b"1"})
        taken = await two.take(KEY)
        assert taken == Entry(1, {"a": b"1"})
        with pytest.raises(Superseded):
            await one.write(KEY, 0, {"a": b"2"})


async def test_many_who_open_a_new_file_at_once_share_it(tmp_path: Path) -> None:
    for index in range(20):
        place = str(tmp_path / f"journal-{index}")
        async with AsyncExitStack() as stack:
            journals = await asyncio.gather(*(stack.enter_async_context(opened(place)) for _ in range(6)))
            await journals[0].write(KEY, 0, {"a": b"1"})
            assert [await journal.peek(KEY, "a") for journal in journals] == [b"1"] * len(journals)
    assert glob(str(tmp_path / "*.*")) == []  # no unfinished file is left


async def test_what_was_in_a_file_outlives_the_process(tmp_path: Path) -> None:
    place = str(tmp_path / "journal")
    async with opened(place) as one:
        await one.write(KEY, 0, {"a": b"1"})
    async with opened(place) as two:
        assert await two.take(KEY) == Entry(1, {"a": b"1"})


async def test_nothing_is_kept_longer_than_its_time_nor_left_in_the_file(tmp_path: Path) -> None:
    now, secret = [1000.0], b"what somebody has said " * 1000
    path = tmp_path / "journal"
    journal = SqliteJournal(path, seconds=10, limit_bytes=2**30, now=lambda: now[0])
    async with journal.running():
        await journal.write(KEY, 0, {"turn": secret})
        assert path.stat().st_mode & 0o077 == 0
        now[0] += 9
        await journal.keep(KEY, 0)
        now[0] += 9
        assert await journal.peek(KEY, "turn") == secret
        now[0] += 1
        assert await journal.peek(KEY, "turn") is None
        assert await journal.take(KEY) is None
        await journal.purge()
        assert not [file for file in map(Path, glob(f"{tmp_path}/*")) if b"somebody" in file.read_bytes()]


async def test_beyond_its_limit_what_would_expire_first_is_forgotten() -> None:
    now = [1000.0]
    journal = SqliteJournal(None, seconds=1000, limit_bytes=2_000_000, now=lambda: now[0])
    async with journal.running():
        for index in range(10):
            now[0] += 1
            await journal.write(str(index), 0, {"turn": bytes(400_000)})
            await journal.keep("0", 0)
        kept = [index for index in range(10) if await journal.peek(str(index), "turn") is not None]
    assert kept == [0, 7, 8, 9]


async def test_a_store_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"no database at all " * 100)
    with pytest.raises(JournalError):
        async with opened(str(tmp_path / "journal")):
            pass
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        journal = RedisJournal(f"redis://127.0.0.1:{unused.getsockname()[1]}/0", seconds=1)
        async with journal.running():
            with pytest.raises(JournalError):
                await journal.take(KEY)


def test_the_token_is_not_what_it_is_kept_under() -> None:
    assert "a token" not in KEY
    assert len(KEY) == 64
