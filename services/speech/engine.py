"""Schedules the speech slots: a chunk of a voice prompt and one frame of every reply, in turn."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from services.inference.prefill import Pieces, PrefillQueue, Progress, chunks
from services.inference.slots import NotFinite, Refused, SlotEngine, Stream
from services.inference.stopwatch import Stopwatch
from services.inference.tokenizer import SpecialTokenInText, Tokenizer
from services.speech.end_of_speech import judge
from services.speech.frame_step import FrameStep
from services.speech.interleave import Interleave, Next, positions_needed
from services.speech.model import NO_CODE, SpeechModel
from services.speech.sampling_defaults import SamplingDefaults
from services.speech.voice_cache import VoiceCache

Codes = list[int]


@dataclass(frozen=True)
class Voice:
    """A voice prompt: what is said in the example, and its frames."""

    transcript: str
    frames: list[Codes]


@dataclass(frozen=True)
class Sampling:
    """How one reply's codes are drawn: temperature 0 is greedy, top_k 0 is all, seed is any 64-bit number."""

    temperature: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class SpeechStep:
    """A step of the reasoner: its token and hidden_state [hidden] float32."""

    token_id: int
    hidden_state: np.ndarray
    is_end: bool


@dataclass(frozen=True)
class SpeechFrame:
    """A frame of the reply. step_count: steps that have gone into the reply up to it; made_at: in seconds."""

    index: int
    codes: Codes
    step_count: int
    made_at: float = field(compare=False, default_factory=time.perf_counter)


@dataclass(eq=False)
class SpeechStream(Stream[SpeechStep, SpeechFrame]):
    """One reply's frames. `resumed` are frames that were sent by another replica: they are gone through again."""

    voice: Voice
    sampling: Sampling
    max_frame_count: int | None = None
    resumed: list[Codes] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.transcript_ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.interleave = Interleave()
        self.step: SpeechStep | None = None
        self.frame_count = 0
        self.step_count = 0
        self.previous: Codes = []
        self.column = 0
        self.speaking = False
        self.found_voice = False
        # How long the device worked from the first step on: at the rest of the voice prompt, and at the first frame.
        self.stopwatch: Stopwatch | None = None
        self.prefill_seconds = 0.0
        self.frame_seconds = 0.0

    def timed(self, device: torch.device) -> AbstractContextManager[None]:
        """Times a piece of the voice prompt's prefill if a step waits for it."""
        if self.stopwatch is None and self.inbox:
            self.stopwatch = Stopwatch(device)
        return nullcontext() if self.stopwatch is None else self.stopwatch.time("prefill")

    @property
    def prompt(self) -> bytes:
        """All that the voice prompt's prefill follows from."""
        text = np.array(self.transcript_ids, np.int64).tobytes()
        return len(text).to_bytes(8, "little") + text + np.array(self.voice.frames, np.int64).tobytes()


