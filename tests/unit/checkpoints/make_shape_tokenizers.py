"""How services/inference/shapes/*/tokenizer.json were made; run it again only to change them.

    python tests/unit/checkpoints/make_shape_tokenizers.py

A byte-level BPE of Qwen2's form, trained on the sentences below, with the model's special tokens behind it: right
behind it in the small shapes, at their published ids in chroma-4b.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SHAPES = Path(__file__).parents[3] / "services/inference/shapes"

# Offsets from <|endoftext|>, the first one.
PUBLISHED_FIRST = 151643
PUBLISHED = {
    "<|endoftext|>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": 2,
    "<|AUDIO|>": 3,
    "<|audio_bos|>": 4,
    "<|audio_eos|>": 5,
    "<|vision_bos|>": 9,
    "<|vision_eos|>": 10,
    "<|IMAGE|>": 12,
    "<|VIDEO|>": 13,
    "<|text_start|>": 22,
    "<|text_end|>": 23,
}
DENSE = {token: offset for offset, token in enumerate(PUBLISHED)}

# Splits before merging: contractions, words with the space before them, single digits, punctuation, line ends, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SENTENCES = """\
system
user
assistant
You are a helpful assistant.
You are Chroma, an assistant that listens to what people say and answers them with a voice.
Hello, how are you today? I'm fine, thank you, and what about you?
Could you tell me what the weather will be like tomorrow afternoon?
It looks like there will be some rain in the morning, but the sun should come out later.
What time is it now? It is a quarter past seven in the evening.
I would like to book a table for four people on Friday, please.
Of course, I can help you with that. Would you rather sit inside or outside?
Please play some quiet music while I am cooking dinner.
The train to the city leaves every twenty minutes from the second platform.
Where did you put the keys? They are on the small table next to the door.
My sister lives in a little house near the sea, with two dogs and a very old cat.
I don't know the answer to that question, but I can look it up for you.
Let's go for a walk in the park before it gets dark.
She said that she would call back as soon as the meeting was over.
We have been waiting here for almost an hour, and nobody has come yet.
Can you remind me to water the plants when I get home from work?
The first thing to do is to turn the machine off and wait for ten seconds.
He has never seen so much snow in his whole life.
That sounds like a good idea; let me think about it for a moment.
How far is it from here to the airport, and how long does it take by bus?
You can take the blue line and change at the central station.
I am sorry, I did not hear you. Could you say that again, a bit more slowly?
There are three books, five pencils and one green apple on the desk.
Reading aloud to children every night helps them to learn new words.
What is the difference between a frog and a toad?
A frog has smooth skin and long legs, while a toad is dry and prefers to crawl.
Why is the sky blue? Because the air scatters short waves of light more than long ones.
Tell me a short story about a brave mouse who wanted to cross the river.
Once upon a time a mouse found a leaf, and with this leaf she sailed to the other side.
How do I make good coffee without a machine?
Heat the water, pour it over the ground coffee, stir it, and give it four minutes.
They were happy to see their friends again after such a long winter.
This song is my favourite one, because it reminds me of summer.
If you mix yellow and blue paint, then you get green.
Which language do people speak in Brazil? Most of them speak Portuguese.
Remember to bring a warm coat, since it could be cold up in the mountains.
The doctor told him to drink more water and to sleep eight hours every night.
Seven plus five is twelve, and twelve minus nine is three.
Do you want to hear the news, or should I read your messages first?
You have two new messages: one from your mother and one from the bank.
I think we should leave now, otherwise we will be late for the show.
The window was open all night, so the room is quite cold this morning.
Nothing is better than fresh bread with butter and a little salt.
Our neighbours are painting their fence, and everybody on the street is helping.
May I ask you something? Sure, go ahead, ask me anything.
Her voice was calm and clear, and everyone in the room listened to her.
It takes about eight minutes for the light of the sun to reach the earth.
Would you mind closing the door behind you? Not at all.
I have just finished my work, and now I am going to rest for a while.
Good night, sleep well, and see you again tomorrow.
What do you call a place where old things are kept and shown? A museum.
Some birds fly thousands of miles each year, and they always find their way back.
Please turn on the lights in the kitchen and set a timer for fifteen minutes.
All right, the timer is set. Is there anything else that I can do for you?
No, that was everything. Thank you very much, you have been a great help!
"""


def make(shape: str, *, vocabulary: int, first_special: int, offsets: dict[str, int]) -> None:
    """Train and write one tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=0,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES.splitlines(), trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the sentences give {tokenizer.get_vocab_size()} tokens, expected {vocabulary}")

    form = json.loads(tokenizer.to_str())
    ids = {token: first_special + offset for token, offset in offsets.items()}
    # Special tokens must be in the model's vocabulary too, or the library numbers them on from its end.
    form["model"]["vocab"] |= ids
    tokenizer = Tokenizer.from_str(json.dumps(form))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ids])
    if any(tokenizer.token_to_id(token) != index for token, index in ids.items()):
        raise ValueError("the special tokens did not get their ids")
    tokenizer.save(str(SHAPES / shape / "tokenizer.json"))


if __name__ == "__main__":
    make("tiny", vocabulary=500, first_special=500, offsets=DENSE)
    make("small", vocabulary=1012, first_special=1012, offsets=DENSE)
    make("chroma-4b", vocabulary=1012, first_special=PUBLISHED_FIRST, offsets=PUBLISHED)
