"""A real Prometheus of Debian's package, on the loopback."""

import asyncio
import json
import math
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NAMESPACE = "chroma-mesh"
STOP_SECONDS = 10
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Target:
    """What is to be scraped: as the operator would label it, with the address of its metrics."""

    service: str
    pod: str
    address: str

    @property
    def group(self) -> dict[str, Any]:
        """As Prometheus's files of targets have it."""
        labels = {"namespace": NAMESPACE, "job": f"chroma-{self.service}", "pod": self.pod}
        return {"targets": [self.address], "labels": labels}


@dataclass(frozen=True)
class Sample:
    """A series' value, None where it is no number."""

    labels: Mapping[str, str]
    value: float | None


class Prometheus:
    """A Prometheus that runs, to be asked."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def now(self, query: str) -> list[Sample]:
        """What a query gives now."""
        data = await self._get("query", query=query)
        if data["resultType"] == "scalar":
            return [Sample({}, number(data["result"][1]))]
        return [Sample(found["metric"], number(found["value"][1])) for found in data["result"]]

    async def since(self, query: str, begin: float, end: float, *, step_seconds: float) -> list[Sample]:
        """The last number that each series of a query gave between two moments, seconds since 1970."""
        data = await self._get("query_range", query=query, start=begin, end=end, step=step_seconds)
        samples = []
        for found in data["result"]:
            numbers = [value for _, text in found["values"] if (value := number(text)) is not None]
            samples.append(Sample(found["metric"], numbers[-1] if numbers else None))
        return samples

    async def alerts(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in (await self._get("alerts"))["alerts"] if is_firing(alert)}

    async def targets(self) -> list[dict[str, Any]]:
        """The targets, with their health and the time of their last scrape."""
        return list((await self._get("targets", state="active"))["activeTargets"])

    async def rules(self) -> list[dict[str, Any]]:
        """All rules, with what their last evaluation came to."""
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def until_ready(self) -> None:
        """Returns when it answers."""
        while True:
            try:
                await asyncio.to_thread(fetch, f"http://{self.address}/-/ready")
            except (urllib.error.URLError, ConnectionError):
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return

    async def _get(self, path: str, **parameters: Any) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.loads(await asyncio.to_thread(fetch, url))["data"]


def is_firing(alert: Mapping[str, Any]) -> bool:
    """Whether it has lasted long enough."""
    return bool(alert["state"] == "firing")


def fetch(url: str) -> bytes:
    """The body of an answer; ValueError with what it said for a query that is none."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as refusal:
        if refusal.code == 503:  # it is starting
            raise
        raise ValueError(f"{url}: {refusal.read().decode()}") from None


def number(text: str) -> float | None:
    """A sample's value; None for NaN."""
    value = float(text)
    return None if math.isnan(value) else value


def is_installed() -> bool:
    """Whether there is a Prometheus here."""
    return shutil.which("prometheus") is not None


@asynccontextmanager
async def running_prometheus(
    folder: Path, targets: Sequence[Target], rules: str, *, scrape_seconds: float
) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes the targets and evaluates the rules, within the block; its data is in `folder`."""
    (folder / "rules.yaml").write_text(rules)
    (folder / "targets.json").write_text(json.dumps([target.group for target in targets]))
    every = f"{scrape_seconds * 1000:.0f}ms"
    config = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "mesh", "file_sd_configs": [{"files": ["targets.json"]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--storage.tsdb.retention.time=1d",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
        try:
            prometheus = Prometheus(address)
            ready = asyncio.create_task(prometheus.until_ready())
            ended = asyncio.create_task(process.wait())
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                ready.cancel()
                raise RuntimeError(f"Prometheus ended: {(folder / 'prometheus.log').read_text()[-2000:]}")
            ready.result()
            yield prometheus
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), STOP_SECONDS)
                except TimeoutError:
                    process.kill()
            await process.wait()
            await asyncio.gather(ended, return_exceptions=True)
