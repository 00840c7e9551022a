"""The checkpoint's tokenizer and chat template."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from services.inference.checkpoint import CheckpointError


class SpecialTokenInText(ValueError):
    """A text holds a special token: it could end the turn or stand for audio that is not there."""


class Tokenizer:
    """Text to token ids and back. The class is fixed here, so no code that a checkpoint names is ever run."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: the tokenizer can't be read: {error}") from error
        self._special = sorted(
            token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special
        )
        # In a byte-level vocabulary a character stands for a byte.
        self.longest_token_bytes = max(map(len, self._tokenizer.get_vocab()))

    def check_fits(self, vocabulary_size: int) -> None:
        """Raises CheckpointError when a text could give a token that the model's tables have no row for."""
        if (largest := max(self._tokenizer.get_vocab().values())) >= vocabulary_size:
            raise CheckpointError(f"the tokenizer has token {largest}; config.json says vocab_size {vocabulary_size}")

    def refuse_special_tokens(self, text: str) -> None:
        """Raises SpecialTokenInText when a caller's text has one."""
        if found := [token for token in self._special if token in text]:
            raise SpecialTokenInText(f"text may not hold the model's special tokens; it has {', '.join(found)}")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands; special tokens in it count as such."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def token(self, token_id: int) -> str:
        """The token of an id."""
        token: str = self._tokenizer.convert_ids_to_tokens(token_id)
        return token

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt of a conversation by the checkpoint's chat template, ready for the reply."""
        rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return rendered

    def text_stream(self, token_ids: Iterable[int] = ()) -> "TextStream":
        """A decoder of a reply's text that has already read `token_ids`."""
        stream = TextStream(self._tokenizer.backend_tokenizer)
        for token_id in token_ids:
            stream.read(token_id)
        return stream


class TextStream:
    """Gives the text that became complete with each token: never half a character, never a special token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def read(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        if self._tokenizer.id_to_token(token_id) is None:
            return ""  # an id that the vocabulary leaves out: it has no text
        return self._stream.step(self._tokenizer, token_id) or ""
