"""Whether a running mesh gives the reference's output, code for code."""

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.channel import open_channel
from client.connection import Mesh, connect
from client.errors import ClientError
from client.events import Audio, ReplyEnded
from client.golden_case import GoldenCase, Integers
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding, Samples
from client.session_settings import SoundFormat
from client.stage_calls import Reasoning, StageCalls
from client.voice import VoiceExample

HIDDEN_TOLERANCE = 1e-3
"""Hidden states may differ by this part of the largest element of their step."""

AUDIO_TOLERANCE = 1e-4
"""Samples may differ by this, of a full scale of 1."""

SPARE_STEPS = 2
"""Steps asked for beyond the expected ones, so that a reasoner that does not stop where it should is seen."""

CHECKS = ("prompt ids", "voice codes", "tokens", "frames", "audio", "conversation")


@dataclass(frozen=True)
class Outcome:
    """How one check of a case went: equal, or the first difference; `skipped` when an earlier failure left no input."""

    difference: str | None = None
    skipped: bool = False

    @property
    def is_equal(self) -> bool:
        """Whether the mesh gave what the reference gives."""
        return self.difference is None and not self.skipped


Outcomes = Mapping[str, Outcome]
"""Outcome by name of the check, every one of CHECKS."""


@asynccontextmanager
async def connected_stages(reasoner: str, speech: str, codec: str) -> AsyncIterator[StageCalls]:
    """Channels to the three stages at their addresses."""
    async with open_channel(reasoner) as first, open_channel(speech) as second, open_channel(codec) as third:
        yield StageCalls(first, second, third)


class CaseRun:
    """One case on its way through the mesh: the stages one by one, then the whole conversation."""

    def __init__(self, case: GoldenCase, stages: StageCalls, orchestrator_address: str) -> None:
        self._case = case
        self._expected = case.expected
        self._stages = stages
        self._address = orchestrator_address
        self._reasoning: Reasoning | None = None
        self._voice_codes: Integers | None = None
        self._transcript_ids: Integers | None = None

    async def outcomes(self) -> Outcomes:
        """Runs all checks; one that lacks an earlier result is skipped, an error is a difference."""
        checks: Mapping[str, Callable[[], Coroutine[Any, Any, str | None]]] = {
            "voice codes": self._check_voice_codes,
            "tokens": self._check_tokens,
            "frames": self._check_frames,
            "prompt ids": self._check_prompt_ids,
            "audio": self._check_audio,
            "conversation": self._check_conversation,
        }
        outcomes = {}
        for name, check in checks.items():
            try:
                outcomes[name] = Outcome(await check())
            except NoInputError:
                outcomes[name] = Outcome(skipped=True)
            except ClientError as error:
                outcomes[name] = Outcome(f"error: {error}")
        return {name: outcomes[name] for name in CHECKS}

    async def _check_voice_codes(self) -> str | None:
        self._voice_codes = await self._stages.encode(self._case.voice)
        return first_integer_difference(self._expected.voice_codes, self._voice_codes, ("frame", "codebook"))

    async def _check_tokens(self) -> str | None:
        expected = self._expected.reasoner_tokens
        self._reasoning = await self._stages.generate(
            self._case.messages[:-1], self._case.turn, maximum_step_count=len(expected) + SPARE_STEPS
        )
        got = self._reasoning.tokens
        must_stop = self._reasoning.ended or self._expected.text_ended
        return first_integer_difference(
            expected, got if must_stop else got[: len(expected)], ("step",)
        ) or first_hidden_difference(self._expected.reasoner_hidden, self._reasoning.hidden[: len(expected)])

    async def _check_frames(self) -> str | None:
        if self._reasoning is None or self._voice_codes is None:
            raise NoInputError
        speech = await self._stages.speak(
            self._case.voice_transcript,
            self._voice_codes,
            self._reasoning.steps,
            maximum_frame_count=self._case.maximum_frame_count,
        )
        self._transcript_ids = speech.transcript_ids
        return first_integer_difference(self._expected.frames, speech.frames, ("frame", "codebook"))

    async def _check_prompt_ids(self) -> str | None:
        if self._reasoning is None or self._transcript_ids is None:
            raise NoInputError
        prompt = first_integer_difference(self._expected.reasoner_input_ids, self._reasoning.prompt_ids, ("position",))
        if prompt:
            return f"prompt: {prompt}"
        voice = first_integer_difference(self._expected.voice_text_ids, self._transcript_ids, ("position",))
        return f"transcript: {voice}" if voice else None

    async def _check_audio(self) -> str | None:
        return first_audio_difference(self._expected.audio, await self._stages.decode(self._expected.spoken_frames))

    async def _check_conversation(self) -> str | None:
        async with connect(self._address) as mesh:
            return first_audio_difference(self._expected.audio, await self._converse(mesh))

    async def _converse(self, mesh: Mesh) -> Samples:
        """The reply's sound when the orchestrator runs the whole case."""
        pieces: list[Samples] = [np.zeros(0, np.float32)]
        async with mesh.session(
            voice=VoiceExample(self._case.voice_transcript, self._case.voice),
            instructions=self._case.instructions,
            history=self._case.history,
            temperature=0,
            max_frame_count=self._case.maximum_frame_count,
            input_format=SoundFormat(Encoding.F32, USER_RATE_HZ),
            output_format=SoundFormat(Encoding.F32, VOICE_RATE_HZ),
            ahead_seconds=math.inf,
        ) as session:
            for part in self._case.turn:
                await (session.send_text(part) if isinstance(part, str) else session.send_audio(part))
            await session.end_turn()
            async for event in session.reply():
                if isinstance(event, Audio):
                    pieces.append(event.samples)
                elif isinstance(event, ReplyEnded):
                    break
        return np.concatenate(pieces)


