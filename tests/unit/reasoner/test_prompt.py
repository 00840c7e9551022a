"""The prompt: what the reference's processor makes of a conversation."""

import numpy as np
import pytest

from services.inference.tokenizer import Tokenizer
from services.reasoner.features import MelFeatures
from services.reasoner.model import audio_token_count
from services.reasoner.prompt import Clip, Turn, assemble
from tests.conftest import GoldenCase

AUDIO_TOKEN_ID = 3
CLIP = Clip(np.zeros(1_000, np.float32))


def test_prompts_equal_the_references(golden_case: GoldenCase, tokenizer: Tokenizer, mel_features: MelFeatures) -> None:
    counts = [audio_token_count(mel_features.frame_count(len(clip))) for clip in golden_case.clips]
    prompt = assemble(golden_case.turns(), counts, tokenizer, AUDIO_TOKEN_ID)
    assert prompt.token_ids == tokenizer.encode(golden_case.spec["rendered"])
    assert prompt.token_ids == golden_case.expected["reasoner_input_ids"].reshape(-1).tolist()
    assert [id(clip.samples) for clip in prompt.clips] == [id(clip) for clip in golden_case.clips]


def test_transcripts_equal_the_references(golden_case: GoldenCase, tokenizer: Tokenizer) -> None:
    assert (
        tokenizer.encode(golden_case.voice().transcript) == golden_case.expected["voice_text_ids"].reshape(-1).tolist()
    )


def test_each_clip_gets_its_own_run_of_places(tokenizer: Tokenizer) -> None:
    turns = [Turn("user", (CLIP, "and", CLIP)), Turn("assistant", ("yes",)), Turn("user", (CLIP,))]
    ids = assemble(turns, [2, 5, 1], tokenizer, AUDIO_TOKEN_ID).token_ids
    runs = "".join("A" if i == AUDIO_TOKEN_ID else "." for i in ids).replace(".", " ").split()
    assert [len(run) for run in runs] == [2, 5, 1]


def test_parts_stand_side_by_side_as_they_are(tokenizer: Tokenizer) -> None:
    whole, split = (Turn("user", parts) for parts in (("hello there",), ("hello ", "there")))
    one, two = (assemble([turn], [], tokenizer, AUDIO_TOKEN_ID) for turn in (whole, split))
    assert one == two


def test_a_template_that_loses_a_clip_is_an_error(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "render", lambda messages: "no audio here")
    with pytest.raises(ValueError, match="0 audio placeholders for 1 clips"):
        assemble([Turn("user", (CLIP,))], [1], tokenizer, AUDIO_TOKEN_ID)
