"""A registry's metrics as whoever watches the service reads them."""

import asyncio
from urllib.request import urlopen

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from services.runtime.metrics import serve_metrics


async def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """Values by name, with the labels' values behind it: `name`, `name/value`."""
    return await asyncio.to_thread(_scrape, registry)


def _scrape(registry: CollectorRegistry) -> dict[str, float]:
    with serve_metrics(registry, "127.0.0.1", 0) as port, urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {"/".join((sample.name, *sample.labels.values())): sample.value for sample in samples}
