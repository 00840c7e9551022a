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
_ROUNDS, _WAYS = 3000, 12

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
        tokenizer = _tokenizer(cuts.values())
        read = {word: tokenizer.encode(word).tokens for word in step_counts}
        wrong = [word for word, count in step_counts.items() if len(read[word]) != count]
        if not wrong:
            return tokenizer
        # The longest piece that fits is taken: one of another word fits here too, so one of the two is cut anew.
        word = chance.choice(wrong)
        strange = set(read[word]) - set(_named(cuts[word]))
        owners = [other for other, cut in cuts.items() if strange & set(_named(cut))]
        recut = chance.choice([word, *owners])
        cuts[recut] = chance.choice(ways[recut])
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


def _tokenizer(cuts: Iterable[tuple[str, ...]]) -> Tokenizer:
    pieces: dict[str, None] = {}
    for parts in cuts:
        pieces.update(dict.fromkeys(_named(parts)))
    letters = (*_CHARACTERS, *(_INNER + letter for letter in _CHARACTERS))
    names = dict.fromkeys((*SPECIAL, _UNKNOWN, *_ROLES, *sorted(pieces), *letters))
    model = WordPiece({name: index for index, name in enumerate(names)}, unk_token=_UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix=_INNER, cleanup=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer
