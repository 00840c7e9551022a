"""`python -P -m tests.observe`: watches a mesh in peace, without a stage and under too much load, and prints it all."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from k8s.monitoring.rule import Alert
from k8s.monitoring.rules import groups
from tests.observe.findings import Finding, ingredients, panels, recordings
from tests.observe.prometheus import is_installed
from tests.observe.watched_mesh import SCRAPE_SECONDS, SPEED, WatchedMesh, moment, watched_mesh

PEACE = ("--rate", "1", "--duration", "30", "--frames", "50", "--user-seconds", "2")
DRILL = ("--rate", "3", "--duration", "25", "--frames", "50", "--user-seconds", "2")
# A voice of its own could not be made meanwhile: that takes a slot.
TOO_MUCH = ("--rate", "2", "--duration", "15", "--frames", "50", "--user-seconds", "2", "--voice", "ash")
RATE_SECONDS = 5.0
KILLED = "codec"
AT_THE_KILL = (
    "ChromaTargetDown",
    "ChromaServiceDown",
    "ChromaStageGone",
    "ChromaRecoveryGivenUp",
    "ChromaRepliesFail",
)
AT_TOO_MUCH = ("ChromaSessionsRefused", "ChromaNearlyFull", "ChromaStageSaturated")
DRILL_SECONDS = 120
SCRAPE_LIMIT_SECONDS = 0.05

console = Console(width=150, highlight=False)


async def observe() -> bool:
    """All of it; whether everything was as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        console.print("A mesh, its gateway and a Prometheus are starting.")
        async with watched_mesh(Path(folder)) as watched:
            console.print(
                f"Prometheus is at http://{watched.prometheus.address}; 5 minutes of rules are {300 / SPEED:g} s."
            )
            is_good = await peace(watched)
            is_good &= await drill(watched, f"{KILLED} is killed and does not come back", AT_THE_KILL, without_a_stage)
            is_good &= await drill(watched, "more calls than there is room for", AT_TOO_MUCH, too_much)
    console.print("All is as it should be." if is_good else "[bold]Not all is as it should be.[/bold]")
    return is_good


async def peace(watched: WatchedMesh) -> bool:
    """A load that the mesh carries: all has data, and nothing fires."""
    console.rule("in peace, under `chroma-mesh bench`")
    await watched.until_watched()
    begin, fired = moment(), set[str]()

    async def look() -> None:
        while True:
            fired.update(await watched.prometheus.alerts())
            await asyncio.sleep(SCRAPE_SECONDS)

    looking = asyncio.create_task(look())
    await watched.ask_gateway()
    await watched.bench(*PEACE)
    await watched.interrupt()
    await watched.until_seen()
    looking.cancel()
    end, prometheus = moment(), watched.prometheus
    durations = {
        sample.labels["pod"]: sample.value or 0.0
        for sample in await prometheus.now("quantile_over_time(0.5, scrape_duration_seconds[1m])")
    }
    targets = await prometheus.targets()
    for target in targets:
        pod = target["labels"]["pod"]
        console.print(
            f"{pod}: {target['health']}, scraped in {durations[pod] * 1000:.1f} ms in the median {target['lastError']}"
        )
    recorded = await recordings(prometheus, begin, end)
    shown = await panels(prometheus, begin, end, rate_seconds=RATE_SECONDS)
    looked_at = await ingredients(prometheus, begin, end)
    show("Recording rules", recorded)
    show("Panels", shown)
    missing = [finding.name for finding in (*recorded, *shown, *looked_at) if finding.is_missing]
    for name in missing:
        console.print(f"[bold]no data:[/bold] {name}", markup=True)
    await show_alerts(watched)
    console.print(f"fired: {', '.join(sorted(fired)) or 'none'}")
    late = [pod for pod, seconds in durations.items() if seconds > SCRAPE_LIMIT_SECONDS]
    if late:
        console.print(f"slower to scrape than {SCRAPE_LIMIT_SECONDS * 1000:g} ms: {', '.join(late)}")
    return not missing and not fired and not late and all(target["health"] == "up" for target in targets)


async def without_a_stage(watched: WatchedMesh) -> None:
    """Calls come while a stage goes, and is away."""
    load = asyncio.create_task(watched.bench(*DRILL))
    await asyncio.sleep(8)  # some replies are under way
    watched.kill(KILLED)
    await load
    await watched.until(*AT_THE_KILL[:3])
    await watched.revive(KILLED)


async def too_much(watched: WatchedMesh) -> None:
    """More calls, while all slots are taken."""
    async with watched.crowd():
        await watched.bench(*TOO_MUCH)
        await watched.until(*AT_TOO_MUCH)


async def drill(
    watched: WatchedMesh, what: str, expected: Sequence[str], happen: Callable[[WatchedMesh], Awaitable[None]]
) -> bool:
    """Lets something happen, and sees which alerts fire; afterwards all of them end."""
    console.rule(what)
    began_at, fired = time.monotonic(), dict[str, float]()

    async def look() -> None:
        while True:
            for name in await watched.prometheus.alerts():
                fired.setdefault(name, time.monotonic() - began_at)
            await asyncio.sleep(SCRAPE_SECONDS)

    looking = asyncio.create_task(look())
    try:
        async with asyncio.timeout(DRILL_SECONDS):
            await happen(watched)
    except TimeoutError:
        console.print(f"[bold]not over after {DRILL_SECONDS} s[/bold]")
    await watched.until_seen()
    looking.cancel()
    for name, seconds in sorted(fired.items(), key=lambda item: item[1]):
        console.print(f"{name} fired after {seconds:.1f} s" + ("" if name in expected else " (as well)"))
    for name in (missing := [name for name in expected if name not in fired]):
        console.print(f"[bold]did not fire:[/bold] {name}")
    return not missing


def show(title: str, findings: Sequence[Finding]) -> None:
    """What was found, one line each."""
    table = Table("", "series", "last", title=title, title_justify="left", box=None)
    for finding in findings:
        values = [f"{sample.value:.4g}" for sample in finding.samples if sample.value is not None]
        table.add_row(finding.name, str(len(finding.samples)), " ".join(values[:6]) or finding.excuse or "no data")
    console.print(table)


async def show_alerts(watched: WatchedMesh) -> None:
    """The state of each alert."""
    states = {rule["name"]: rule["state"] for rule in await watched.prometheus.rules() if rule["type"] == "alerting"}
    names = sorted({rule.name for group in groups() for rule in group.rules if isinstance(rule, Alert)})
    console.print("Alerts: " + ", ".join(f"{name} {states[name]}" for name in names))


if __name__ == "__main__":
    if not is_installed():
        sys.exit("there is no prometheus: apt-get install prometheus")
    sys.exit(0 if asyncio.run(observe()) else 1)
