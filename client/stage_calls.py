"""Calls of single stages, whole input first and whole output after: what parity compares."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2

from client.call_status import CallStatus
from client.errors import MeshError, from_rpc_error
from client.golden_case import Integers
from client.message import Message
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding, Samples

CALL_SECONDS = 600
"""The longest one call may take: a long case on a busy CPU."""


@dataclass(frozen=True, eq=False)
class Reasoning:
    """What the reasoner wrote: its steps, the ids of its prompt, and whether an end token ended it."""

    steps: Sequence[types_pb2.Step]
    prompt_ids: Integers
    ended: bool

    @property
    def tokens(self) -> Integers:
        """Token ids [steps]."""
        return np.array([step.token_id for step in self.steps], np.int64)

    @property
    def hidden(self) -> Samples:
        """Hidden states [steps, hidden size]."""
        return (
            np.stack([read_tensor(step.hidden_state) for step in self.steps]) if self.steps else np.zeros((0, 0), "f4")
        )


@dataclass(frozen=True, eq=False)
class Speech:
    """What the speech stage spoke: frames [frames, codebooks], and the token ids of the voice's transcript."""

    frames: Integers
    transcript_ids: Integers


class StageCalls:
    """The three stages of a mesh, each on its own channel."""

    def __init__(self, reasoner: grpc.aio.Channel, speech: grpc.aio.Channel, codec: grpc.aio.Channel) -> None:
        self._reasoner = reasoner_pb2_grpc.ReasonerServiceStub(reasoner)
        self._speech = speech_pb2_grpc.SpeechServiceStub(speech)
        self._codec = codec_pb2_grpc.CodecServiceStub(codec)

    async def encode(self, voice: Samples) -> Integers:
        """The codec's frames [frames, codebooks] of a voice at 24,000 Hz."""
        request = codec_pb2.EncodeRequest(audio=Encoding.F32.audio(voice, VOICE_RATE_HZ))
        try:
            response = await self._codec.Encode(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "the codec service", was_open=True) from None
        return read_frames(response.frames)

    async def generate(
        self, history: Iterable[Message], turn: Sequence[str | Samples], *, maximum_step_count: int
    ) -> Reasoning:
        """The reasoner's reply to a user turn."""
        request = reasoner_pb2.GenerateRequest
        opening = reasoner_pb2.GenerateOpen(
            audio_format=Encoding.F32.wire_format(USER_RATE_HZ), max_step_count=maximum_step_count, return_prompt=True
        )
        parts = [
            reasoner_pb2.TurnPart(index=index, text=part)
            if isinstance(part, str)
            else reasoner_pb2.TurnPart(index=index, audio=part)
            for index, part in enumerate(turn_pieces(turn))
        ]
        requests = [
            request(open=opening),
            *(request(message=message.wire(Encoding.S16)) for message in history),
            *(request(part=part) for part in parts),
            request(end=reasoner_pb2.GenerateEnd()),
        ]
        responses = await exchange("reasoner", self._reasoner.Generate, requests)
        finished = responses[-1].finished
        steps = [step for response in responses for step in response.steps.steps]
        ended = finished.reason == types_pb2.FINISH_REASON_STOP
        return Reasoning(steps, np.array(finished.prompt_token_ids, np.int64), ended)

    async def speak(
        self, transcript: str, voice_codes: Integers, steps: Sequence[types_pb2.Step], *, maximum_frame_count: int
    ) -> Speech:
        """The frames of a reply, greedily."""
        request = speech_pb2.GenerateFramesRequest
        opening = speech_pb2.GenerateFramesOpen(
            voice_prompt=types_pb2.VoicePrompt(transcript=transcript, frames=wire_frames(voice_codes)),
            sampling=types_pb2.Sampling(temperature=0),
            max_frame_count=maximum_frame_count,
            return_prompt=True,
        )
        requests = [
            request(open=opening),
            *(request(steps=types_pb2.Steps(steps=[step])) for step in steps),
            request(end=speech_pb2.GenerateFramesEnd()),
        ]
        responses = await exchange("speech", self._speech.GenerateFrames, requests)
        frames = [frame for response in responses for frame in response.frames.frames]
        transcript_ids = np.array(responses[-1].finished.transcript_token_ids, np.int64)
        return Speech(read_frames(frames), transcript_ids)

    async def decode(self, frames: Integers) -> Samples:
        """The sound of frames at 24,000 Hz."""
        request = codec_pb2.DecodeRequest
        requests = [
            request(open=codec_pb2.DecodeOpen(audio_format=Encoding.F32.wire_format(VOICE_RATE_HZ))),
            *(
                request(frames=codec_pb2.DecodeFrames(index=index, frames=[frame]))
                for index, frame in enumerate(wire_frames(frames))
            ),
            request(end=codec_pb2.DecodeEnd()),
        ]
        responses = await exchange("codec", self._codec.Decode, requests)
        return Encoding.F32.decode(b"".join(response.audio.data for response in responses))


async def exchange(stage: str, method: Any, requests: Sequence[Any]) -> list[Any]:
    """Sends all messages of a stream and returns all that come back; MeshError unless the last one is `finished`."""

    async def send() -> AsyncIterator[Any]:
        for request in requests:
            yield request

    call = method(send(), timeout=CALL_SECONDS)

    status = CallStatus(call)
    try:
        responses = [response async for response in call]
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(status.peers_error or error, f"the {stage} service", was_open=True) from None
    if not responses or responses[-1].WhichOneof("payload") != "finished":
        raise MeshError(grpc.StatusCode.INTERNAL, "PROTOCOL", f"the {stage} service ended without its last message")
    return responses


def turn_pieces(turn: Sequence[str | Samples]) -> list[str | bytes]:
    """A turn as the reasoner takes it: text as it is, sound as float32 PCM in messages of at most 2 s."""
    pieces: list[str | bytes] = []
    for part in turn:
        if isinstance(part, str):
            pieces.append(part)
        else:
            length = 2 * USER_RATE_HZ
            pieces += [Encoding.F32.encode(part[start : start + length]) for start in range(0, len(part), length)]
    return pieces


def wire_frames(frames: Integers) -> list[types_pb2.Frame]:
    """Frames as the protos say them."""
    return [types_pb2.Frame(codes=[int(code) for code in frame]) for frame in frames]


def read_frames(frames: Iterable[types_pb2.Frame]) -> Integers:
    """Codes [frames, codebooks]."""
    codes = [list(frame.codes) for frame in frames]
    return np.array(codes, np.int64) if codes else np.zeros((0, 0), np.int64)


def read_tensor(tensor: types_pb2.Tensor) -> Samples:
    """The elements of a tensor in float32."""
    if tensor.data_type == types_pb2.DATA_TYPE_BFLOAT16:
        bits = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tuple(tensor.shape))
    return np.frombuffer(tensor.data, "<f4").astype(np.float32).reshape(tuple(tensor.shape))
