"""A service's metrics as whoever watches it reads them."""

import asyncio
from urllib.request import urlopen

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from services.runtime.metrics import serve_metrics


async def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """Values by name, with the labels' values behind it: `name`, `name/value`."""
    with serve_metrics(registry, "127.0.0.1", 0) as port:
        return await scraped_at(f"127.0.0.1:{port}")


async def scraped_at(address: str) -> dict[str, float]:
    """The same of a service that serves its metrics at host:port."""
    return await asyncio.to_thread(_scrape, address)


def _scrape(address: str) -> dict[str, float]:
    with urlopen(f"http://{address}/metrics") as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {"/".join((sample.name, *sample.labels.values())): sample.value for sample in samples}
