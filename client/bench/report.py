"""All that a benchmark found, for people and for machines."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from client.bench.engine_part import EnginePart
from client.bench.flatness import Flatness
from client.bench.load import LoadRecord
from client.bench.machine import Machine
from client.bench.settings import BenchSettings
from client.bench.summary import LoadSummary, Sameness, sameness, single_session, summarize_all
from client.mesh_settings import MeshSettings


@dataclass(frozen=True)
class MeasuredVoice:
    """The voice that answered: its name, the length of its example, and whether it was made for the run."""

    name: str
    example_seconds: float
    was_made: bool


@dataclass(kw_only=True)
class Report:
    """What was asked, where it ran and what came of it; filled while it runs, so that a part is there when it stops.

    `mesh` is None for a mesh that ran already at `address`. `sizes`: for how many replies at a time each service that
    says so has memory, in words.
    """

    settings: BenchSettings
    mesh: MeshSettings | None
    address: str
    command: str
    started_at: datetime
    sizes: dict[str, str] = field(default_factory=dict)
    machine: Machine | None = None
    voice: MeasuredVoice | None = None
    records: list[LoadRecord] = field(default_factory=list)
    flatness: Flatness = field(default_factory=Flatness)
    engine: EnginePart | None = None
    is_partial: bool = True

    @property
    def summaries(self) -> list[LoadSummary]:
        """The figures of the loads, in their order."""
        return summarize_all(self.records, self.settings.shape)

    @property
    def sameness(self) -> Sameness:
        """Whether the same replies had the same bytes at every load."""
        return sameness(self.records)

    @property
    def reply_count(self) -> int:
        """Replies that were counted."""
        return sum(len(record.replies) for record in self.records)

    @property
    def mesh_over_engines(self) -> "MeshOverEngines | None":
        """What the mesh costs over the engines alone; None unless both were measured."""
        alone = single_session(self.records)
        heard = [reply for reply in alone.replies if reply.packets] if alone else []
        engine_seconds = self.engine.frame_seconds if self.engine else None
        if not heard or engine_seconds is None or engine_seconds <= 0:
            return None
        return MeshOverEngines(median(reply.packets[-1].seconds / reply.frame_count for reply in heard), engine_seconds)


@dataclass(frozen=True)
class MeshOverEngines:
    """Wall time of a frame at one session: through the mesh, and with the engines called directly in one process.

    Each is the median of replies, from the end of the turn to the last sound, over their frames.
    """

    mesh_seconds: float
    engine_seconds: float

    @property
    def share(self) -> float:
        """What the mesh adds, as a share of the engines' time."""
        return self.mesh_seconds / self.engine_seconds - 1


def report_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON has it; times in seconds, sizes in bytes."""
    over = report.mesh_over_engines
    return {
        "command": report.command,
        "started_at": report.started_at.isoformat(),
        "is_partial": report.is_partial,
        "machine": plain(asdict(report.machine)) if report.machine else None,
        "mesh": {
            "address": report.address,
            "settings": plain(asdict(report.mesh)) if report.mesh else None,
            "sizes": report.sizes,
        },
        "shape": plain(asdict(report.settings.shape)),
        "voice": plain(asdict(report.voice)) if report.voice else None,
        "loads": [load_json(record, summary) for record, summary in zip(report.records, report.summaries, strict=True)],
        "sameness": plain(asdict(report.sameness)),
        "flatness": plain(asdict(report.flatness)),
        "engine": report.engine.content if report.engine else None,
        "mesh_over_engines": plain(asdict(over)) | {"share": over.share} if over else None,
    }


def load_json(record: LoadRecord, summary: LoadSummary) -> dict[str, Any]:
    """One load: its figures, then everything that they were made of."""
    content: dict[str, Any] = plain(asdict(record))
    for reply in (*content["warm_ups"], *content["replies"]):  # a column each: there are many packets
        packets = reply.pop("packets")
        for name in ("seconds", "frame_count", "byte_count"):
            reply[f"packet_{name}"] = [packet[name] for packet in packets]
    return {
        "label": record.load.label,
        "kind": type(record.load).__name__,
        "summary": plain(asdict(summary)),
        **content,
    }


def plain(value: Any) -> Any:
    """The value of what JSON knows only: enumerations by name, paths as text, numbers to six decimals."""
    match value:
        case Enum():
            return value.name
        case Path():
            return str(value)
        case float():
            return round(value, 6)
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def write_json(report: Report, path: Path) -> None:
    """Writes the whole report."""
    path.write_text(json.dumps(report_json(report), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def described(report: Report) -> Sequence[tuple[str, str]]:
    """What is to be known about a run before its figures, as label and text."""
    shape, machine = report.settings.shape, report.machine
    rows = [("command", report.command), ("started", f"{report.started_at:%Y-%m-%d %H:%M:%S %Z}")]
    if machine is not None:
        rows += described_machine(machine)
    rows.append(("mesh", described_mesh(report.mesh, report.address)))
    if report.sizes:
        rows.append(("memory", "; ".join(f"{service} {size}" for service, size in report.sizes.items())))
    rows.append(
        (
            "every reply",
            f"{shape.frame_count} frames to {shape.step_count} reasoner steps, after {shape.user_seconds:g} s of the "
            "user's speech; a session of its own, so without history; sampled as the mesh does by default",
        )
    )
    if report.voice is not None:
        made = "made for the run" if report.voice.was_made else "the mesh's"
        rows.append(
            ("voice", f"{report.voice.example_seconds:g} s, {made}; known to every stage before counting begins")
        )
    return rows


def described_machine(machine: Machine) -> list[tuple[str, str]]:
    """What figures depend on."""
    gpus = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in machine.gpus) or "no GPU"
    cores = f"{machine.core_count} cores"
    if machine.usable_core_count not in (0, machine.core_count):
        cores = f"{machine.usable_core_count} of {cores}"
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items())
    return [
        ("machine", f"{machine.cpu}, {cores}, {machine.memory_bytes / 2**30:.0f} GiB, {gpus}"),
        ("versions", f"{machine.python}, {versions}"),
    ]


def described_mesh(mesh: MeshSettings | None, address: str) -> str:
    """What was measured; None is a mesh that ran at the address already."""
    if mesh is None:
        return f"running at {address}; what it runs on and with is not known here"
    parts = [mesh.checkpoint, f"stages {mesh.placement}", f"device {mesh.device}", f"dtype {mesh.dtype}"]
    parts += [f"{name} {value}" for name, value in (("slots", mesh.slots), ("threads", mesh.threads)) if value]
    return ", ".join(parts) + "; started for the run"


def markdown(report: Report, tables_text: str) -> str:
    """The report for people, as a file."""
    partial = ["**Partial: the run was stopped before its end.**", ""] if report.is_partial else []
    rows = [f"- {label}: {f'`{text}`' if label == 'command' else text}" for label, text in described(report)]
    return "\n".join(["# Benchmark", "", *partial, *rows, "", tables_text])
