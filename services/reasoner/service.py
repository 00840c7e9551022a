"""ReasonerService: messages to the engine's inputs as they come, engine steps to messages."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict

import grpc
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.types.v1 import types_pb2

from services.reasoner.audio_encoder import audio_token_count
from services.reasoner.engine import FirstStepWork, ReasonerEngine, ReasonerStep, ReasonerStream
from services.reasoner.live_prompt import Input
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.prompt import Clip, History, Role, Samples, Turn
from services.runtime.audio import check_duration, check_format, decode_pcm
from services.runtime.errors import InvalidArgument
from services.runtime.stream import IndexCheck, RequestStream
from services.runtime.tensors import encode_tensor
from services.runtime.tracing import call_span, current_span
from services.stage.due import check_due
from services.stage.gathering import Gathering, check_lasts
from services.stage.refusals import refusals

SERVICE_NAME = reasoner_pb2.DESCRIPTOR.services_by_name["ReasonerService"].full_name
MAXIMUM_CLIP_SECONDS = 300.0
_ROLES: dict[int, Role] = {
    types_pb2.ROLE_SYSTEM: "system",
    types_pb2.ROLE_USER: "user",
    types_pb2.ROLE_ASSISTANT: "assistant",
}
_REASONS = {"stop": types_pb2.FINISH_REASON_STOP, "length": types_pb2.FINISH_REASON_LENGTH}

Context = grpc.aio.ServicerContext[reasoner_pb2.GenerateRequest, reasoner_pb2.GenerateResponse]


class ReasonerService(reasoner_pb2_grpc.ReasonerServiceServicer):
    """The servicer; `attach` gives it the engine before the first call."""

    _engine: ReasonerEngine

    def __init__(self, metrics: ReasonerMetrics) -> None:
        self._metrics = metrics

    def add_to(self, server: grpc.aio.Server) -> None:
        """Puts the servicer on the server."""
        reasoner_pb2_grpc.add_ReasonerServiceServicer_to_server(self, server)

    def attach(self, engine: ReasonerEngine) -> None:
        """Gives the servicer its engine."""
        self._engine = engine
        self._metrics.slots.watch(lambda: engine.slots_in_use, engine.slot_count)
        self._metrics.slots.watch_memory(lambda: engine.memory().free_bytes, engine.memory().total_bytes)
        engine.on_cut = self._metrics.slots.release.observe
        engine.on_step = self._metrics.slots.batch_size.observe

    async def Generate(self, requests: AsyncIterator[reasoner_pb2.GenerateRequest], context: Context) -> None:
        """One reply's text; the law of the stream is in the proto."""
        with self._metrics.slots.count_stream() as outcome, call_span("reasoner") as span, refusals():
            reader = RequestStream(requests)
            opening: reasoner_pb2.GenerateOpen = await reader.open()
            stream = self._stream(opening)
            async with self._engine.open(stream):
                self._metrics.slots.queue_wait.observe(stream.queue_seconds)
                if span is not None:
                    span.parts(time.perf_counter() - stream.queue_seconds, ("queue", stream.queue_seconds))
                await context.write(self._opened(stream))
                finished = await self._relay(reader, opening, stream, context)
            outcome.reason = stream.finish_reason
            await context.write(reasoner_pb2.GenerateResponse(finished=finished))

    async def _relay(
        self,
        reader: RequestStream[reasoner_pb2.GenerateRequest],
        opening: reasoner_pb2.GenerateOpen,
        stream: ReasonerStream,
        context: Context,
    ) -> reasoner_pb2.GenerateFinished:
        conversation = Conversation(opening, self._engine)
        gathering = Gathering(stream, check_lasts(opening.step_seconds, field="open.step_seconds"))
        first_step_seconds = 0.0
        timing: reasoner_pb2.FirstStepTiming | None = None
        prompt: types_pb2.PromptSize | None = None
        try:
            # What can't be answered may be found out by the engine before the turn has ended.
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(_listen(reader, conversation, stream))
                with refusals():
                    while steps := await gathering.message():
                        if not first_step_seconds:
                            first_step_seconds = time.perf_counter() - conversation.completed_at
                            self._metrics.first_token.observe(first_step_seconds)
                            timing = _timing(stream.first_step_work, first_step_seconds)
                            if (span := current_span()) is not None:
                                span.parts(
                                    conversation.completed_at,
                                    ("queue", timing.queue_seconds),
                                    ("encode", timing.encode_seconds),
                                    ("prefill", timing.prefill_seconds),
                                    ("first_step", timing.step_seconds),
                                )
                            prompt = _prompt_size(stream)
                        message = types_pb2.Steps(steps=map(_step, steps))
                        await context.write(reasoner_pb2.GenerateResponse(steps=message, timing=timing, prompt=prompt))
                        timing = prompt = None
                        self._metrics.steps.inc(len(steps))
                listening.cancel()
        finally:
            self._metrics.count_blocks(stream.encoded_block_count, stream.redone_block_count)
        assert stream.prompt is not None
        self._metrics.prompt_tokens.inc(len(stream.prompt.token_ids))
        self._metrics.count_prefix(stream.found_count)
        return reasoner_pb2.GenerateFinished(
            reason=_REASONS[stream.finish_reason],
            step_count=stream.step_count,
            prompt_token_count=len(stream.prompt.token_ids),
            prompt_token_ids=stream.prompt.token_ids if opening.return_prompt else (),
            first_step_seconds=first_step_seconds,
            audio_block_count=stream.turn_block_count,
            redone_block_count=stream.redone_block_count,
        )

    def _stream(self, opening: reasoner_pb2.GenerateOpen) -> ReasonerStream:
        limit = opening.max_step_count if opening.HasField("max_step_count") else None
        if limit == 0:
            raise InvalidArgument("open.max_step_count must be at least 1, got 0", field="open.max_step_count")
        resumed = list(opening.resume.token_ids)
        vocabulary = self._engine.model.config.vocabulary_size
        if wrong := [token for token in resumed if token >= vocabulary]:
            raise InvalidArgument(
                f"open.resume.token_ids must be below {vocabulary}, got {wrong[0]}", field="open.resume.token_ids"
            )
        stream = ReasonerStream(limit, resumed)
        stream.due_seconds = check_due(opening.due_seconds)
        return stream

    def _opened(self, stream: ReasonerStream) -> reasoner_pb2.GenerateResponse:
        config = self._engine.model.config
        return reasoner_pb2.GenerateResponse(
            opened=reasoner_pb2.GenerateOpened(
                hidden_size=config.stack.hidden_size,
                vocabulary_size=config.vocabulary_size,
                context_length=self._engine.context_length,
                sample_rate_hz=self._engine.features.sample_rate_hz,
                queue_seconds=stream.queue_seconds,
            )
        )


