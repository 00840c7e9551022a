"""The tokenizer: no special token gets in through a text, and text comes out token by token, whole."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.checkpoint import CheckpointError
from services.inference.tokenizer import SpecialTokenInText, Tokenizer

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    *("<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>", "<|text_start|>", "<|text_end|>"),
]
SENTENCES = [
    "I use this every day.",
    "héllo wörld",
    "日本語です",
    "🎉\U0001f469\u200d\U0001f469\u200d\U0001f467 ok",
    "naïve\n\tcafé  ",
    " ",
    "<|not special|>",
]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.text_stream()
    return "".join(stream.read(token_id) for token_id in ids)


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The whole text at once, as the tokenizers library has it."""
    backend = tokenizer._tokenizer.backend_tokenizer
    return backend.decode([i for i in ids if backend.id_to_token(i) is not None], skip_special_tokens=True)


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_are_refused_wherever_they_stand(tokenizer: Tokenizer, token: str) -> None:
    for text in (token, f"hello{token}", f"{token} hello", f"he{token}llo", f"<|{token}"):
        with pytest.raises(SpecialTokenInText) as refused:
            tokenizer.refuse_special_tokens(text)
        assert token in str(refused.value)


@given(text=st.text())
def test_a_text_that_is_let_through_encodes_to_no_special_token(tokenizer: Tokenizer, text: str) -> None:
    tokenizer.refuse_special_tokens(text)
    assert not {tokenizer.token(i) for i in tokenizer.encode(text)} & set(SPECIAL)


@given(pieces=st.lists(st.sampled_from([*"<|>_ab ", *SPECIAL, "im_end", "<|im", "audio"]), max_size=12))
def test_what_would_encode_to_a_special_token_is_refused(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    if {tokenizer.token(i) for i in tokenizer.encode(text)} & set(SPECIAL):
        with pytest.raises(SpecialTokenInText):
            tokenizer.refuse_special_tokens(text)
    else:
        tokenizer.refuse_special_tokens(text)


@pytest.mark.parametrize("text", SENTENCES)
def test_the_text_stream_joined_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert streamed(tokenizer, ids) == text == decoded(tokenizer, ids)


@given(text=st.text(max_size=30))
def test_the_text_stream_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert streamed(tokenizer, tokenizer.encode(text)) == text


def test_a_character_comes_whole_with_its_last_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é🎉")
    stream = tokenizer.text_stream()
    assert len(ids) == 6
    assert [stream.read(token_id) for token_id in ids] == ["", "é", "", "", "", "🎉"]


@given(ids=st.lists(st.integers(0, 447), max_size=60))
def test_any_tokens_joined_are_the_full_decode_less_an_unfinished_end(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Random weights write bytes that are no UTF-8, and ids without a token: neither may break a reply."""
    text, full = streamed(tokenizer, ids), decoded(tokenizer, ids)
    assert full.startswith(text)
    assert text == full or full.endswith("�")


@given(text=st.text(max_size=20), data=st.data())
def test_a_stream_that_starts_later_goes_on_as_if_it_had_read_all(
    tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = tokenizer.encode(text)
    start = data.draw(st.integers(0, len(ids)))
    whole, later = tokenizer.text_stream(), tokenizer.text_stream(ids[:start])
    expected = [whole.read(token_id) for token_id in ids]
    assert [later.read(token_id) for token_id in ids[start:]] == expected[start:]


def test_special_tokens_and_unknown_ids_have_no_text(tokenizer: Tokenizer) -> None:
    stream = tokenizer.text_stream()
    ids = tokenizer.encode("a<|im_end|>b")
    assert [stream.read(token_id) for token_id in (ids[0], ids[1], 447, ids[2])] == ["a", "", "", "b"]


@given(text=st.text())
def test_no_text_has_fewer_tokens_than_its_bytes_make_at_least(tokenizer: Tokenizer, text: str) -> None:
    assert len(text.encode()) <= len(tokenizer.encode(text)) * tokenizer.longest_token_bytes


def test_a_token_and_its_id_belong_together(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token(i) for i in tokenizer.encode("".join(SPECIAL))] == SPECIAL


def test_a_conversation_is_rendered_ready_for_the_reply(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "audio", "audio": ""}]},
    ]
    assert tokenizer.render(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\na<|audio_bos|><|AUDIO|><|audio_eos|><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_vocabulary_beyond_the_models_tables_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(448)
    largest = max(tokenizer._tokenizer.get_vocab().values())
    tokenizer.check_fits(largest + 1)
    with pytest.raises(CheckpointError, match=f"token {largest}; .*vocab_size {largest}"):
        tokenizer.check_fits(largest)


def test_a_folder_without_a_tokenizer_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer can't be read"):
        Tokenizer(tmp_path)