class SpeechEngine(SlotEngine[SpeechStream]):
    """The speech slots.

    `prefill_chunk`: positions of a voice prompt that are run between two frames. `voice_cache_bytes`: what may be kept
    of the voice prompts that were run, so that each is run once.
    """

    def __init__(
        self,
        model: SpeechModel,
        tokenizer: Tokenizer,
        *,
        slot_count: int,
        queue_limit: int,
        context_length: int,
        prefill_chunk: int,
        voice_cache_bytes: int,
        sampling_defaults: SamplingDefaults | None = None,
    ) -> None:
        super().__init__(slot_count, queue_limit, "speech-device", device=model.device)
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.prefill_chunk = prefill_chunk
        self.sampling_defaults = sampling_defaults or SamplingDefaults()
        self.step = FrameStep(model, slot_count=slot_count, context_length=context_length)
        self.voices = VoiceCache(voice_cache_bytes)
        self._voices_under_way: set[bytes] = set()
        self._prefilling = PrefillQueue[SpeechStream]()
        self._largest_value = min(torch.finfo(model.dtype).max, torch.finfo(torch.float32).max)

    def transcript_ids(self, voice: Voice) -> list[int]:
        """Token ids of a voice's transcript; Refused when the voice leaves no room to speak. Any thread."""
        try:
            self.tokenizer.refuse_special_tokens(voice.transcript)
        except SpecialTokenInText as refusal:
            raise Refused(f"voice_prompt.transcript: {refusal}") from refusal
        # Told by the length alone where it can be: megabytes take seconds to encode.
        if (size := len(voice.transcript.encode())) > self.context_length * self.tokenizer.longest_token_bytes:
            raise Refused(
                f"the voice prompt is too long: its transcript has {size} bytes; "
                f"expected fewer positions than the context of {self.context_length}"
            )
        ids = self.tokenizer.encode(voice.transcript)
        needed = len(ids) + len(voice.frames) + 3 + positions_needed(with_step=True, first_frame=True)
        if needed > self.context_length:
            raise Refused(
                f"the voice prompt is too long: {len(ids)} tokens and {len(voice.frames)} frames need {needed} "
                f"positions to speak at all; expected at most the context of {self.context_length}"
            )
        return ids

    @torch.inference_mode()
    def warm(self) -> None:
        """Runs each kind of step once into the dump column, so that the first caller does not pay for first times."""
        cache, model = self.step.cache, self.model
        one = torch.zeros((1, model.config.backbone.hidden_size), device=model.device, dtype=model.dtype)
        (chunk,) = chunks(one, self.prefill_chunk, cache)
        self.step.prefill(replace(chunk, columns=torch.full_like(chunk.columns, cache.dump)), slot=0)
        self.step.warm()

    def join(self, stream: SpeechStream) -> None:
        """Fills the slot's rows of what stays the same, and starts the prefill of the voice prompt."""
        step, slot, sampling = self.step, stream.slot, stream.sampling
        step.temperature.host[slot] = sampling.temperature
        step.top_k.host[slot] = sampling.top_k
        step.seed.host[slot] = np.uint64(sampling.seed).astype(np.int64)
        self._prefilling.add(stream, self._prefill(stream))

    def leave(self, stream: SpeechStream) -> None:
        """Drops a prefill that is under way."""
        self._prefilling.drop(stream)

    @torch.inference_mode()
    def advance(self) -> bool:
        """One chunk of the oldest prefill, then one frame of every reply that can have one."""
        if complete := self._prefilling.advance():
            complete.speaking = True
        speaking = [s for s in self.streams.values() if s.speaking and not s.done and s.writable and self._fed(s)]
        if speaking:
            self._speak(speaking)
        return bool(self._prefilling or speaking)

    def _prefill(self, stream: SpeechStream) -> Pieces:
        """Makes the voice prompt's keys and values the slot's; yields before each chunk that is run for it."""
        voice, cache = stream.prompt, self.step.cache
        while voice in self._voices_under_way:  # what another stream is at need not be done twice
            yield Progress.WAITED
        kept = self.voices.get(voice)
        stream.found_voice = kept is not None
        if kept is not None:
            cache.write(stream.slot, kept)
            stream.column = kept.shape[2]
            return
        self._voices_under_way.add(voice)
        try:
            yield from self._run_voice(stream)
            self.voices.put(voice, cache.read(stream.slot, stream.column))
        finally:
            self._voices_under_way.remove(voice)

    def _run_voice(self, stream: SpeechStream) -> Pieces:
        device = self.model.device
        transcript = torch.tensor(stream.transcript_ids, dtype=torch.int64, device=device)
        frames = torch.tensor(stream.voice.frames, dtype=torch.int64, device=device)
        prompt = self.model.embed_voice(transcript, frames)
        for chunk in chunks(prompt, self.prefill_chunk, self.step.cache):
            yield Progress.WORKED
            with stream.timed(device):
                self.step.prefill(chunk, stream.slot)
        stream.column = len(prompt)

    def _fed(self, stream: SpeechStream) -> bool:
        """Gives the stream what its next frame needs; False while it has to wait, or when it ended for want of room."""
        # `ended` first: a step that arrives between the two looks must not be passed over.
        ended = stream.ended
        need = stream.interleave.next(step_waits=bool(stream.inbox), steps_ended=ended)
        if need is Next.WAIT:
            return False
        first = not stream.previous
        if need is Next.FRAME_ALONE and first:
            stream.fail(Refused("the steps ended before the first; expected at least one step"))
            return False
        if stream.column + positions_needed(with_step=need is Next.STEP, first_frame=first) > self.context_length:
            self._finish(stream, "length")
            return False
        stream.step = stream.take() if need is Next.STEP else None
        if stream.step is not None:
            if not np.abs(stream.step.hidden_state).max() <= self._largest_value:
                # In the cache it would spoil every later reply of the slot: a mask does not hide what is not finite.
                stream.fail(Refused(f"hidden_state must be within ±{self._largest_value:g}, the model's precision"))
                return False
            stream.step_count += 1
            stream.interleave.fed(is_end=stream.step.is_end)
        return True

    def _speak(self, speaking: list[SpeechStream]) -> None:
        """The frame loop: one frame for each of these streams, in one batch step over all slots."""
        step = self.step
        step.begin()
        highest = max(self._place(stream) for stream in speaking)
        drawing = [stream.sampling.top_k for stream in speaking if stream.sampling.temperature > 0]
        began_at = time.perf_counter()
        codes = step.run(
            [stream.slot for stream in speaking],
            highest=highest,
            largest_top_k=None if not drawing else 0 if 0 in drawing else max(drawing),
        ).tolist()
        took_seconds = time.perf_counter() - began_at
        self.count_step(len(speaking))
        for stream in speaking:
            if stream.frame_count == 0:
                stream.frame_seconds = took_seconds
                stream.prefill_seconds = stream.stopwatch.seconds("prefill") if stream.stopwatch is not None else 0.0
            if NO_CODE in codes[stream.slot]:
                # Whoever has the slot next must not inherit it.
                step.clear(stream.slot)
                stream.fail(NotFinite(f"the backbone's state is not finite at frame {stream.frame_count}"))
            else:
                self._spoken(stream, codes[stream.slot])

    def _spoken(self, stream: SpeechStream, codes: Codes) -> None:
        """Keeps and sends a predicted frame, and ends the stream where speech ends."""
        index = stream.frame_count
        resumed = index < len(stream.resumed)
        if resumed:
            codes = stream.resumed[index]
        stream.previous = codes
        stream.interleave.spoken()
        verdict = judge(codes)
        if verdict.is_spoken:
            stream.frame_count += 1
            if not resumed:
                stream.emit(SpeechFrame(index, codes, stream.step_count))
        if verdict.is_last:
            self._finish(stream, "stop")
        elif stream.frame_count == stream.max_frame_count:
            self._finish(stream, "length")

    def _finish(self, stream: SpeechStream, reason: Literal["stop", "length"]) -> None:
        stream.finish_reason = reason
        stream.finish()

    def _place(self, stream: SpeechStream) -> int:
        """Fills the stream's row of the step's inputs; returns the column of the position that predicts."""
        step, slot = self.step, stream.slot
        if stream.previous:
            step.previous.host[slot] = stream.previous
        if stream.step is not None:
            step.has_step.host[slot] = True
            step.hidden.host[slot] = stream.step.hidden_state
            step.token.host[slot] = stream.step.token_id
        # Those of the frame spoken last, the step's hidden state and its token, or of the frame alone.
        for place in (0, 1, 2):
            if place == 2 or (stream.step is not None and (place == 1 or stream.previous)):
                step.columns.host[slot, place] = stream.column
                stream.column += 1
        step.frame.host[slot] = stream.interleave.frame_index
        return stream.column - 1
