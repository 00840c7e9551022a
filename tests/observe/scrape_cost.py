"""`python -P -m tests.observe.scrape_cost`: what it costs a mesh under load to be scraped ten times a second.

Windows with and without scrapes take turns, in pairs of which one or the other comes first, by a fixed seed; the mean
time between two frames of the speech stage, by its own count, is compared within each pair.
"""

import asyncio
import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from client.connection import Mesh, connect
from client.mesh_settings import Device, MeshSettings
from client.session_settings import SessionSettings
from client.supervisor import RunningMesh, running_mesh
from tests.contract.scraped_metrics import scraped_at

SESSIONS = 4
FRAMES = 250
SCRAPES_PER_SECOND = 10
DEPLOYED_SECONDS = 15.0
"""Between two scrapes, as k8s/components/monitoring has it."""

WINDOW_SECONDS = 1.5
PAIRS = 80
SEED = 7
SAMPLES = 10_000
INTERVAL = "chroma_speech_frame_interval_seconds"


@dataclass(frozen=True)
class Window:
    """What a stretch of time was like: the mean time between two frames, in seconds, and frames a second."""

    interval_seconds: float
    frame_rate: float


async def talk(mesh: Mesh, seed: int) -> None:
    """Asks, without end; replies are made as fast as they can be."""
    for turn in itertools.count():
        settings = SessionSettings(seed=SESSIONS * turn + seed, max_frame_count=FRAMES, ahead_seconds=math.inf)
        async with mesh.open_session(settings) as session:
            await session.send_text("Speak until I stop you.")
            await session.end_turn()
            async for _ in session.reply():
                pass


async def scrape(address: str, every_seconds: float, durations: list[float]) -> None:
    """Reads a service's metrics, without end; `durations` gets the seconds that each scrape took."""
    host, _, port = address.rpartition(":")
    due = time.perf_counter()
    while True:
        begin = time.perf_counter()
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"GET /metrics HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.0 200")
        writer.close()
        await writer.wait_closed()
        durations.append(time.perf_counter() - begin)
        due += every_seconds
        await asyncio.sleep(max(0, due - time.perf_counter()))


async def window(mesh: RunningMesh, *, is_scraped: bool, durations: list[float]) -> Window:
    """A stretch of time, with scrapes or without."""
    speech = mesh.services["speech"].metrics_address
    before, began_at = await scraped_at(speech), time.perf_counter()
    scrapes = [
        asyncio.create_task(scrape(service.metrics_address, 1 / SCRAPES_PER_SECOND, durations))
        for service in mesh.services.values()
        if is_scraped
    ]
    await asyncio.sleep(WINDOW_SECONDS)
    for task in scrapes:
        task.cancel()
    await asyncio.gather(*scrapes, return_exceptions=True)
    after, seconds = await scraped_at(speech), time.perf_counter() - began_at
    count = after[f"{INTERVAL}_count"] - before[f"{INTERVAL}_count"]
    return Window((after[f"{INTERVAL}_sum"] - before[f"{INTERVAL}_sum"]) / count, count / seconds)


def change(scraped: Sequence[float], alone: Sequence[float]) -> str:
    """How much more the first are, pair by pair, with a 95 % interval from resampled pairs; and as deployed."""
    logs = np.log(np.array(scraped) / np.array(alone))
    picks = np.random.default_rng(SEED).integers(0, len(logs), (SAMPLES, len(logs)))
    mean, low, high = np.exp([logs.mean(), *np.quantile(logs[picks].mean(axis=1), (0.025, 0.975))]) - 1
    share = 1 / (SCRAPES_PER_SECOND * DEPLOYED_SECONDS)
    return (
        f"{mean:+.1%} ({low:+.1%} to {high:+.1%}); "
        f"of a scrape in {DEPLOYED_SECONDS:g} s {mean * share:+.3%} ({low * share:+.3%} to {high * share:+.3%})"
    )


async def measure(checkpoint: str) -> None:
    """All of it, printed."""
    settings = MeshSettings(checkpoint=checkpoint, device=Device.CPU, threads=1, slots=SESSIONS, http_port=0)
    choices = np.random.default_rng(SEED).integers(0, 2, PAIRS)
    durations: list[float] = []
    windows: dict[bool, list[Window]] = {True: [], False: []}
    async with running_mesh(settings, log=lambda *_: None) as running, connect(running.address) as mesh:
        talks = [asyncio.create_task(talk(mesh, index)) for index in range(SESSIONS)]
        await window(running, is_scraped=True, durations=[])
        for choice in choices:
            for is_scraped in (bool(choice), not choice):
                windows[is_scraped].append(await window(running, is_scraped=is_scraped, durations=durations))
                for task in talks:
                    if task.done():
                        task.result()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
    scraped, alone = windows[True], windows[False]
    mean_ms = np.mean([one.interval_seconds for one in alone]) * 1000
    took = np.quantile(durations, (0.5, 0.99, 1)) * 1000
    Console(width=150, highlight=False).print(
        f"{checkpoint}, {SESSIONS} sessions, {PAIRS} pairs of {WINDOW_SECONDS:g} s; "
        f"{len(running.services)} services scraped {SCRAPES_PER_SECOND} times a second each\n"
        f"a scrape takes {took[0]:.1f} ms in the median, {took[1]:.1f} in the 99th percentile, {took[2]:.1f} at most\n"
        f"between two frames: {mean_ms:.2f} ms without scrapes, with them "
        f"{change([one.interval_seconds for one in scraped], [one.interval_seconds for one in alone])}\n"
        f"frames a second: {np.mean([one.frame_rate for one in alone]):.0f} without scrapes, with them "
        f"{change([one.frame_rate for one in scraped], [one.frame_rate for one in alone])}"
    )


if __name__ == "__main__":
    asyncio.run(measure(sys.argv[1] if len(sys.argv) > 1 else "random:tiny"))
