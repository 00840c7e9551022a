"""The tokenizer: words in pieces, as many as the word has steps, so that text and sound keep pace."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|text_start|>",
    "<|text_end|>",
)
"""In the order of their ids."""
PAD, TURN_START, TURN_END, AUDIO, AUDIO_START, AUDIO_END = range(6)
TEXT_START, TEXT_END = 10, 11

_UNKNOWN = "[UNK]"
_ROLES = ("system", "user", "assistant")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_INNER = "##"
_LETTERS = (*_CHARACTERS, *(_INNER + letter for letter in _CHARACTERS))
"""Always in the vocabulary, so that any word can be read."""
_ROUNDS, _WAYS, _SHAKEN = 3000, 12, 0.1

# Instructions are left out: the miniature was never taught to follow any, and each of their letters would be a token.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(step_counts: Mapping[str, int]) -> Tokenizer:
    """A tokenizer that cuts each of these words into as many pieces as it is given here, and any other into letters.

    Raises ValueError when no way to cut them is found.
    """
    ways = {word: list(islice(_cuts(word, count), _WAYS)) for word, count in step_counts.items()}
    cuts = {word: found[0] for word, found in ways.items()}
    chance = random.Random(0)  # noqa: S311 - no secret
    for _ in range(_ROUNDS):
        vocabulary = _pieces(cuts.values())
        wrong = _wrongly_read(step_counts, vocabulary)
        if not wrong:
            return _tokenizer(vocabulary)
        # The longest piece that fits is taken: one of another word fits here too, so one of the two is cut anew.
        word = chance.choice(wrong)
        strange = set(_read(word, vocabulary)) - set(_named(cuts[word]))
        owners = [other for other, cut in cuts.items() if strange & set(_named(cut))]
        recut = chance.choice([word, *owners])
        if chance.random() < _SHAKEN:
            cuts[recut] = chance.choice(ways[recut])
        else:
            left = [len(_wrongly_read(step_counts, _pieces({**cuts, recut: way}.values()))) for way in ways[recut]]
            cuts[recut] = ways[recut][chance.choice([index for index, n in enumerate(left) if n == min(left)])]
    raise ValueError(f"no way to cut {', '.join(wrong)} into as many pieces as they have steps")


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "additional_special_tokens": list(SPECIAL[1:]),
        "eos_token": SPECIAL[TURN_END],
        "pad_token": SPECIAL[PAD],
        "unk_token": _UNKNOWN,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _cuts(word: str, count: int) -> Iterator[tuple[str, ...]]:
    """All ways to cut a word into so many pieces, the most even first."""
    if count > len(word):
        raise ValueError(f"{word!r} has no {count} letters")
    places = combinations(range(1, len(word)), count - 1)
    pieces = (tuple(word[a:b] for a, b in zip((0, *cut), (*cut, len(word)), strict=True)) for cut in places)
    yield from sorted(pieces, key=lambda parts: (max(map(len, parts)) - min(map(len, parts)), parts))


def _named(parts: tuple[str, ...]) -> list[str]:
    """Pieces as the vocabulary has them: those within a word are marked."""
    return [parts[0], *(_INNER + part for part in parts[1:])]


def _pieces(cuts: Iterable[tuple[str, ...]]) -> frozenset[str]:
    return frozenset((*_LETTERS, *(piece for parts in cuts for piece in _named(parts))))


def _read(word: str, vocabulary: frozenset[str]) -> list[str]:
    """The pieces that a tokenizer with this vocabulary cuts the word into: each the longest that fits."""
    pieces: list[str] = []
    at = 0
    while at < len(word):
        mark = _INNER if at else ""
        end = next(end for end in range(len(word), at, -1) if mark + word[at:end] in vocabulary)
        pieces.append(mark + word[at:end])
        at = end
    return pieces


def _wrongly_read(step_counts: Mapping[str, int], vocabulary: frozenset[str]) -> list[str]:
    return [word for word, count in step_counts.items() if len(_read(word, vocabulary)) != count]


def _tokenizer(vocabulary: frozenset[str]) -> Tokenizer:
    names = dict.fromkeys((*SPECIAL, _UNKNOWN, *_ROLES, *sorted(vocabulary - set(_LETTERS)), *_LETTERS))
    model = WordPiece({name: index for index, name in enumerate(names)}, unk_token=_UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix=_INNER, cleanup=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer
