"""The prompt: what the reference's processor makes of a conversation."""

from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.tokenizer import Tokenizer
from services.reasoner.audio_encoder import audio_token_count
from services.reasoner.features import MelFeatures
from services.reasoner.prompt import Clip, Turn, assemble, texts_between_clips
from tests.conftest import GoldenCase

AUDIO_TOKEN_ID = 3
CLIP = Clip(np.zeros(1_000, np.float32))


def test_prompts_equal_the_references(golden_case: GoldenCase, tokenizer: Tokenizer, mel_features: MelFeatures) -> None:
    counts = [audio_token_count(mel_features.frame_count(len(clip))) for clip in golden_case.clips]
    prompt = assemble(golden_case.turns(), counts, tokenizer, AUDIO_TOKEN_ID)
    assert prompt.token_ids == tokenizer.encode(golden_case.spec["rendered"])
    assert prompt.token_ids == golden_case.expected["reasoner_input_ids"].reshape(-1).tolist()
    assert [prompt.token_ids[first:end] for first, end in prompt.clip_spans] == [[AUDIO_TOKEN_ID] * n for n in counts]


def test_transcripts_equal_the_references(golden_case: GoldenCase, tokenizer: Tokenizer) -> None:
    assert (
        tokenizer.encode(golden_case.voice().transcript) == golden_case.expected["voice_text_ids"].reshape(-1).tolist()
    )


def test_each_clip_gets_its_own_run_of_places(tokenizer: Tokenizer) -> None:
    turns = [Turn("user", (CLIP, "and", CLIP)), Turn("assistant", ("yes",)), Turn("user", (CLIP,))]
    ids = assemble(turns, [2, 5, 1], tokenizer, AUDIO_TOKEN_ID).token_ids
    runs = "".join("A" if i == AUDIO_TOKEN_ID else "." for i in ids).replace(".", " ").split()
    assert [len(run) for run in runs] == [2, 5, 1]


@given(parts=st.lists(st.text(min_size=1) | st.integers(1, 3), min_size=1))
def test_texts_around_clips_are_encoded_as_in_the_whole(tokenizer: Tokenizer, parts: list[str | int]) -> None:
    turn = Turn("user", tuple(part if isinstance(part, str) else CLIP for part in parts))
    counts = [part for part in parts if isinstance(part, int)]
    placeholder = tokenizer.token(AUDIO_TOKEN_ID)
    pieces = texts_between_clips([turn], tokenizer, AUDIO_TOKEN_ID)
    whole = "".join(piece + placeholder * count for piece, count in zip_longest(pieces, counts, fillvalue=0))
    assert assemble([turn], counts, tokenizer, AUDIO_TOKEN_ID).token_ids == tokenizer.encode(whole)


def test_parts_stand_side_by_side_as_they_are(tokenizer: Tokenizer) -> None:
    whole, split = (Turn("user", parts) for parts in (("hello there",), ("hello ", "there")))
    one, two = (assemble([turn], [], tokenizer, AUDIO_TOKEN_ID) for turn in (whole, split))
    assert one == two


def test_a_template_that_loses_a_clip_is_an_error(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "render", lambda messages: "no audio here")
    with pytest.raises(ValueError, match="0 audio placeholders for 1 clips"):
        assemble([Turn("user", (CLIP,))], [1], tokenizer, AUDIO_TOKEN_ID)
