"""What the time from the end of a user turn to the reply's first sound is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from services.orchestrator.clock import Clock

Stage = Literal["reasoner", "speech", "codec"]
STAGES: tuple[Stage, ...] = get_args(Stage)

# In the order in which they happen.
PartName = Literal[
    "reasoner_lost", "reasoner_queue", "encode", "prefill", "first_step", "reasoner_hop",
    "speech_lost", "speech_queue", "voice_prefill", "first_frame", "speech_hop",
    "codec_lost", "codec_queue", "decode", "codec_hop",
    "send",
]  # fmt: skip
PART_NAMES: tuple[PartName, ...] = get_args(PartName)


@dataclass(frozen=True)
class StageParts:
    """What the parts of one stage are called; `work` is what it does itself, in order."""

    lost: PartName
    queue: PartName
    work: tuple[PartName, ...]
    hop: PartName


STAGE_PARTS: dict[Stage, StageParts] = {
    "reasoner": StageParts("reasoner_lost", "reasoner_queue", ("encode", "prefill", "first_step"), "reasoner_hop"),
    "speech": StageParts("speech_lost", "speech_queue", ("voice_prefill", "first_frame"), "speech_hop"),
    "codec": StageParts("codec_lost", "codec_queue", ("decode",), "codec_hop"),
}


@dataclass(frozen=True)
class TurnPart:
    """A part and how long it took, in seconds; 0 for one that did not happen."""

    name: PartName
    seconds: float


@dataclass
class StageMarks:
    """When the calls to a stage did what, until one gave the first output."""

    # Of the first call, and of the last.
    first_called_at: float | None = None
    called_at: float = 0.0
    opened_at: float = 0.0
    # For the slot of the last call; the longest of all calls.
    slot_seconds: float = 0.0
    longest_slot_seconds: float = 0.0
    gave_at: float | None = None
    # As the stage tells: its wait beside other streams, and its work.
    queue_seconds: float = 0.0
    work_seconds: tuple[float, ...] = ()

    def parts(self, names: StageParts, begins_at: float) -> Iterator[TurnPart]:
        """The parts from `begins_at`, when the stage had what it needed, to its first output.

        The stage's own durations are of another clock: each ends at the first output at the latest, and what they
        leave is the hop.
        """
        assert self.gave_at is not None
        left = max(0.0, self.gave_at - begins_at)

        def part(name: PartName, seconds: float) -> TurnPart:
            nonlocal left
            seconds = min(max(0.0, seconds), left)
            left -= seconds
            return TurnPart(name, seconds)

        first_called_at = max(begins_at, self.first_called_at or 0.0)
        yield part(names.lost, self.called_at - first_called_at)
        # For the reply before this one, for a slot, and beside other streams.
        for_slot = min(self.slot_seconds, max(0.0, self.opened_at - max(begins_at, self.called_at)))
        yield part(names.queue, first_called_at - begins_at + for_slot + self.queue_seconds)
        for name, seconds in zip(names.work, self.work_seconds, strict=True):
            yield part(name, seconds)
        yield part(names.hop, left)


class TurnMarks:
    """Notes, on one clock, when a reply's stages gave their first outputs and when its first sound left."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stages: dict[Stage, StageMarks] = {stage: StageMarks() for stage in STAGES}
        self._left_at: float | None = None

    def called(self, stage: Stage) -> None:
        """A call to the stage begins."""
        marks = self._stages[stage]
        if marks.gave_at is None:
            marks.called_at = self._clock.now()
            if marks.first_called_at is None:
                marks.first_called_at = marks.called_at

    def opened(self, stage: Stage, slot_seconds: float) -> None:
        """The call has a slot, for which it waited so long."""
        marks = self._stages[stage]
        marks.longest_slot_seconds = max(marks.longest_slot_seconds, slot_seconds)
        if marks.gave_at is None:
            marks.opened_at, marks.slot_seconds = self._clock.now(), slot_seconds

    def gave(self, stage: Stage, queue_seconds: float, *work_seconds: float) -> None:
        """The stage gave something; what it tells of its time, work as in STAGE_PARTS, counts with the first."""
        marks = self._stages[stage]
        if marks.gave_at is None:
            marks.gave_at = self._clock.now()
            marks.queue_seconds, marks.work_seconds = queue_seconds, work_seconds

    def left(self) -> None:
        """Sound has left; the first counts."""
        if self._left_at is None:
            self._left_at = self._clock.now()

    @property
    def left_at(self) -> float | None:
        """When the first sound left."""
        return self._left_at

    @property
    def queue_seconds(self) -> float:
        """The longest wait for a slot."""
        return max(marks.longest_slot_seconds for marks in self._stages.values())

    def gave_at(self, stage: Stage) -> float | None:
        """When the stage gave its first output."""
        return self._stages[stage].gave_at

    def parts(self, ended_at: float, left_at: float | None) -> tuple[TurnPart, ...]:
        """All parts, in order, of the time from `ended_at`, the end of the turn, until the first sound leaves.

        They add up to it. Empty for a reply without sound.
        """
        if left_at is None:
            return ()
        parts: list[TurnPart] = []
        begins_at = ended_at
        for stage, marks in self._stages.items():
            assert marks.gave_at is not None, "no sound without every stage's output"
            parts += marks.parts(STAGE_PARTS[stage], begins_at)
            begins_at = max(begins_at, marks.gave_at)
        return (*parts, TurnPart("send", max(0.0, left_at - begins_at)))
