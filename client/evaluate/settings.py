"""How an evaluation is done."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a set is asked, and whose voices are compared.

    `voice` answers in the place of the set's; `temperature` and `max_frame_count` None: as the mesh does by default.
    `session_count` conversations are held at a time. `voices` is a folder with the examples of the mesh's voices; None:
    the shipped ones.
    """

    voice: str | None = None
    temperature: float | None = None
    max_frame_count: int | None = None
    session_count: int = 1
    voices: Path | None = None
