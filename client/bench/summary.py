"""The figures of a load: how the times of its replies are spread, and what they amount to together."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from client.bench.load import ClosedLoop, LoadRecord
from client.bench.reply_record import ReplyRecord
from client.bench.shape import ReplyShape


@dataclass(frozen=True)
class Spread:
    """How numbers are spread; percentiles are by nearest rank, so they are numbers that occurred."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    maximum: float


@dataclass(frozen=True)
class FirstAudioParts:
    """Where the time to the first audio went on average, in seconds: the mesh's parts by name, in order, and `rest`.

    All add up to `total`. `rest` is what the mesh did not see: the wire and the client; in an open loop also the
    opening of the session and the driver's lateness.
    """

    mesh: dict[str, float]
    rest: float
    total: float


@dataclass(frozen=True)
class LoadSummary:
    """The figures of a load; None where no reply gave one. Latencies are in seconds from the end of the turn.

    `ttft` and `ttff` are the mesh's own, `ttfa` is the caller's. `continuity_50` and `continuity_100` (C50, C100) are
    the shares of the `continuity_count` replies of two packets or more whose under-run is at most 50 and 100 ms.
    `refusal` is how long callers who were refused waited to be told so. `seconds_per_frame` is wall time over all
    frames; `speed_up` is frames a second over those at one session.
    """

    turn_count: int
    reply_count: int
    empty_count: int
    short_count: int
    short_text_count: int
    refusals: dict[str, int]
    errors: dict[str, int]
    refusal: Spread | None
    ttft: Spread | None
    ttff: Spread | None
    ttfa: Spread | None
    first_audio_parts: FirstAudioParts | None
    frame_interval: Spread | None
    under_run: Spread | None
    continuity_count: int
    continuity_50: float | None
    continuity_100: float | None
    first_packet_frames: Spread | None
    first_packet_bytes: Spread | None
    rtf_with_first_audio: Spread | None
    rtf_without_first_audio: Spread | None
    audio_seconds: float
    wall_seconds: float
    audio_seconds_per_second: float | None
    frames_per_second: float | None
    seconds_per_frame: float | None
    most_replies_at_once: int
    lateness: Spread | None
    speed_up: float | None = None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least of ascending numbers that at least `percent` of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(numbers: Iterable[float | None]) -> Spread | None:
    """The spread of numbers, without those that are None; None of none."""
    ordered = sorted(number for number in numbers if number is not None)
    if not ordered:
        return None
    p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
    return Spread(len(ordered), math.fsum(ordered) / len(ordered), p50, p95, p99, ordered[-1])


def mean(numbers: Sequence[float]) -> float:
    """The mean of one or more numbers."""
    return math.fsum(numbers) / len(numbers)


def continuity(replies: Sequence[ReplyRecord], limit_seconds: float) -> float | None:
    """The share of replies of two packets or more with at most so much under-run; None of none."""
    split = [reply for reply in replies if len(reply.packets) >= 2]
    return mean([float(reply.under_run_seconds <= limit_seconds) for reply in split]) if split else None