class Conversation:
    """What a client sends until `end`, as the engine takes it; refuses what cannot be answered as soon as it comes."""

    def __init__(self, opening: reasoner_pb2.GenerateOpen, engine: ReasonerEngine) -> None:
        self._opening = opening
        self._engine = engine
        # When `end` came, as time.perf_counter() tells it.
        self.completed_at = 0.0
        self._messages: list[Turn] = []
        self._index = IndexCheck("part.index")
        self._turn_has_begun = False
        # Samples of the clip that is still coming.
        self._clip_samples: int | None = None
        self._audio_positions = 0
        self._text_bytes = 0

    def add(self, kind: str, payload: types_pb2.Message | reasoner_pb2.TurnPart) -> list[Input]:
        """Takes a message of the conversation or a piece of the turn; what the engine is given for it.

        The messages are given with the turn's first piece, which says that there are no more of them.
        """
        if isinstance(payload, types_pb2.Message):
            if self._turn_has_begun:
                raise InvalidArgument("messages come before the turn's parts", reason="OUT_OF_ORDER", field=kind)
            self._messages.append(self._message(payload))
            return []
        part = self._part(payload)
        if self._turn_has_begun:
            return [part]
        self._turn_has_begun = True
        return [History(tuple(self._messages)), part]

    def complete(self) -> None:
        """Says that all has come; refused when nothing was said last."""
        if not self._turn_has_begun:
            raise InvalidArgument("the turn is empty: expected audio or text before end", reason="EMPTY_TURN")
        self._end_clip()
        self.completed_at = time.perf_counter()

    def _part(self, part: reasoner_pb2.TurnPart) -> str | Samples:
        self._index.expect(part.index)
        match part.WhichOneof("content"):
            case "text":
                self._end_clip()
                return self._text(part.text, "part.text")
            case "audio":
                return self._piece(part.audio)
            case _:
                raise InvalidArgument("part must have audio or text, got neither", field="part.content")

    def _piece(self, data: bytes) -> Samples:
        rate = self._engine.features.sample_rate_hz
        encoding = check_format(self._opening.audio_format, sample_rate_hz=rate, field="open.audio_format")
        samples = decode_pcm(data, encoding, field="part.audio")
        self._clip_samples = (self._clip_samples or 0) + len(samples)
        check_duration(
            self._clip_samples,
            sample_rate_hz=rate,
            minimum_seconds=0,
            maximum_seconds=MAXIMUM_CLIP_SECONDS,
            field="part.audio",
        )
        self._require_room(self._positions(self._clip_samples), "part.audio")
        return samples

    def _end_clip(self) -> None:
        if self._clip_samples is not None:
            self._count_clip(self._clip_samples, "part.audio")
            self._clip_samples = None

    def _message(self, message: types_pb2.Message) -> Turn:
        role = _ROLES.get(message.role)
        if role is None:
            raise InvalidArgument("message.role must be SYSTEM, USER or ASSISTANT", field="message.role")
        if role == "system" and self._messages:
            raise InvalidArgument("only the first message may be the system's", field="message.role")
        if not message.parts:
            raise InvalidArgument("message.parts must have at least one part, got none", field="message.parts")
        parts: list[str | Clip] = []
        for part in message.parts:
            if part.WhichOneof("content") == "text":
                parts.append(self._text(part.text, "message.parts.text"))
            elif role != "user":
                raise InvalidArgument("only user messages may have audio", field="message.parts.audio")
            else:
                parts.append(self._message_clip(part.audio))
        return Turn(role, tuple(parts))

    def _message_clip(self, audio: types_pb2.Audio) -> Clip:
        field = "message.parts.audio"
        rate = self._engine.features.sample_rate_hz
        encoding = check_format(audio.format, sample_rate_hz=rate, field=f"{field}.format")
        samples = decode_pcm(audio.data, encoding, field=f"{field}.data")
        check_duration(
            len(samples), sample_rate_hz=rate, minimum_seconds=0, maximum_seconds=MAXIMUM_CLIP_SECONDS, field=field
        )
        self._count_clip(len(samples), field)
        return Clip(samples)

    def _text(self, text: str, field: str) -> str:
        if not text:
            raise InvalidArgument(f"{field} must not be empty", field=field)
        self._text_bytes += len(text.encode())
        # As for sound; and megabytes of text take the device thread seconds to encode.
        fewest = self._text_bytes // self._engine.tokenizer.longest_token_bytes + len(self._messages)
        if fewest > self._engine.context_length:
            raise InvalidArgument(
                f"the conversation is too long: its text alone needs more than {fewest} positions; "
                f"expected fewer than the context of {self._engine.context_length}",
                reason="TOO_LONG",
                field=field,
            )
        return text

    def _count_clip(self, sample_count: int, field: str) -> None:
        positions = self._positions(sample_count)
        if positions < 1:
            seconds = sample_count / self._engine.features.sample_rate_hz
            raise InvalidArgument(
                f"{field} must be longer than 0.02 s, got {seconds:g} s", reason="TOO_SHORT", field=field
            )
        self._require_room(positions, field)
        self._audio_positions += positions

    def _positions(self, sample_count: int) -> int:
        return audio_token_count(self._engine.features.frame_count(sample_count))

    def _require_room(self, positions: int, field: str) -> None:
        """Before the whole prompt is known: a client may not make us keep more sound than a context can hold."""
        needed = self._audio_positions + positions
        if needed >= self._engine.context_length:
            raise InvalidArgument(
                f"the conversation is too long: its audio alone needs {needed} positions; "
                f"expected fewer than the context of {self._engine.context_length}",
                reason="TOO_LONG",
                field=field,
            )


