"""What steps cost, and so what a replica of each stage can carry.

On a CPU they are measured. No step was measured on a card: there they take the least that memory and arithmetic allow
for the published model, times ABOVE_FLOOR. On a CPU a frame takes 1.25 to 1.8 times its products, the reference
implementation on a card 20 times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp

ABOVE_FLOOR = 3.0
"""How many times longer than the least a step takes; an estimate."""

FRAMES_HZ = 12.5
STEPS_HZ = FRAMES_HZ / 2
FRAME_SECONDS = 1 / FRAMES_HZ
GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Card:
    """A card: bytes a second that its memory gives, and floating point operations a second that are reached."""

    name: str
    bytes_hz: float
    operations_hz: float


H100 = Card("H100", 3.35 * TERA, 300 * TERA)
L4 = Card("L4", 0.30 * TERA, 60 * TERA)


@dataclass(frozen=True)
class Work:
    """What a step of a stage reads and computes: once for all streams, and for each of them.

    `step_hz`: steps a second that a reply needs.
    """

    weights_bytes: float
    stream_bytes: float
    stream_operations: float
    step_hz: float


# The published model in bfloat16, at 1,000 positions a stream.
WORK = {
    "reasoner": Work(6.172 * GIGA, 36_864 * 1000, 6.17 * GIGA, STEPS_HZ),
    "speech": Work(3.570 * GIGA, 32_768 * 1000, 5.74 * GIGA, FRAMES_HZ),
    "codec": Work(0.160 * GIGA, 32_768 * 250, 0.43 * GIGA, FRAMES_HZ),
}
STAGES = tuple(WORK)


@dataclass(frozen=True)
class StageCost:
    """A stage's replica on a card: seconds of a step for nobody and for each stream, and how many slots it has."""

    fixed_seconds: float
    stream_seconds: float
    step_hz: float
    slot_count: int

    @classmethod
    def of(cls, work: Work, card: Card, slot_count: int) -> "StageCost":
        """From the work of a step and what the card can do."""
        stream_seconds = work.stream_bytes / card.bytes_hz + work.stream_operations / card.operations_hz
        return cls(
            ABOVE_FLOOR * work.weights_bytes / card.bytes_hz, ABOVE_FLOOR * stream_seconds, work.step_hz, slot_count
        )

    @classmethod
    def measured(cls, one_seconds: float, eight_seconds: float, *, step_hz: float) -> "StageCost":
        """From rounds of one stream and of 8, of a replica with 8 slots."""
        stream_seconds = (eight_seconds - one_seconds) / 7
        return cls(one_seconds - stream_seconds, stream_seconds, step_hz, 8)

    def step_seconds(self, stream_count: float) -> float:
        """A step of so many streams."""
        return self.fixed_seconds + self.stream_seconds * stream_count

    @property
    def most_streams(self) -> int:
        """Replies that get their steps in time: as many as one step of all of them may take before the next is due."""
        return max(0, int((1 / self.step_hz - self.fixed_seconds) / self.stream_seconds))

    def busy_share(self, stream_count: float) -> float:
        """Share of time in which a step runs, as a card's utilisation counts.

        Steps become due at random, as a Poisson process; one begins as soon as anybody's is, and takes along those that
        came meanwhile. So a card that could make ten times as many replies is hardly ever idle.
        """
        due_hz = stream_count * self.step_hz
        if not due_hz:
            return 0.0
        took = self.step_seconds(max(1.0, min(stream_count, due_hz * self.fixed_seconds)))
        load = due_hz * took
        return load * exp(min(load, 50.0)) / (load * exp(min(load, 50.0)) + 1)


@dataclass(frozen=True)
class Machine:
    """What a replica of each stage runs on."""

    name: str
    costs: Mapping[str, StageCost]


def on_card(card: Card, slot_count: int) -> Machine:
    """All stages on a card of their own, with so many slots each."""
    costs = {stage: StageCost.of(work, card, slot_count) for stage, work in WORK.items()}
    return Machine(f"{card.name}, {slot_count} slots", costs)


# Rounds of one and of 8 streams of random:small on a core, in seconds: docs/benchmarks.md, "A round of 8 slots".
ROUNDS = {"reasoner": (0.001882, 0.003077), "speech": (0.005644, 0.009125), "codec": (0.000246, 0.002235)}
CPU = Machine(
    "CPU core, random:small, 8 slots",
    {stage: StageCost.measured(*rounds, step_hz=WORK[stage].step_hz) for stage, rounds in ROUNDS.items()},
)