class NoInputError(Exception):
    """An earlier check gave nothing that this one could work on."""


async def run_cases(
    cases: Iterable[GoldenCase], stages: StageCalls, orchestrator_address: str, *, keep_going: bool
) -> AsyncIterator[tuple[str, Outcomes]]:
    """Name and outcomes of case after case; ends after the first that differs unless `keep_going`."""
    for case in cases:
        outcomes = await CaseRun(case, stages, orchestrator_address).outcomes()
        yield case.name, outcomes
        if not keep_going and not all(outcome.is_equal for outcome in outcomes.values()):
            return


def first_integer_difference(expected: Integers, got: Integers, axes: Sequence[str]) -> str | None:
    """Where two arrays of integers first differ, in the words of their axes; None when they are equal."""
    common = min(len(expected), len(got))
    if common and expected.shape[1:] != got.shape[1:]:
        return f"expected {expected.shape[1]} codes in a {axes[0]}, got {got.shape[1]}"
    different = np.argwhere(expected[:common] != got[:common]) if common else np.zeros((0, 0))
    if len(different):
        index = tuple(int(position) for position in different[0])
        where = ", ".join(f"{axis} {position}" for axis, position in zip(axes, index, strict=True))
        return f"{where}: expected {expected[index]}, got {got[index]}"
    if len(expected) != len(got):
        return f"{axes[0]} {common}: expected {len(expected)} {axes[0]}s, got {len(got)}"
    return None


def first_hidden_difference(expected: Samples, got: Samples) -> str | None:
    """The first step whose hidden state [hidden size] is off by more than HIDDEN_TOLERANCE of its largest element."""
    if expected.shape != got.shape:
        return f"hidden states: expected shape {list(expected.shape)}, got {list(got.shape)}"
    for step, (row, other) in enumerate(zip(expected, got, strict=True)):
        error = np.abs(row - other).max() / max(np.abs(row).max(), np.finfo(np.float32).tiny)
        if not error <= HIDDEN_TOLERANCE:  # NaN is a difference too
            index = int(np.nanargmax(np.where(np.isnan(row - other), np.inf, np.abs(row - other))))
            return f"hidden state of step {step}, element {index}: expected {row[index]:.6g}, got {other[index]:.6g}"
    return None


def first_audio_difference(expected: Samples, got: Samples) -> str | None:
    """The first sample that is off by more than AUDIO_TOLERANCE."""
    common = min(len(expected), len(got))
    different = np.flatnonzero(~(np.abs(expected[:common] - got[:common]) <= AUDIO_TOLERANCE))
    if len(different):
        index = int(different[0])
        return f"sample {index}: expected {expected[index]:.6f}, got {got[index]:.6f}"
    if len(expected) != len(got):
        return f"sample {common}: expected {len(expected)} samples, got {len(got)}"
    return None