def first_audio_parts(replies: Sequence[ReplyRecord]) -> FirstAudioParts | None:
    """Where the time to the first audio went; None when no reply had any."""
    heard = [(reply.timings, reply.packets[0].seconds) for reply in replies if reply.packets]
    if not heard:
        return None
    seconds: dict[str, list[float]] = {}
    for timings, _ in heard:
        for part in timings.parts:
            seconds.setdefault(part.name, []).append(part.seconds)
    return FirstAudioParts(
        mesh={name: math.fsum(of_part) / len(heard) for name, of_part in seconds.items()},
        rest=mean([whole - math.fsum(part.seconds for part in timings.parts) for timings, whole in heard]),
        total=mean([whole for _, whole in heard]),
    )


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """How many spans of time overlap at most; one that begins as another ends does not overlap it."""
    changes = sorted((moment, change) for begin, end in spans for moment, change in ((begin, 1), (end, -1)))
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def summarize(record: LoadRecord, shape: ReplyShape) -> LoadSummary:
    """The figures of one load, by itself."""
    replies = record.replies
    heard = [reply for reply in replies if reply.packets]
    frame_count = sum(reply.frame_count for reply in replies)
    audio_seconds = math.fsum(reply.audio_seconds for reply in replies)
    was_working = frame_count > 0 and record.wall_seconds > 0
    return LoadSummary(
        turn_count=record.load.turn_count,
        reply_count=len(replies),
        empty_count=len(replies) - len(heard),
        short_count=sum(reply.frame_count < shape.frame_count for reply in replies),
        short_text_count=sum(
            reply.step_count < shape.spoken_step_count and reply.frame_count == shape.frame_count for reply in replies
        ),
        refusals=dict(Counter(failure.kind for failure in record.failures if failure.is_refusal)),
        errors=dict(Counter(failure.kind for failure in record.failures if not failure.is_refusal)),
        refusal=spread(failure.answer_seconds for failure in record.failures if failure.is_refusal),
        ttft=spread(reply.timings.first_step_seconds for reply in heard),
        ttff=spread(reply.timings.first_step_seconds + reply.timings.first_frame_seconds for reply in heard),
        ttfa=spread(reply.first_audio_seconds for reply in heard),
        first_audio_parts=first_audio_parts(replies),
        frame_interval=spread(interval for reply in replies for interval in reply.frame_intervals),
        under_run=spread(reply.under_run_seconds for reply in heard),
        continuity_count=sum(len(reply.packets) >= 2 for reply in replies),
        continuity_50=continuity(replies, 0.050),
        continuity_100=continuity(replies, 0.100),
        first_packet_frames=spread(reply.packets[0].frame_count for reply in heard),
        first_packet_bytes=spread(reply.packets[0].byte_count for reply in heard),
        rtf_with_first_audio=spread(reply.rtf_with_first_audio for reply in heard),
        rtf_without_first_audio=spread(reply.rtf_without_first_audio for reply in heard),
        audio_seconds=audio_seconds,
        wall_seconds=record.wall_seconds,
        audio_seconds_per_second=audio_seconds / record.wall_seconds if was_working else None,
        frames_per_second=frame_count / record.wall_seconds if was_working else None,
        seconds_per_frame=record.wall_seconds / frame_count if was_working else None,
        most_replies_at_once=most_at_once(
            (reply.turn_ended_seconds, reply.turn_ended_seconds + reply.packets[-1].seconds) for reply in heard
        ),
        lateness=spread(reply.lateness_seconds for reply in replies),
    )


def summarize_all(records: Sequence[LoadRecord], shape: ReplyShape) -> list[LoadSummary]:
    """The figures of all loads, and how much faster closed loops are than the one of a single session."""
    summaries = [summarize(record, shape) for record in records]
    alone = single_session(records)
    frames_per_second = summarize(alone, shape).frames_per_second if alone else None
    if frames_per_second is None:
        return summaries
    return [
        replace(summary, speed_up=summary.frames_per_second / frames_per_second)
        if isinstance(record.load, ClosedLoop) and summary.frames_per_second and not record.load.is_live
        else summary
        for record, summary in zip(records, summaries, strict=True)
    ]


def single_session(records: Sequence[LoadRecord]) -> LoadRecord | None:
    """One session alone with its turns back to back, where that was measured to its end."""
    for record in records:
        load = record.load
        if isinstance(load, ClosedLoop) and load.session_count == 1 and not load.is_live and record.is_complete:
            return record
    return None


@dataclass(frozen=True)
class Sameness:
    """Whether replies of the same seed and sound had the same bytes at every load.

    Of `compared_count` warm-up replies that another load gave as well, `different_count` differ from the first.
    """

    compared_count: int
    different_count: int


def sameness(records: Sequence[LoadRecord]) -> Sameness:
    """Compares the warm-up replies: the same callers say the same at every load, beside more or fewer others."""
    first: dict[int, str] = {}
    compared = different = 0
    for reply in (reply for record in records for reply in record.warm_ups):
        if reply.seed in first:
            compared += 1
            different += reply.digest != first[reply.seed]
        first.setdefault(reply.seed, reply.digest)
    return Sameness(compared, different)
