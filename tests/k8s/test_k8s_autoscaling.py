"""Autoscalers ask for metrics that there are, and let nothing go that a listener may still hear."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.codec.metrics import CodecMetrics
from services.orchestrator.metrics import OrchestratorMetrics
from services.reasoner.metrics import ReasonerMetrics
from services.speech.metrics import SpeechMetrics
from tests.k8s.conftest import rendered
from tests.k8s.manifests import ROOT, Manifests, Object

COMPONENTS = ROOT / "k8s" / "components"
STAGES = ("reasoner", "speech", "codec")
# 3,750 frames of 80 ms.
LONGEST_REPLY_SECONDS = 300


@cache
def samples() -> dict[str, set[tuple[str, str]]]:
    """All time series that the services give, by name, with the labels that they have."""
    registry = CollectorRegistry()
    for stage in (ReasonerMetrics(registry), SpeechMetrics(registry), CodecMetrics(registry)):
        stage.slots.watch(lambda: 0, 1)
    orchestrator = OrchestratorMetrics(registry, session_limit=1)
    for name in STAGES:
        orchestrator.tell_capacity(name, 1, 1)
    found: dict[str, set[tuple[str, str]]] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            found.setdefault(sample.name, set()).update(sample.labels.items())
    return found


def check_query(query: str) -> None:
    """Refuses a query for a time series that no service gives, or for labels that it never has."""
    asked = re.findall(r"(chroma_\w+)\{([^}]*)\}", query)
    assert asked
    assert len(asked) == len(re.findall(r"chroma_\w+", query)), "each series is asked for in one namespace"
    for name, matchers in asked:
        assert name in samples(), name
        labels = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
        assert labels.pop("namespace", None) == "chroma-mesh" or "<<.LabelMatchers>>" in matchers
        assert set(labels.items()) <= samples()[name], f"{name} has no {labels}"


def queries(scaled: Object) -> Iterator[tuple[str, str]]:
    """The queries of a ScaledObject, by trigger."""
    for trigger in scaled["spec"]["triggers"]:
        if trigger["type"] == "prometheus":
            yield trigger["name"], trigger["metadata"]["query"]


def test_queries_ask_for_what_the_services_give(production: Manifests) -> None:
    for scaled in production.of("ScaledObject"):
        for _, query in queries(scaled):
            check_query(query)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_scaled_by_its_own_metrics(production: Manifests, stage: str) -> None:
    triggers = dict(queries(production.get("ScaledObject", stage)))
    assert {"sessions", "slots", "queue"} <= set(triggers)
    assert f'stage="{stage}"' in triggers.pop("sessions")
    for query in triggers.values():
        assert set(re.findall(r"chroma_([a-z]+)_", query)) == {stage}


def test_a_query_for_what_there_is_not_would_be_found() -> None:
    for query in (
        'chroma_speech_slotz{namespace="chroma-mesh"}',
        'chroma_speech_slots{namespace="elsewhere"}',
        'chroma_speech_queue_wait_seconds_bucket{namespace="chroma-mesh", le="0.026"}',
    ):
        with pytest.raises(AssertionError):
            check_query(query)


def behaviors() -> Iterator[dict[str, Any]]:
    """How each autoscaler of either kind behaves."""
    for scaled in rendered("production").of("ScaledObject"):
        yield scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for scaler in rendered("mps").of("HorizontalPodAutoscaler"):
        yield scaler["spec"]["behavior"]


def test_replicas_go_more_slowly_than_the_longest_reply() -> None:
    found = list(behaviors())
    assert len(found) == 2 * (len(STAGES) + 1)
    for behavior in found:
        down = behavior["scaleDown"]
        assert down["stabilizationWindowSeconds"] > LONGEST_REPLY_SECONDS
        assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def test_one_goes_when_the_one_before_it_has_drained(production: Manifests) -> None:
    for behavior in behaviors():
        for workload in production.ours:
            (policy,) = behavior["scaleDown"]["policies"]
            assert policy["periodSeconds"] >= workload.pod["terminationGracePeriodSeconds"]


def test_autoscalers_alone_say_how_many_replicas_there_are() -> None:
    for manifests, kind in ((rendered("production"), "ScaledObject"), (rendered("mps"), "HorizontalPodAutoscaler")):
        targets = {scaler["spec"]["scaleTargetRef"]["name"] for scaler in manifests.of(kind)}
        assert targets == {"reasoner", "speech", "codec", "gateway"}
        for workload in manifests.ours:
            assert ("replicas" in workload.manifest["spec"]) == (workload.name not in targets)


def test_without_prometheus_nothing_goes(production: Manifests) -> None:
    for stage in STAGES:
        fallback = production.get("ScaledObject", stage)["spec"]["fallback"]
        assert fallback["behavior"] == "currentReplicasIfHigher"


@pytest.mark.parametrize("component", ["autoscaling", "autoscaling-hpa"])
def test_every_threshold_and_window_has_its_reason(component: str) -> None:
    """A comment stands right above it, or above the first of several that it is about."""
    for path in (COMPONENTS / component).glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for index, line in enumerate(lines):
            if re.match(r"\s*(- type: (prometheus|cpu|Pods|External|Resource)$|stabilizationWindowSeconds:)", line):
                is_policy = re.match(r"\s*- type: Pods$", line) and "value:" in lines[index + 1]
                assert is_policy or lines[index - 1].lstrip().startswith("#"), f"{path.name}:{index + 1}"


def test_the_adapter_makes_the_metrics_that_the_plain_autoscalers_ask_for() -> None:
    rules = yaml.safe_load((COMPONENTS / "autoscaling-hpa" / "prometheus-adapter.yaml").read_text())["rules"]
    made = {kind: {rule["name"]["as"] for rule in rules[kind]} for kind in ("custom", "external")}
    asked: dict[str, set[str]] = {"custom": set(), "external": set()}
    for scaler in rendered("mps").of("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods":
                asked["custom"].add(metric["pods"]["metric"]["name"])
            elif metric["type"] == "External":
                asked["external"].add(metric["external"]["metric"]["name"])
    assert made == asked
    for rule in (*rules["custom"], *rules["external"]):
        check_query(rule["metricsQuery"])
        (series,) = re.findall(r"^chroma_\w+", rule["seriesQuery"])
        assert series in samples()


def test_components_are_in_an_overlay_or_a_variant() -> None:
    """So that all of the above was about each of them."""
    used: set[Path] = set()
    for folder in ((ROOT / "k8s" / "overlays"), Path(__file__).parent / "variants", COMPONENTS):
        for path in folder.rglob("kustomization.yaml"):
            for entry in yaml.safe_load(path.read_text()).get("components", []):
                used.add((path.parent / entry).resolve())
    assert {path.parent for path in COMPONENTS.rglob("kustomization.yaml")} <= used
