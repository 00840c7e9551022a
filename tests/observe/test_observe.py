"""A real Prometheus scrapes a real mesh under load: everything that is asked has an answer, and nothing is wrong."""

from pathlib import Path

import pytest

from tests.observe.findings import ingredients, panels, recordings
from tests.observe.prometheus import is_installed
from tests.observe.watched_mesh import moment, watched_mesh

LOAD = ("--rate", "2", "--duration", "8", "--frames", "40", "--user-seconds", "2")
RATE_SECONDS = 5.0
OF_TIME = {"ChromaFirstAudioLate", "ChromaSoundBreaksUp", "ChromaFramesLate", "ChromaQueueWait", "ChromaStageSaturated"}


async def test_a_prometheus_finds_everything_that_rules_and_boards_ask_for(tmp_path: Path) -> None:
    if not is_installed():
        pytest.skip("there is no prometheus: Debian has it in its package prometheus")
    async with watched_mesh(tmp_path) as watched:
        await watched.until_watched()
        begin = moment()
        await watched.ask_gateway()
        printed = await watched.bench(*LOAD)
        await watched.interrupt()
        await watched.until_seen()
        end = moment()
        prometheus = watched.prometheus
        assert {target["health"] for target in await prometheus.targets()} == {"up"}
        findings = [
            *await recordings(prometheus, begin, end),
            *await panels(prometheus, begin, end, rate_seconds=RATE_SECONDS),
            *await ingredients(prometheus, begin, end),
        ]
        assert [finding.name for finding in findings if finding.is_missing] == [], printed
        (parts,) = await prometheus.now("sum(chroma_orchestrator_turn_part_seconds_sum)")
        (whole,) = await prometheus.now("sum(chroma_orchestrator_first_audio_seconds_sum)")
        assert parts.value == pytest.approx(whole.value), "what the board stacks adds up to the TTFA"
        assert [rule["name"] for rule in await prometheus.rules() if rule["health"] != "ok"] == []
        # Those that go by time may fire on a machine that has too much to do.
        assert await prometheus.alerts() <= OF_TIME, printed
