"""All that an evaluation found, for people and for machines."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from client.bench.machine import Machine
from client.bench.report import described_machine, described_mesh, plain
from client.evaluate.evaluation_set import EvaluationSet
from client.evaluate.examination import Answer
from client.evaluate.judgement import Judgement
from client.evaluate.requirement import Requirement
from client.evaluate.scores import Judged, Scores, scores_by_group
from client.evaluate.settings import EvaluationSettings
from client.mesh_settings import MeshSettings


@dataclass(kw_only=True)
class Report:
    """What was asked, where it ran and what came of it; filled while it runs, so that a part is there when it stops.

    `mesh` is None for a mesh that ran already at `address`. `voices` are those that could be told from each other.
    """

    settings: EvaluationSettings
    asked: EvaluationSet
    mesh: MeshSettings | None
    address: str
    command: str
    started_at: datetime
    requirements: tuple[Requirement, ...] = ()
    machine: Machine | None = None
    voices: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)

    @property
    def is_partial(self) -> bool:
        """Whether not everything was asked."""
        return len(self.judged) < self.asked.question_count

    @property
    def scores(self) -> Mapping[str | None, Scores]:
        """The scores of each group, and under None those of all."""
        return scores_by_group(self.judged, self.asked.groups)

    @property
    def shortfalls(self) -> list[str]:
        """What is missing of what was required."""
        found = self.scores
        missing = [requirement.shortfall(found) for requirement in self.requirements]
        return [it for it in missing if it is not None]


def report_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON has it; times in seconds."""
    found = report.scores
    content: dict[str, Any] = {
        "command": report.command,
        "started_at": report.started_at.isoformat(),
        "is_partial": report.is_partial,
        "machine": asdict(report.machine) if report.machine else None,
        "mesh": {"address": report.address, "settings": asdict(report.mesh) if report.mesh else None},
        "set": {
            "name": report.asked.name,
            "conversation_count": len(report.asked.conversations),
            "question_count": report.asked.question_count,
            "sentence_count": len(report.asked.sentences),
        },
        "settings": asdict(report.settings),
        "requirements": [asdict(requirement) for requirement in report.requirements],
        "voices": report.voices,
        "scores": asdict(found[None]),
        "groups": {group: asdict(found[group]) for group in report.asked.groups},
        "shortfalls": report.shortfalls,
        "turns": [turn_json(answer, judgement) for answer, judgement in report.judged],
    }
    cleaned: dict[str, Any] = plain(content)
    return cleaned


def turn_json(answer: Answer, judgement: Judgement) -> dict[str, Any]:
    """One question with what came of it."""
    question, reply = answer.question, answer.reply
    return {
        "index": answer.index,
        "conversation_index": answer.conversation_index,
        "turn_index": answer.turn_index,
        "group": answer.question.group,
        "voice_name": answer.voice,
        "source": "text" if isinstance(question.content, str) else question.content.name,
        "asked": question.asked,
        "expected": question.answer,
        "reference_seconds": question.reference_seconds,
        "failure": answer.failure,
        "text": reply.ended.text if reply else None,
        "reason": reply.ended.reason if reply else None,
        "audio_seconds": reply.audio_seconds if reply else None,
        "frame_count": reply.ended.frame_count if reply else None,
        "step_count": reply.ended.step_count if reply else None,
        "ttfa_seconds": reply.first_audio_seconds if reply else None,
        "rtf": reply.rtf if reply else None,
        "judgement": asdict(judgement),
    }


def json_text(report: Report) -> str:
    """The whole report as a JSON file has it."""
    return json.dumps(report_json(report), ensure_ascii=False, indent=1) + "\n"


def described(report: Report) -> list[tuple[str, str]]:
    """What is to be known about a run before its figures, as label and text."""
    settings, asked = report.settings, report.asked
    rows = [("command", report.command), ("started", f"{report.started_at:%Y-%m-%d %H:%M:%S %Z}")]
    if report.machine is not None:
        rows += described_machine(report.machine)
    rows.append(("mesh", described_mesh(report.mesh, report.address)))
    rows.append(("set", f"{asked.name}: {asked.question_count} questions in {len(asked.conversations)} conversations"))
    temperature = "the mesh's temperature" if settings.temperature is None else f"temperature {settings.temperature:g}"
    rows.append(("replies", f"{temperature}, seed by question, {settings.session_count} at a time"))
    return rows
