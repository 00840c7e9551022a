"""Schedules the reasoner's slots: one piece of a prefill and one token of every reply, in turn."""

import hashlib
import secrets
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from services.inference.batch_rows import batch_rows
from services.inference.prefill import Pieces, PrefillQueue, Progress, chunks
from services.inference.prefixes import Identities, KeptPrefixes, identities
from services.inference.slots import NotFinite, Refused, SlotEngine, Stream
from services.inference.tokenizer import SpecialTokenInText, TextStream, Tokenizer
from services.reasoner.features import MelFeatures
from services.reasoner.model import ReasonerModel, audio_token_count
from services.reasoner.prompt import Clip, Prompt, Turn, assemble
from services.reasoner.token_step import TokenStep


@dataclass(frozen=True)
class ReasonerStep:
    """A token of the reply and the state it was read from, hidden_state [hidden] float32."""

    index: int
    token_id: int
    text: str
    hidden_state: np.ndarray
    is_end: bool


@dataclass(eq=False)
class ReasonerStream(Stream[list[Turn], ReasonerStep]):
    """One reply's text. Its one input is the conversation; `resumed` are tokens that were sent by another replica."""

    max_step_count: int | None = None
    resumed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.prompt: Prompt | None = None
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.step_count = 0
        self.column = 0
        self.token = 0
        self.decoding = False
        self.text: TextStream | None = None
        self.has_prompt = False
        # Positions of the prompt that another stream had left.
        self.found_count = 0


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
        self.prefill_chunk = batch_rows(prefill_chunk, model.device)
        self.step = TokenStep(model, slot_count=slot_count, context_length=context_length)
        self.kept = KeptPrefixes(slot_count)
        # Nobody outside can make sounds that pass for others'.
        self._clip_key = secrets.token_bytes(16)
        self._prefilling = PrefillQueue[ReasonerStream]()

    @torch.inference_mode()
    def warm(self) -> None:
        """Runs each kind of step once into the dump column, so that the first caller does not pay for first times."""
        device, hop = self.model.device, self.features.hop
        mel = self.features.extract(np.zeros(self.model.config.mel_block * hop, np.float32)).to(device)
        cache = self.step.cache
        (chunk,) = chunks(self.model.encode_block(mel)[:1], self.prefill_chunk, cache)
        nowhere = replace(chunk, columns=torch.full_like(chunk.columns, cache.dump))
        self.model.next_token(self.model.prefill(nowhere, cache.slot(0)))
        self.step.warm()

    def join(self, stream: ReasonerStream) -> None:
        """A slot needs no preparation: what an earlier stream left in it is never seen."""

    def leave(self, stream: ReasonerStream) -> None:
        """Drops a prefill that is under way."""
        self._prefilling.drop(stream)

    @torch.inference_mode()
    def advance(self) -> bool:
        """One piece of the oldest prefill, then one token of every reply that is being written."""
        for stream in self.streams.values():
            if stream.inbox and not stream.has_prompt and not stream.done:
                stream.has_prompt = True
                self._prefilling.add(stream, self._prefill(stream, stream.take()))
        if complete := self._prefilling.advance():
            complete.decoding = True
        writing = [s for s in self.streams.values() if s.decoding and not s.done and s.writable]
        if writing:
            self._decode(writing)
        return bool(self._prefilling or writing)

    def _prefill(self, stream: ReasonerStream, turns: list[Turn]) -> Pieces:
        """Reads the conversation and emits the first step; yields between pieces of bounded work.

        What a slot still holds of a prompt that began alike is copied. The rest is run, at least the last position,
        whose state gives the first step.
        """
        prompt = self._assemble(turns)
        stream.prompt = prompt
        stream.text = self.tokenizer.text_stream()
        yield Progress.WORKED
        places = self._identities(prompt)
        donor, common = self.kept.longest(places)
        found = min(common, len(places) - 1)
        self.kept.forget(stream.slot)
        self.step.cache.copy(donor, stream.slot, found)
        stream.found_count = found
        embeddings = yield from self._embed(prompt, found)
        hidden = embeddings[:1]
        for chunk in chunks(embeddings, self.prefill_chunk, self.step.cache, found):
            yield Progress.WORKED
            hidden = self.model.prefill(chunk, self.step.cache.slot(stream.slot))
        stream.column = len(places)
        self.kept.keep(stream.slot, places)
        tokens = self.model.next_token(hidden)
        self._emit(stream, int(tokens[0]), hidden[0].float().cpu().numpy())

    def _embed(self, prompt: Prompt, first: int) -> Generator[Progress, None, Tensor]:
        """Embeddings of a prompt's positions from `first` on, [n, hidden]; a block of sound at a time."""
        ids = torch.tensor(prompt.token_ids, device=self.model.device)
        embeddings = self.model.embed_tokens(ids)
        for clip, (start, end) in zip(prompt.clips, prompt.clip_spans, strict=True):
            if end <= first:
                continue
            mel = self.features.extract(clip.samples)
            if not mel.isfinite().all():
                # In the cache it would spoil every later reply of the slot: a mask does not hide what is no number.
                raise Refused("the sound is too loud: its power is beyond float32; full scale is 1.0")
            blocks = []
            for block in mel.to(self.model.device).split(self.model.config.mel_block, dim=1):
                blocks.append(self.model.encode_block(block))
                yield Progress.WORKED
            embeddings[start:end] = torch.cat(blocks).to(embeddings.dtype)
        return embeddings[first:]

    def _identities(self, prompt: Prompt) -> Identities:
        """A position of a clip is its place in that clip's sound, which no token is equal to."""
        places = identities(prompt.token_ids)
        for clip, (start, end) in zip(prompt.clips, prompt.clip_spans, strict=True):
            digest = hashlib.blake2b(clip.samples.tobytes(), digest_size=8, key=self._clip_key).digest()
            sound = int.from_bytes(digest, "little") >> 2
            places[start:end] = -1 - sound - np.arange(end - start)
        return places

    def _assemble(self, turns: list[Turn]) -> Prompt:
        clips = [part for turn in turns for part in turn.parts if isinstance(part, Clip)]
        for turn in turns:
            # Texts side by side join in the prompt, so they may spell a special token only together.
            text = "".join(part if isinstance(part, str) else "\n" for part in turn.parts)
            try:
                self.tokenizer.refuse_special_tokens(text)
            except SpecialTokenInText as refusal:
                raise Refused(str(refusal)) from refusal
        counts = [audio_token_count(self.features.frame_count(len(clip.samples))) for clip in clips]
        prompt = assemble(turns, counts, self.tokenizer, self.model.config.audio_token_id)
        if len(prompt.token_ids) >= self.context_length:
            raise Refused(
                f"the conversation is too long: it has {len(prompt.token_ids)} positions; "
                f"expected fewer than the context of {self.context_length}"
            )
        return prompt

    def _decode(self, writing: list[ReasonerStream]) -> None:
        step = self.step
        step.begin()
        for stream in writing:
            step.token.host[stream.slot] = stream.token
            step.column.host[stream.slot] = stream.column
            stream.column += 1
        highest = max(stream.column - 1 for stream in writing)
        hidden, following = step.run([stream.slot for stream in writing], highest=highest)
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
