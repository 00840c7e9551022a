"""ReasonerService: messages to turns, engine steps to messages."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import numpy as np
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.types.v1 import types_pb2

from services.reasoner.engine import ReasonerEngine, ReasonerStep, ReasonerStream
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.model import audio_token_count
from services.reasoner.prompt import Clip, Role, Turn
from services.runtime.audio import check_duration, check_format, decode_pcm
from services.runtime.errors import InvalidArgument
from services.runtime.stream import IndexCheck, RequestStream
from services.runtime.tensors import encode_tensor
from services.stage.due import check_due
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

    async def Generate(self, requests: AsyncIterator[reasoner_pb2.GenerateRequest], context: Context) -> None:
        """One reply's text; the law of the stream is in the proto."""
        with self._metrics.slots.count_stream() as outcome, refusals():
            reader = RequestStream(requests)
            opening: reasoner_pb2.GenerateOpen = await reader.open()
            stream = self._stream(opening)
            async with self._engine.open(stream):
                self._metrics.slots.queue_wait.observe(stream.queue_seconds)
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
        async for kind, payload in reader:
            conversation.add(kind, payload)
        turns = conversation.complete()
        asked = time.perf_counter()
        first_step_seconds = 0.0
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(reader.nothing_more())
            await stream.send(turns)
            stream.end()
            with refusals():
                async for step in stream:
                    if not first_step_seconds:
                        first_step_seconds = time.perf_counter() - asked
                        self._metrics.first_token.observe(first_step_seconds)
                    await context.write(reasoner_pb2.GenerateResponse(step=_step(step)))
                    self._metrics.steps.inc()
            listening.cancel()
        assert stream.prompt is not None
        self._metrics.prompt_tokens.inc(len(stream.prompt.token_ids))
        self._metrics.count_prefix(stream.found_count)
        return reasoner_pb2.GenerateFinished(
            reason=_REASONS[stream.finish_reason],
            step_count=stream.step_count,
            prompt_token_count=len(stream.prompt.token_ids),
            prompt_token_ids=stream.prompt.token_ids if opening.return_prompt else (),
            first_step_seconds=first_step_seconds,
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
    """Collects what the client sends until `end`, and refuses what cannot be answered as soon as it comes."""

    def __init__(self, opening: reasoner_pb2.GenerateOpen, engine: ReasonerEngine) -> None:
        self._opening = opening
        self._engine = engine
        self._messages: list[Turn] = []
        self._index = IndexCheck("part.index")
        self._parts: list[str | Clip] = []
        # The clip that is still coming, piece by piece.
        self._pieces: list[np.ndarray] = []
        self._piece_samples = 0
        self._audio_positions = 0
        self._text_bytes = 0

    def add(self, kind: str, payload: types_pb2.Message | reasoner_pb2.TurnPart) -> None:
        """Takes a message of the conversation or a piece of the turn."""
        if isinstance(payload, types_pb2.Message):
            if self._parts or self._pieces:
                raise InvalidArgument("messages come before the turn's parts", reason="OUT_OF_ORDER", field=kind)
            self._messages.append(self._message(payload))
        else:
            self._part(payload)

    def complete(self) -> list[Turn]:
        """The whole conversation; refused when nothing was said last."""
        self._end_clip()
        if not self._parts:
            raise InvalidArgument("the turn is empty: expected audio or text before end", reason="EMPTY_TURN")
        return [*self._messages, Turn("user", tuple(self._parts))]

    def _part(self, part: reasoner_pb2.TurnPart) -> None:
        self._index.expect(part.index)
        match part.WhichOneof("content"):
            case "text":
                self._end_clip()
                text = self._text(part.text, "part.text")
                if self._parts and isinstance(last := self._parts[-1], str):
                    self._parts[-1] = last + text
                else:
                    self._parts.append(text)
            case "audio":
                self._piece(part.audio)
            case _:
                raise InvalidArgument("part must have audio or text, got neither", field="part.content")

    def _piece(self, data: bytes) -> None:
        rate = self._engine.features.sample_rate_hz
        encoding = check_format(self._opening.audio_format, sample_rate_hz=rate, field="open.audio_format")
        samples = decode_pcm(data, encoding, field="part.audio")
        if len(samples) or not self._pieces:
            self._pieces.append(samples)
        self._piece_samples += len(samples)
        check_duration(
            self._piece_samples,
            sample_rate_hz=rate,
            minimum_seconds=0,
            maximum_seconds=MAXIMUM_CLIP_SECONDS,
            field="part.audio",
        )
        self._require_room(self._positions(self._piece_samples), "part.audio")

    def _end_clip(self) -> None:
        if self._pieces:
            self._parts.append(self._clip(np.concatenate(self._pieces), "part.audio"))
            self._pieces, self._piece_samples = [], 0

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
        return self._clip(samples, field)

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

    def _clip(self, samples: np.ndarray, field: str) -> Clip:
        positions = self._positions(len(samples))
        if positions < 1:
            seconds = len(samples) / self._engine.features.sample_rate_hz
            raise InvalidArgument(
                f"{field} must be longer than 0.02 s, got {seconds:g} s", reason="TOO_SHORT", field=field
            )
        self._require_room(positions, field)
        self._audio_positions += positions
        return Clip(samples)

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


def _step(step: ReasonerStep) -> types_pb2.Step:
    return types_pb2.Step(
        index=step.index,
        token_id=step.token_id,
        text=step.text,
        hidden_state=encode_tensor(step.hidden_state, types_pb2.DATA_TYPE_FLOAT32),
        is_end=step.is_end,
    )
