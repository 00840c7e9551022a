"""What is kept of every turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import grpc

from client.bench.player import Packet, frame_intervals, played_seconds, under_run_seconds
from client.errors import MeshError
from client.events import FinishReason, Timings

REFUSALS = (grpc.StatusCode.UNAVAILABLE.name, grpc.StatusCode.RESOURCE_EXHAUSTED.name)


@dataclass(frozen=True)
class ReplyRecord:
    """A reply as its caller heard it.

    Times of `packets` are from the end of the turn: from when it was planned where a plan says when (`lateness_seconds`
    is then how late the driver was), else from just before its message was sent. `turn_ended_seconds` is that moment,
    from the start of the load. `timings` are the mesh's own. `digest` is the SHA-256 of the sound.
    """

    caller_index: int
    seed: int
    turn_ended_seconds: float
    lateness_seconds: float | None
    packets: Sequence[Packet]
    frame_seconds: float
    reason: FinishReason
    step_count: int
    timings: Timings
    digest: str

    @property
    def frame_count(self) -> int:
        """Frames that were heard."""
        return sum(packet.frame_count for packet in self.packets)

    @property
    def audio_seconds(self) -> float:
        """How long the reply is."""
        return self.frame_count * self.frame_seconds

    @property
    def first_audio_seconds(self) -> float | None:
        """TTFA; None for an empty reply."""
        return self.packets[0].seconds if self.packets else None

    @property
    def rtf_with_first_audio(self) -> float | None:
        """End of the turn → last packet, over all audio; None for an empty reply."""
        return self.packets[-1].seconds / self.audio_seconds if self.packets else None

    @property
    def rtf_without_first_audio(self) -> float | None:
        """First packet → last packet, over the audio after the first packet; None when there is none."""
        if len(self.packets) < 2:
            return None
        seconds = self.packets[-1].seconds - self.packets[0].seconds
        return seconds / ((self.frame_count - self.packets[0].frame_count) * self.frame_seconds)

    @cached_property
    def under_run_seconds(self) -> float:
        """The greatest shortfall of a player that starts at the first packet."""
        return under_run_seconds(self.packets, self.frame_seconds)

    @property
    def played_seconds(self) -> float:
        """When such a player has played all of it, from the end of the turn."""
        return played_seconds(self.packets, self.frame_seconds)

    @cached_property
    def frame_intervals(self) -> list[float]:
        """Seconds that each frame after the first packet took."""
        return frame_intervals(self.packets)


@dataclass(frozen=True)
class Failure:
    """A turn that got no whole reply; `seconds` is when, from the start of the load.

    `answer_seconds` is how long the mesh took to say so: from when its caller turned to it, or was planned to.
    """

    caller_index: int
    seed: int
    seconds: float
    answer_seconds: float
    code: str
    reason: str
    message: str
    is_warm_up: bool

    @property
    def is_refusal(self) -> bool:
        """Whether the mesh said that it has no room, rather than that something is wrong."""
        return self.code in REFUSALS and self.reason != "UNREACHABLE"

    @property
    def kind(self) -> str:
        """What happened, for counting."""
        name = self.code if self.reason == self.code else f"{self.code} {self.reason}"
        return f"{name} (warm-up)" if self.is_warm_up else name

    @classmethod
    def of(
        cls,
        error: MeshError,
        *,
        caller_index: int,
        seed: int,
        seconds: float,
        answer_seconds: float,
        is_warm_up: bool,
    ) -> "Failure":
        """What the mesh answered instead of a reply."""
        told = (error.code.name, error.reason, error.message)
        return cls(caller_index, seed, seconds, answer_seconds, *told, is_warm_up)
