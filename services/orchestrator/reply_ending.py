"""How a reply ended."""

import asyncio
from dataclasses import dataclass

from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.turn_parts import TurnPart
from services.runtime.errors import DeadlineExceeded, Internal, MeshError, Unavailable, most_telling

STOP = types_pb2.FINISH_REASON_STOP
LENGTH = types_pb2.FINISH_REASON_LENGTH
CANCELLED = types_pb2.FINISH_REASON_CANCELLED
FAILED = types_pb2.FINISH_REASON_FAILED


@dataclass(frozen=True)
class Timings:
    """Where a reply's time went, in seconds; a part that did not happen is 0.

    First step, first frame and first codec audio add up to first audio; so do the parts.
    """

    queue_seconds: float
    first_step_seconds: float
    first_frame_seconds: float
    first_codec_audio_seconds: float
    first_audio_seconds: float
    total_seconds: float
    parts: tuple[TurnPart, ...] = ()


@dataclass(frozen=True)
class ReplyEnding:
    """How a reply ended: its text and steps are those that were heard, its frames those that were sent.

    failure: what a stage did, where the reason is FAILED. prompt: how long it was, where there was a first step.
    recovery_count: how often a stage was lost and another replica went on.
    """

    turn_index: int
    reason: types_pb2.FinishReason
    text: str
    frame_count: int
    step_count: int
    timings: Timings
    failure: MeshError | None = None
    prompt: types_pb2.PromptSize | None = None
    recovery_count: int = 0


def stage_failure(failures: BaseExceptionGroup[BaseException]) -> MeshError | None:
    """What a stage did, if that is all that went wrong: not what the client sent, and no bug of ours."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return None
    failure = most_telling(failures)
    is_stages = isinstance(failure, Unavailable | DeadlineExceeded | Internal) and "stage" in failure.metadata
    return failure if is_stages else None