async def _listen(
    reader: RequestStream[reasoner_pb2.GenerateRequest], conversation: Conversation, stream: ReasonerStream
) -> None:
    """Gives the engine what the client sends, and sees to it that nothing follows `end`."""
    async for kind, payload in reader:
        for item in conversation.add(kind, payload):
            await stream.send(item)
    conversation.complete()
    stream.end()
    await reader.nothing_more()


def _timing(work: FirstStepWork, first_step_seconds: float) -> reasoner_pb2.FirstStepTiming:
    worked_seconds = work.encode_seconds + work.prefill_seconds + work.step_seconds
    return reasoner_pb2.FirstStepTiming(queue_seconds=max(0.0, first_step_seconds - worked_seconds), **asdict(work))


def _prompt_size(stream: ReasonerStream) -> types_pb2.PromptSize:
    assert stream.prompt is not None, "a step comes after the prompt"
    return types_pb2.PromptSize(
        position_count=len(stream.prompt.token_ids),
        audio_position_count=sum(end - first for first, end in stream.prompt.clip_spans),
        cached_position_count=stream.found_count,
    )


def _step(step: ReasonerStep) -> types_pb2.Step:
    return types_pb2.Step(
        index=step.index,
        token_id=step.token_id,
        text=step.text,
        hidden_state=encode_tensor(step.hidden_state, types_pb2.DATA_TYPE_FLOAT32),
        is_end=step.is_end,
    )
