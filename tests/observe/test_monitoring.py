"""The rules, alerts and dashboards are what their tables say, and ask for what the services have."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from k8s.monitoring.generated_files import BOARDS, COMPONENT, RULES, generated_files, rule_file
from k8s.monitoring.objectives import OBJECTIVES
from k8s.monitoring.panels import Board, HeatMap, Panel
from k8s.monitoring.rule import RUNBOOK, Alert, Recording
from k8s.monitoring.rules import groups
from k8s.monitoring.spans import span
from tests.observe.known_metrics import TARGET_LABELS, known_metrics
from tests.observe.promql import asked

ROOT = Path(__file__).resolve().parents[2]
KNOWN = known_metrics()
ALL_RULES = [rule for group in groups() for rule in group.rules]
ALERTS = [rule for rule in ALL_RULES if isinstance(rule, Alert)]
NAMES = sorted({alert.name for alert in ALERTS})
QUERIES = [
    *(pytest.param(rule.expr, id=rule.record if isinstance(rule, Recording) else rule.name) for rule in ALL_RULES),
    *(
        pytest.param(query.expr, id=f"{board.uid}: {panel.title}: {query.legend}")
        for board in BOARDS
        for panel in board.panels
        for query in panel.queries
    ),
]
PANELS = [pytest.param(panel, id=f"{board.uid}: {panel.title}") for board in BOARDS for panel in board.panels]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool, where there is one."""
    if (path := shutil.which("promtool")) is None:
        pytest.skip("there is no promtool: Debian has it in its package prometheus")
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


def test_what_was_generated_is_what_the_tables_say() -> None:
    for path, content in generated_files().items():
        assert (ROOT / path).read_text() == content, f"{path}: `python -P -m k8s.monitoring` makes it anew"
    made = {path for path in generated_files() if path.parent.name == "dashboards"}
    assert {path.relative_to(ROOT) for path in (ROOT / COMPONENT / "dashboards").iterdir()} == made


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_there_is(query: str) -> None:
    asks = asked(query)
    assert asks.selectors or query == "vector(0)"
    labels = set(TARGET_LABELS)
    for selector in asks.selectors:
        assert selector.name in KNOWN, f"no service has {selector.name}"
        known = KNOWN[selector.name]
        assert selector.labels <= known.labels
        for label, value in selector.equal:
            assert label not in known.values or value in known.values[label], f"{selector.name} has no {label}={value}"
        labels |= known.labels
    assert asks.grouping <= labels


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_in_the_runbook(name: str) -> None:
    text = (ROOT / RUNBOOK).read_text()
    section = re.search(rf"^### {name}$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    for part in ("**Means**", "**Listeners**", "**Look**", "**Do**"):
        assert part in section[1]
    assert f"{RUNBOOK}#{name.lower()}" in {alert.entry()["annotations"]["runbook"] for alert in ALERTS}


def test_the_runbook_knows_no_other_alert() -> None:
    named = set(re.findall(r"\bChroma[A-Z]\w+", (ROOT / RUNBOOK).read_text()))
    assert named == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_seen_firing_and_silent(name: str) -> None:
    tests = yaml.safe_load((ROOT / "k8s/monitoring/rules.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["promql_expr_test"] if name in case["expr"]]
    assert any(case["exp_samples"] for case in cases)
    assert any(not case["exp_samples"] for case in cases)


def test_alerts_fire_and_are_silent_as_promtool_finds() -> None:
    assert (found := promtool("test", "rules", "k8s/monitoring/rules.test.yaml")).returncode == 0, found.stderr


@pytest.mark.parametrize("speed", [1.0, 30.0])
def test_promtool_takes_the_rules(speed: float, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rule_file(speed))
    assert (found := promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yaml")).returncode == 0, found.stderr


def test_promises_have_a_name_and_an_alert_each() -> None:
    assert len({objective.alert for objective in OBJECTIVES}) == len({objective.name for objective in OBJECTIVES})
    assert yaml.safe_load((ROOT / RULES).read_text())["groups"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows(panel: Panel) -> None:
    assert panel.title
    assert panel.description.endswith(".")
    assert "\n" not in panel.description
    assert panel.unit
    assert panel.limits is None or not isinstance(panel, HeatMap), "which has no limits that could be drawn"
    assert all(query.legend or len(panel.queries) == 1 for query in panel.queries)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_board_fills_its_rows_and_is_read_at_a_glance(board: Board) -> None:
    assert len(board.panels) <= 15
    for _, panels in board.rows:
        width = 0
        for panel in panels:
            width = (width + panel.width) % 24
        assert width == 0, "a row has 24 columns"
    drawn = json.loads((ROOT / COMPONENT / "dashboards" / f"{board.uid}.json").read_text())["panels"]
    for panel in drawn:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${source}"
            assert "$namespace" in target["expr"] or "ALERTS" in target["expr"]


def test_monitors_name_ports_of_pods() -> None:
    ports = {
        port["name"]
        for file in (ROOT / "k8s").glob("**/deployment.yaml")
        for container in yaml.safe_load(file.read_text())["spec"]["template"]["spec"]["containers"]
        for port in container.get("ports", [])
    }
    for folder in (COMPONENT, COMPONENT / "colocated"):
        monitor = yaml.safe_load((ROOT / folder / "podmonitor.yaml").read_text())
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert endpoint["port"] in ports


def test_spans_are_whole() -> None:
    assert [span(seconds) for seconds in (0, 0.5, 90, 300, 3600, 259_200)] == ["0s", "500ms", "90s", "5m", "1h", "3d"]
