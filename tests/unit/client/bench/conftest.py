"""Made-up replies, and a clock that only sleeping moves."""

from collections.abc import Callable, Sequence

import pytest

from client.bench.player import Packet
from client.bench.reply_record import ReplyRecord
from client.events import FinishReason, Timings, TurnPart

NewReply = Callable[..., ReplyRecord]


class StillClock:
    """Time that passes in sleep only, and at once."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept_until: list[float] = []

    def now(self) -> float:
        """The time."""
        return self.time

    async def sleep_until(self, moment: float) -> None:
        """Moves the time to the moment."""
        self.slept_until.append(moment)
        self.time = max(self.time, moment)


@pytest.fixture
def clock() -> StillClock:
    """A clock that stands at 1,000 s."""
    return StillClock()


@pytest.fixture
def new_reply() -> NewReply:
    """Makes a reply of packets of one frame, 0.08 s, from when they came."""

    def make(
        *seconds: float,
        seed: int = 0,
        packets: Sequence[Packet] | None = None,
        turn_ended_seconds: float = 0.0,
        lateness_seconds: float | None = None,
        step_count: int = 2,
        digest: str = "same",
    ) -> ReplyRecord:
        return ReplyRecord(
            caller_index=0,
            seed=seed,
            turn_ended_seconds=turn_ended_seconds,
            lateness_seconds=lateness_seconds,
            packets=[Packet(moment, 1, 3840) for moment in seconds] if packets is None else packets,
            frame_seconds=0.08,
            reason=FinishReason.LENGTH,
            step_count=step_count,
            timings=Timings(
                queue_seconds=0.001,
                first_step_seconds=0.010,
                first_frame_seconds=0.020,
                first_codec_audio_seconds=0.005,
                first_audio_seconds=0.035,
                total_seconds=0.5,
                parts=(
                    TurnPart("reasoner_queue", 0.001),
                    TurnPart("first_step", 0.009),
                    TurnPart("speech_queue", 0.002),
                    TurnPart("first_frame", 0.018),
                    TurnPart("decode", 0.005),
                ),
            ),
            digest=digest,
        )

    return make
