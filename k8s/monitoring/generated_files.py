"""The files that are made from the tables beside this, for Prometheus, its operator and Grafana."""

from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from k8s.monitoring.capacity import CAPACITY
from k8s.monitoring.latency import LATENCY
from k8s.monitoring.overview import OVERVIEW
from k8s.monitoring.panels import Board
from k8s.monitoring.rules import groups

BOARDS = (OVERVIEW, LATENCY, CAPACITY)
COMPONENT = Path("k8s/components/monitoring")
RULES = Path("k8s/monitoring/rules.yaml")
NOTE = "# Made by `python -P -m k8s.monitoring`; change the tables in k8s/monitoring.\n"


def generated_files() -> dict[Path, str]:
    """Their text, by path from the repository's root."""
    return {
        RULES: rule_file(),
        COMPONENT / "prometheusrule.yaml": rule_object(),
        **{COMPONENT / "dashboards" / f"{board.uid}.json": board_json(board) for board in BOARDS},
    }


def rule_file(speed: float = 1.0) -> str:
    """The rules as Prometheus reads them, every span so many times shorter."""
    return NOTE + text(rule_groups(speed))


def rule_object() -> str:
    """The rules as Prometheus's operator reads them."""
    return NOTE + text(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "chroma-mesh"},
            "spec": rule_groups(),
        }
    )


def rule_groups(speed: float = 1.0) -> dict[str, Any]:
    """The groups as plain data."""
    return {"groups": [group.entry() for group in groups(speed)]}


def text(content: dict[str, Any]) -> str:
    """YAML, in the order in which it was written."""
    return yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)


def board_json(board: Board) -> str:
    """A board as Grafana imports it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(board.built()) + "\n"
