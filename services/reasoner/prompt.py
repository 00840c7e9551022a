"""What the reasoner reads: a conversation as token ids, with places for audio."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from services.inference.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Clip:
    """Something said: samples [n] float32 in [-1, 1] at the feature extractor's rate."""

    samples: np.ndarray


@dataclass(frozen=True)
class Turn:
    """A message of the conversation: texts and clips in order."""

    role: Role
    parts: tuple[str | Clip, ...]


@dataclass(frozen=True)
class Prompt:
    """Token ids of a conversation; the placeholders of each clip stand in one run, in the clips' order.

    clip_spans: the first position of each clip, and the one after its last.
    """

    token_ids: list[int]
    clips: tuple[Clip, ...]
    clip_spans: tuple[tuple[int, int], ...]


def assemble(
    turns: Sequence[Turn], clip_token_counts: Sequence[int], tokenizer: Tokenizer, audio_token_id: int
) -> Prompt:
    """Renders a conversation with the chat template and expands each clip's placeholder to its count of positions."""
    clips = tuple(part for turn in turns for part in turn.parts if isinstance(part, Clip))
    placeholder = tokenizer.token(audio_token_id)
    rendered = tokenizer.render([_message(turn) for turn in turns])
    pieces = rendered.split(placeholder)
    if len(pieces) != len(clips) + 1:
        raise ValueError(f"the chat template gave {len(pieces) - 1} audio placeholders for {len(clips)} clips")
    expanded = pieces[0]
    for count, piece in zip(clip_token_counts, pieces[1:], strict=True):
        expanded += placeholder * count + piece
    token_ids = tokenizer.encode(expanded)
    # No text may spell a special token, so every placeholder is a clip's.
    places = iter([index for index, token_id in enumerate(token_ids) if token_id == audio_token_id])
    spans = [list(islice(places, count)) for count in clip_token_counts]
    return Prompt(token_ids, clips, tuple((span[0], span[-1] + 1) if span else (0, 0) for span in spans))


def _message(turn: Turn) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio", "audio": ""}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}
