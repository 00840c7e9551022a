"""What the reasoner reads: a conversation as token ids, with places for audio."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.inference.prefixes import Identities, identities
from services.inference.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """Something said: samples [n] float32 in [-1, 1] at the feature extractor's rate."""

    samples: Samples


@dataclass(frozen=True)
class Turn:
    """A message of the conversation: texts and clips in order."""

    role: Role
    parts: tuple[str | Clip, ...]


@dataclass(frozen=True)
class History:
    """What came before the turn that is to be answered."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Prompt:
    """Token ids of a conversation; the placeholders of each clip stand in one run, in the clips' order.

    clip_spans: the first position of each clip, and the one after its last.
    """

    token_ids: list[int]
    clip_spans: tuple[tuple[int, int], ...]


def assemble(
    turns: Sequence[Turn], clip_token_counts: Sequence[int], tokenizer: Tokenizer, audio_token_id: int
) -> Prompt:
    """Renders a conversation with the chat template and puts as many placeholders as it has positions for each clip."""
    texts = [identities(tokenizer.encode(text)) for text in texts_between_clips(turns, tokenizer, audio_token_id)]
    clips = [np.full(count, audio_token_id, np.int64) for count in clip_token_counts]
    token_ids, spans = interleave(texts, clips)
    return Prompt(token_ids.tolist(), spans)


def texts_between_clips(turns: Sequence[Turn], tokenizer: Tokenizer, audio_token_id: int) -> list[str]:
    """Renders a conversation with the chat template: what stands before each clip, and after the last.

    A placeholder is a token of its own whatever stands beside it, so each of these texts is encoded alone.
    """
    clip_count = sum(isinstance(part, Clip) for turn in turns for part in turn.parts)
    texts = tokenizer.render([_message(turn) for turn in turns]).split(tokenizer.token(audio_token_id))
    if len(texts) != clip_count + 1:
        raise ValueError(f"the chat template gave {len(texts) - 1} audio placeholders for {clip_count} clips")
    return texts


def interleave(
    texts: Sequence[Identities], clips: Sequence[Identities]
) -> tuple[Identities, tuple[tuple[int, int], ...]]:
    """A text, a clip, and so on, in one; and where the clips are in it."""
    joined, spans, position = [np.empty(0, np.int64)], [], 0
    for text, clip in zip_longest(texts, clips):
        joined.append(text)
        position += len(text)
        if clip is not None:
            joined.append(clip)
            spans.append((position, position + len(clip)))
            position += len(clip)
    return np.concatenate(joined), tuple(spans)


def _message(turn: Turn) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio", "audio": ""}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}
