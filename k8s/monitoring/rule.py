"""Rules as Prometheus evaluates them."""

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["critical", "warning"]
"""critical: listeners hear it now, somebody is woken. warning: in working hours."""

RUNBOOK = "docs/runbook.md"


def anchor(alert: str) -> str:
    """The anchor of an alert's section in the runbook."""
    return f"{RUNBOOK}#{alert.lower()}"


@dataclass(frozen=True)
class Recording:
    """A series that is computed once for all who read it."""

    record: str
    expr: str
    labels: dict[str, str] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """As a rule file has it."""
        labels = {"labels": dict(self.labels)} if self.labels else {}
        return {"record": self.record, "expr": self.expr, **labels}


@dataclass(frozen=True)
class Alert:
    """What somebody is told of once `expr` has had a value for `lasting`; `description` may use its labels."""

    name: str
    expr: str
    lasting: str
    severity: Severity
    summary: str
    description: str
    labels: dict[str, str] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """As a rule file has it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook": anchor(self.name),
            },
        }


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated one after the other, every `interval`."""

    name: str
    interval: str
    rules: tuple[Recording | Alert, ...]

    def entry(self) -> dict[str, Any]:
        """As a rule file has it."""
        return {"name": self.name, "interval": self.interval, "rules": [rule.entry() for rule in self.rules]}
