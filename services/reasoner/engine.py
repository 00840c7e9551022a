"""Schedules the reasoner's slots: one piece of a prefill and one token of every reply, in turn."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from services.inference.graphs import synchronize
from services.inference.prefill import Pieces, PrefillQueue, Progress, chunks
from services.inference.prefixes import Identities, KeptPrefixes, common_length
from services.inference.slots import NotFinite, SlotEngine, Stream
from services.inference.stopwatch import Stopwatch
from services.inference.tokenizer import TextStream, Tokenizer
from services.reasoner.features import MelFeatures
from services.reasoner.heard_clip import HeardClip
from services.reasoner.known_clips import KnownClips
from services.reasoner.live_prompt import Input, LivePrompt, PlacedBlock
from services.reasoner.model import ReasonerModel
from services.reasoner.prompt import Prompt
from services.reasoner.token_step import TokenStep


@dataclass(frozen=True)
class ReasonerStep:
    """A token of the reply and the state it was read from, hidden_state [hidden] float32."""

    index: int
    token_id: int
    text: str
    hidden_state: np.ndarray
    is_end: bool


@dataclass(frozen=True)
class FirstStepWork:
    """How long the device worked on a prompt from its end to the first step, in seconds."""

    encode_seconds: float = 0.0
    prefill_seconds: float = 0.0
    step_seconds: float = 0.0


@dataclass(eq=False)
class ReasonerStream(Stream[Input, ReasonerStep]):
    """One reply's text. Its inputs are the conversation as it comes, complete at `end`.

    `resumed` are tokens that were sent by another replica.
    """

    max_step_count: int | None = None
    resumed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        # While the prompt is read: what is known of it; then what it was.
        self.reading: LivePrompt | None = None
        self.prompt: Prompt | None = None
        # Kept until the stream leaves: to let go of a minute's features takes a millisecond, in which the listener
        # would wait for the first step.
        self.was_read: LivePrompt | None = None
        self.is_in_queue = False
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.step_count = 0
        # Positions that are run: of the prompt, then of the reply.
        self.column = 0
        self.token = 0
        self.decoding = False
        self.text: TextStream | None = None
        # Positions of the prompt that another stream had left.
        self.found_count = 0
        # What the positions up to `column` are the first of.
        self.places: Identities | None = None
        # Blocks of the turn's sound; encodings of blocks, history's among them, and those that were done again.
        self.turn_block_count = 0
        self.encoded_block_count = 0
        self.redone_block_count = 0
        # Runs from when the prompt is complete.
        self.stopwatch: Stopwatch | None = None
        self.first_step_work = FirstStepWork()

    def timed(self, work: Literal["encode", "prefill", "step"]) -> AbstractContextManager[None]:
        """Times a piece of work that is done while the listener waits."""
        return nullcontext() if self.stopwatch is None else self.stopwatch.time(work)


class ReasonerEngine(SlotEngine[ReasonerStream]):
    """The reasoner's slots. `prefill_chunk`: positions of a prompt that are run between two decode steps."""

    def __init__(
        self,
        model: ReasonerModel,
        tokenizer: Tokenizer,
        features: MelFeatures,
        *,
        slot_count: int,
        queue_limit: int,
        context_length: int,
        prefill_chunk: int,
    ) -> None:
        super().__init__(slot_count, queue_limit, "reasoner-device", device=model.device, keeps_longest=True)
        self.model = model
        self.tokenizer = tokenizer
        self.features = features
        self.context_length = context_length
        self.prefill_chunk = prefill_chunk
        self.step = TokenStep(model, slot_count=slot_count, context_length=context_length)
        self.kept = KeptPrefixes(slot_count)
        self._new_clip = partial(HeardClip, features, model.config.audio.mel_block, KnownClips())
        self._prefilling = PrefillQueue[ReasonerStream]()

    @torch.inference_mode()
    def warm(self) -> None:
        """Runs each kind of step once into the dump column, so that the first caller does not pay for first times."""
        device, hop = self.model.device, self.features.hop
        mel = self.features.extract(np.zeros(self.model.config.audio.mel_block * hop, np.float32)).to(device)
        cache = self.step.cache
        (chunk,) = chunks(self.model.encode_block(mel)[:1], self.prefill_chunk, cache)
        nowhere = replace(chunk, columns=torch.full_like(chunk.columns, cache.dump))
        self.model.next_token(self.model.prefill(nowhere, cache.slot(0)))
        self.step.warm()

    def join(self, stream: ReasonerStream) -> None:
        """A slot needs no preparation: what an earlier stream left in it is never seen."""
        audio_token_id = self.model.config.audio_token_id
        stream.reading = LivePrompt(self.tokenizer, self._new_clip, audio_token_id, self.context_length)

    def leave(self, stream: ReasonerStream) -> None:
        """Drops a prefill that is under way; what it has done already can be found by others."""
        self._prefilling.drop(stream)
        stream.was_read = None

    @torch.inference_mode()
    def advance(self) -> bool:
        """One piece of a prefill, then one token of every reply that is being written."""
        for stream in self.streams.values():
            if stream.reading is not None and not stream.done:
                self._listen(stream, stream.reading)
        self._prefilling.advance()
        self.deliver()  # a first step does not wait for the second ones
        writing = [s for s in self.streams.values() if s.decoding and not s.done and s.writable]
        if writing:
            self._decode(writing)
        return bool(self._prefilling or writing)

    def _listen(self, stream: ReasonerStream, reading: LivePrompt) -> None:
        """Takes what has come; where it is enough to do something, that is queued."""
        # `ended` first: what was sent before it is in the inbox.
        ended = stream.ended
        while stream.inbox:
            reading.take(stream.take())
        if ended and not reading.is_complete:
            reading.complete()
            # However early the stream was opened, nobody has waited for it before.
            stream.due_at = max(stream.due_at, time.perf_counter())
            stream.stopwatch = Stopwatch(self.model.device)
        if reading.is_behind and not stream.is_in_queue:
            stream.is_in_queue = True
            self._prefilling.add(stream, self._prefill(stream, reading))

    def _prefill(self, stream: ReasonerStream, reading: LivePrompt) -> Pieces:
        """Runs the positions that are known, and when these are all emits the first step; yields between pieces of
        bounded work."""
        while True:
            while not reading.is_complete and self._are_awaited:
                yield Progress.WAITED
            with stream.timed("encode"):
                has_heard = reading.hear()
            if not has_heard:
                with stream.timed("prefill"):
                    places = reading.places()
                    if places is not stream.places:
                        self._find(stream, places, is_complete=reading.is_complete)
                if stream.column == len(places):
                    break
                end = min(stream.column + self.prefill_chunk, len(places))
                missing = (it for it in reading.blocks(stream.column, end) if it.block.embeddings is None)
                if placed := next(missing, None):
                    with stream.timed("encode"):
                        self._encode(stream, placed)
                else:
                    with stream.timed("prefill"):
                        hidden = self._run(stream, places, end)
                    if reading.is_complete and end == len(places):
                        self._begin_reply(stream, reading, hidden)
                        return
            yield Progress.WORKED
        reading.rest()
        stream.is_in_queue = False

    @property
    def _are_awaited(self) -> bool:
        """Whether there are prompts to be read that are complete: one that is not keeps none of them waiting."""
        others = (stream.reading for stream in self.streams.values() if not stream.done)
        return any(reading is not None and reading.is_complete for reading in others)

    def _find(self, stream: ReasonerStream, places: Identities, *, is_complete: bool) -> None:
        """Goes back to where the slot holds something else than these positions, or on to as many as any slot holds.

        Of a prompt that is complete at least the last position is run, whose state gives the first step.
        """
        own = 0 if stream.places is None else common_length(stream.places[: stream.column], places)
        donor, common = self.kept.longest(places, stream.slot)
        common = min(common, len(places) - is_complete)
        if donor != stream.slot:
            self.kept.forget(stream.slot)
            self.step.cache.copy(donor, stream.slot, common)
            self.kept.keep(stream.slot, places[:common])
        stream.found_count = min(min(stream.found_count, own) + max(common - own, 0), common)
        stream.places, stream.column = places, common

    def _encode(self, stream: ReasonerStream, placed: PlacedBlock) -> None:
        """Encodes a block of sound, or computes features where they were not needed so far."""
        clip, block = placed.clip, placed.block
        if clip.advance():
            return
        block.embeddings = self.model.encode_block(clip.features(block).to(self.model.device))
        block.encoding_count += 1
        stream.encoded_block_count += 1
        stream.redone_block_count += block.encoding_count > 1

    def _run(self, stream: ReasonerStream, places: Identities, end: int) -> Tensor:
        """Prefills a chunk, from the stream's column to `end` → the state at its last position, [1, hidden]."""
        first, cache = stream.column, self.step.cache
        assert stream.reading is not None
        ids = torch.from_numpy(np.maximum(places[first:end], 0)).to(self.model.device)
        embeddings = self.model.embed_tokens(ids)
        for placed in stream.reading.blocks(first, end):
            encoded, begin = placed.block.embeddings, placed.position
            assert encoded is not None
            low, high = max(begin, first), min(begin + len(encoded), end)
            embeddings[low - first : high - first] = encoded[low - begin : high - begin].to(embeddings.dtype)
        (chunk,) = chunks(embeddings, self.prefill_chunk, cache, first)
        try:
            hidden = self.model.prefill(chunk, cache.slot(stream.slot))
        except Exception:
            self.kept.forget(stream.slot)
            raise
        self.kept.keep(stream.slot, places[:end])
        stream.column = end
        return hidden

    def _begin_reply(self, stream: ReasonerStream, reading: LivePrompt, hidden: Tensor) -> None:
        stream.prompt, stream.turn_block_count = reading.prompt(), reading.turn_block_count
        stream.reading, stream.was_read, stream.places = None, reading, None
        stream.text = self.tokenizer.text_stream()
        stream.decoding = True
        with stream.timed("step"):
            token, state = int(self.model.next_token(hidden)[0]), hidden[0].float().cpu().numpy()
        if (watch := stream.stopwatch) is not None:
            synchronize(self.model.device)
            stream.first_step_work = FirstStepWork(*map(watch.seconds, ("encode", "prefill", "step")))
            stream.stopwatch = None
        self._emit(stream, token, state)

    def _decode(self, writing: list[ReasonerStream]) -> None:
        step = self.step
        step.begin()
        for stream in writing:
            step.token.host[stream.slot] = stream.token
            step.column.host[stream.slot] = stream.column
            stream.column += 1
        highest = max(stream.column - 1 for stream in writing)
        hidden, following = step.run([stream.slot for stream in writing], highest=highest)
        self.count_step(len(writing))
        for stream in writing:
            self._emit(stream, int(following[stream.slot]), hidden[stream.slot])

    def _emit(self, stream: ReasonerStream, token: int, hidden: np.ndarray) -> None:
        """Sends a step, unless another replica has sent it, and ends the stream where the reply ends."""
        index = stream.step_count
        if not np.isfinite(hidden).all():
            # Whoever has the slot next must not inherit it.
            self.step.cache.slot(stream.slot).clear()
            self.kept.forget(stream.slot)
            stream.fail(NotFinite(f"the reasoner's state is not finite at step {index}"))
            return
        resumed = index < len(stream.resumed)
        stream.token = stream.resumed[index] if resumed else token
        stream.step_count += 1
        assert stream.text is not None
        is_end = stream.token == self.model.config.end_token_id
        text = stream.text.read(stream.token)
        if not resumed:
            stream.emit(ReasonerStep(index, stream.token, text, hidden.copy(), is_end))
        if is_end:
            stream.finish()
        elif stream.step_count == stream.max_step_count or stream.column == self.context_length:
            stream.finish_reason = "length"
            stream.finish()
