"""Why calls to stages came to nothing, as it is counted."""

import pytest
from prometheus_client import CollectorRegistry

from services.orchestrator.metrics import LOSS_CAUSES, OrchestratorMetrics


@pytest.mark.parametrize(
    ("reason", "cause"),
    [("STALLED", "stalled"), ("DRAINING", "draining"), ("UNFINISHED", "gone"), ("UNAVAILABLE", "gone")],
)
def test_a_loss_is_counted_by_its_cause(reason: str, cause: str) -> None:
    registry = CollectorRegistry()
    OrchestratorMetrics(registry, session_limit=1).count_loss("speech", reason)
    name = "chroma_orchestrator_lost_calls_total"
    found = {why: registry.get_sample_value(name, {"stage": "speech", "cause": why}) for why in LOSS_CAUSES}
    assert found == {**dict.fromkeys(LOSS_CAUSES, 0), cause: 1}
