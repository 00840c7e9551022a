"""What a listener's player makes of packets that come when they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Packet:
    """One message of sound: when it came, in seconds from the end of the turn, and what it carried."""

    seconds: float
    frame_count: int
    byte_count: int


def under_run_seconds(packets: Sequence[Packet], frame_seconds: float) -> float:
    """The greatest shortfall of a player that starts at the first packet: how late a packet came at most.

    As much silence is heard in all, since a player that waited for one packet is that much later for the next.
    """
    shortfall, frames_before = 0.0, 0
    for packet in packets:
        needed_at = packets[0].seconds + frames_before * frame_seconds
        shortfall = max(shortfall, packet.seconds - needed_at)
        frames_before += packet.frame_count
    return shortfall


def played_seconds(packets: Sequence[Packet], frame_seconds: float) -> float:
    """When that player has played the last frame, in seconds from the end of the turn; 0 without packets."""
    if not packets:
        return 0.0
    audio_seconds = sum(packet.frame_count for packet in packets) * frame_seconds
    return packets[0].seconds + under_run_seconds(packets, frame_seconds) + audio_seconds


def frame_intervals(packets: Sequence[Packet]) -> list[float]:
    """Seconds a frame took, one number a frame after the first packet: a packet's wait, shared among its frames."""
    intervals: list[float] = []
    for before, packet in pairwise(packets):
        intervals += [(packet.seconds - before.seconds) / packet.frame_count] * packet.frame_count
    return intervals
