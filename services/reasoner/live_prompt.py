"""The prompt of a conversation whose last turn is still coming."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from services.inference.prefixes import Identities, identities
from services.inference.slots import Refused, TooLong
from services.inference.tokenizer import SpecialTokenInText, Tokenizer
from services.reasoner.heard_clip import Block, HeardClip
from services.reasoner.prompt import Clip, History, Prompt, Samples, Turn, interleave, texts_between_clips

Input = History | Samples | str | list[Turn]
"""History first, if there is one, then the turn: samples and texts in pieces of any size, where pieces of a kind side
by side are one clip or one text. Or a whole conversation at once, turn and all."""

TO_COME = Clip(np.empty(0, np.float32))
"""Stands in a turn for a clip that is given piece by piece."""


@dataclass(frozen=True)
class PlacedBlock:
    """A block of a clip, and its first position in the prompt."""

    position: int
    clip: HeardClip
    block: Block


@dataclass(frozen=True)
class Rendered:
    """A turn, and the tokens of what stands before each clip of the conversation with it and after the last."""

    parts: list[str | Clip]
    texts: list[Identities]


class LivePrompt:
    """Knows at any time with which positions the prompt begins, as far as they can be told from what has come.

    Until the input is complete these end with the turn's last clip, as far as that is known: a text behind it may still
    grow, and its last token change. Before a clip has come it is taken for granted that one will. A louder sound, or a
    text where a clip was expected, can change positions that were told before.
    """

    def __init__(
        self, tokenizer: Tokenizer, new_clip: Callable[[], HeardClip], audio_token_id: int, context_length: int
    ) -> None:
        # The input is complete.
        self.is_complete = False
        self._tokenizer = tokenizer
        self._new_clip = new_clip
        self._audio_token_id = audio_token_id
        self._context_length = context_length
        self._history: tuple[Turn, ...] = ()
        self._parts: list[str | Clip] = []
        # Clips of the history that were not looked at yet, and those that were, then those of the turn.
        self._unheard: list[Clip] = []
        self._clips: list[HeardClip] = []
        self._turn_clips: list[HeardClip] = []
        self._is_whole = False
        self._is_behind = False
        self._encoded: dict[str, Identities] = {}
        self._rendered: Rendered | None = None
        self._texts: list[Identities] | None = None
        self._places: Identities | None = None
        self._spans: tuple[tuple[int, int], ...] = ()
        self._revision = 0

    def take(self, item: Input) -> None:
        """Takes what came next; what there is to do about it is done later."""
        match item:
            case History(turns=turns):
                self._history = turns
                self._unheard = _clips(turns)
                self._changed()
            case list():
                self._is_whole = True
                self._history = tuple(item)
                self._unheard = _clips(item)
            case str():
                self._end_clip()
                if self._parts and isinstance(last := self._parts[-1], str):
                    self._parts[-1] = last + item
                else:
                    self._parts.append(item)
            case _:
                if not self._parts or isinstance(self._parts[-1], str):
                    self._parts.append(TO_COME)
                    self._turn_clips.append(self._new_clip())
                    self._changed()
                self._turn_clips[-1].add(item)

    def complete(self) -> None:
        """Says that all has come."""
        self._end_clip()
        self.is_complete = True
        self._changed()

    @property
    def is_behind(self) -> bool:
        """Whether there may be something to do."""
        return self._is_behind or (bool(self._turn_clips) and self._turn_clips[-1].can_advance)

    def hear(self) -> bool:
        """Does a piece of what can be done to know more positions; False when there is nothing.

        Raises Refused for sound that is too loud.
        """
        if self._unheard:
            clip = self._new_clip()
            clip.add(self._unheard.pop(0).samples)
            clip.end()
            self._clips.append(clip)
            return True
        return any(not clip.is_complete and clip.advance() for clip in self._heard)

    def places(self) -> Identities:
        """Identities of the positions that are known, when there is nothing to `hear`.

        It is the same array until one changes. Raises Refused for a special token in a text, TooLong for more positions
        than the context has.
        """
        revision = sum(clip.revision for clip in self._heard)
        if self._places is None or revision != self._revision:
            if self._texts is None:
                self._texts = self._encode()
            clips = [clip.identities for clip in self._heard]
            self._places, self._spans = interleave(self._texts, clips)
            self._revision = revision
        if len(self._places) >= self._context_length:
            raise TooLong(
                f"the conversation is too long: it has {len(self._places)} positions; "
                f"expected fewer than the context of {self._context_length}"
            )
        return self._places

    def rest(self) -> None:
        """Says that all is done that can be done until more comes."""
        self._is_behind = False

    def blocks(self, first: int, end: int) -> Iterator[PlacedBlock]:
        """The blocks that have some of positions `first` ..< `end` of `places`."""
        for clip, (position, _) in zip(self._heard, self._spans, strict=False):
            begin = position
            for block in clip.blocks:
                if begin < end and begin + block.position_count > first:
                    yield PlacedBlock(begin, clip, block)
                begin += block.position_count

    def prompt(self) -> Prompt:
        """The prompt, when the input is complete."""
        places = self.places()
        return Prompt(np.where(places < 0, self._audio_token_id, places).tolist(), self._spans)

    @property
    def turn_block_count(self) -> int:
        """Blocks of the turn's clips."""
        whole = len(_clips(self._history[-1:])) if self._is_whole else 0
        turn_clips = self._clips[len(self._clips) - whole :] if whole else self._turn_clips
        return sum(len(clip.blocks) for clip in turn_clips)

    @property
    def _heard(self) -> list[HeardClip]:
        return self._clips + self._turn_clips

    def _end_clip(self) -> None:
        if self._parts and isinstance(self._parts[-1], Clip):
            self._turn_clips[-1].end()
            self._changed()

    def _changed(self) -> None:
        self._texts = self._places = None
        self._is_behind = True

    def _encode(self) -> list[Identities]:
        """Tokens of what stands before each clip and, when the input is complete, after the last."""
        parts = self._parts
        if not self.is_complete:
            last = max((index for index, part in enumerate(parts) if isinstance(part, Clip)), default=-1)
            parts = parts[: last + 1] or [TO_COME]
        # A turn that ends as was taken for granted leaves nothing to be rendered at its end.
        if self._rendered is None or self._rendered.parts != parts:
            self._rendered = Rendered(list(parts), self._render(parts))
        return self._rendered.texts if self.is_complete else self._rendered.texts[:-1]

    def _render(self, parts: list[str | Clip]) -> list[Identities]:
        turns = [*self._history, *([Turn("user", tuple(parts))] if parts else [])]
        if not turns:
            raise Refused("the conversation is empty: expected at least one message or a turn")
        # What came before the turn stays as it was when it was looked at first.
        self._refuse_special_tokens(turns[-1:] if self._encoded else turns)
        texts = texts_between_clips(turns, self._tokenizer, self._audio_token_id)
        for text in texts:
            if text not in self._encoded:
                self._encoded[text] = identities(self._tokenizer.encode(text))
        return [self._encoded[text] for text in texts]

    def _refuse_special_tokens(self, turns: list[Turn]) -> None:
        for turn in turns:
            # Texts side by side join in the prompt, so they may spell a special token only together.
            text = "".join(part if isinstance(part, str) else "\n" for part in turn.parts)
            try:
                self._tokenizer.refuse_special_tokens(text)
            except SpecialTokenInText as refusal:
                raise Refused(str(refusal)) from refusal


def _clips(turns: tuple[Turn, ...] | list[Turn]) -> list[Clip]:
    return [part for turn in turns for part in turn.parts if isinstance(part, Clip)]
