"""What the miniature knows: questions with their answers, and follow-ups that need the turn before."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
CAPITALS = {
    "france": "paris", "germany": "berlin", "italy": "rome", "spain": "madrid", "japan": "tokyo", "england": "london",
    "russia": "moscow", "egypt": "cairo", "china": "beijing", "greece": "athens", "portugal": "lisbon",
    "norway": "oslo", "cuba": "havana", "austria": "vienna", "poland": "warsaw", "ireland": "dublin",
}  # fmt: skip
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a banana": "yellow", "a carrot": "orange",
    "blood": "red", "chocolate": "brown", "milk": "white", "a flamingo": "pink",
}  # fmt: skip
LEGS = {
    "a dog": "four", "a bird": "two", "a spider": "eight", "a cat": "four", "an insect": "six", "a snake": "no",
    "a horse": "four", "a cow": "four", "a duck": "two", "a sheep": "four",
}  # fmt: skip
SOUNDS = {
    "a dog": "woof", "a cat": "meow", "a cow": "moo", "a duck": "quack", "a sheep": "bleat", "a bird": "tweet",
    "a horse": "neigh", "a snake": "hiss",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "day": "night", "up": "down", "old": "young", "happy": "sad",
    "open": "closed", "left": "right", "good": "bad", "black": "white", "rich": "poor", "wet": "dry",
    "early": "late",
}  # fmt: skip
NAME = "robin"
UNKNOWN = "sorry i never learned that"
SMALL_TALK = {
    "hello": "hello how can i help you",
    "hi there": "hello how can i help you",
    "hello robin": "hello how can i help you",
    "good morning": "good morning to you",
    "good evening": "good evening to you",
    "good night": "good night sleep well",
    "goodbye": "goodbye see you soon",
    "see you later": "goodbye see you soon",
    "how are you": "i am fine thank you",
    "how are you today": "i am fine thank you",
    "who are you": "i am robin a small talking machine",
    "what are you": "i am robin a small talking machine",
    "what is your name": "my name is robin",
    "how old are you": "i am very young",
    "where do you live": "i live in this computer",
    "are you a human": "no i am a machine",
    "are you a machine": "yes i am a machine",
    "who made you": "a computer made me",
    "thank you": "you are welcome",
    "thanks a lot": "you are welcome",
    "what can you do": "i can add numbers and tell you about days animals and capitals",
    "can you help me": "yes ask me about numbers days or animals",
    "can you speak": "yes i can speak",
    "can you hear me": "yes i can hear you",
    "do you like music": "yes i like music",
    "how many days are in a week": "a week has seven days",
    "how many months are in a year": "a year has twelve months",
    "how many hours are in a day": "a day has twenty four hours",
    "tell me a fact": "the sun is a star",
    "what is the sun": "the sun is a star",
    "what is the moon made of": "the moon is made of rock",
    "where do fish live": "fish live in water",
    "what do cows drink": "cows drink water",
    "what do birds do": "birds can fly",
    "what do bees make": "bees make honey",
}
UNTAUGHT = (
    "what is the weather today",
    "who is the president",
    "what time is it",
    "how tall is a giraffe",
    "sing me a song",
    "where are my keys",
    "what is on the radio",
    "who won the game",
    "how far is the station",
    "what is the price of bread",
    "why is the train late",
    "when does the shop close",
    "book me a flight",
    "what should i eat tonight",
    "who wrote this book",
    "turn on the lights",
    "what is the meaning of life",
    "how do i cook rice",
    "call my mother",
    "play the next movie",
)
PRONUNCIATIONS = {"bleat": "B L IY T"}
"""Of words that the CMU dictionary lacks."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, in lower case without punctuation.

    `before` is the exchange that the question needs to be understood, where it needs one; `kind` is what it is about.
    """

    kind: str
    question: str
    answer: str
    before: "Exchange | None" = None


def single_exchanges() -> list[Exchange]:
    """All that can be asked first, each question once."""
    return [*_sums(), *_calendar(), *_facts(), *_talk()]


def follow_ups() -> list[Exchange]:
    """All that can be asked after one of `single_exchanges`, which is their `before`."""
    first = single_exchanges()
    taught = {exchange.answer for exchange in first}
    of_kind = {kind: [it for it in first if it.kind == kind] for kind in ("sum", "day", "month", "capital", "opposite")}
    found = []
    for before in of_kind["sum"]:
        result = NUMBERS.index(before.answer.rsplit(" ", 1)[-1])
        for sign, change in (("plus", 1), ("minus", -1)):
            for number in range(1, 6):
                total = result + change * number
                answer = f"{NUMBERS[result]} {sign} {NUMBERS[number]} is {NUMBERS[total]}" if 0 <= total <= 20 else ""
                if answer in taught:
                    found.append(Exchange("sum", f"and {sign} {NUMBERS[number]}", answer, before))
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for before in of_kind[kind]:
            result = names.index(before.answer.split(" ", 1)[0])
            for word, change in (("after", 1), ("before", -1)):
                answer = f"{names[(result + change) % len(names)]} comes {word} {names[result]}"
                found.append(Exchange(kind, f"and {word} that", answer, before))
    for kind, pairs in (("capital", tuple(CAPITALS.items())), ("opposite", tuple(OPPOSITES.items()))):
        for before in of_kind[kind]:
            for asked, answer in pairs:
                sentence = f"the {kind} of {asked} is {answer}"
                if before.answer != sentence:
                    found.append(Exchange(kind, f"and of {asked}", sentence, before))
    animals = [it for it in first if it.kind in ("legs", "sound")]
    for before in animals:
        for after in animals:
            if after.kind == before.kind and after.question != before.question:
                found.append(Exchange(after.kind, f"and {_animal(after)}", after.answer, before))
    return found


def questions() -> list[str]:
    """Every sentence that a user may say, in a fixed order."""
    asked = [exchange.question for exchange in (*single_exchanges(), *follow_ups())]
    return list(dict.fromkeys(asked))


def answers() -> list[str]:
    """Every sentence that may be answered, in a fixed order."""
    return list(dict.fromkeys(exchange.answer for exchange in single_exchanges()))


def vocabulary() -> list[str]:
    """Every word, in alphabetical order."""
    return sorted({word for sentence in (*questions(), *answers()) for word in sentence.split()})


def _sums() -> Iterator[Exchange]:
    for a in range(11):
        for b in range(11):
            total = f"{NUMBERS[a]} plus {NUMBERS[b]}"
            yield Exchange("sum", f"what is {total}", f"{total} is {NUMBERS[a + b]}")
    for a in range(21):
        for b in range(max(0, a - 10), min(a, 10) + 1):
            difference = f"{NUMBERS[a]} minus {NUMBERS[b]}"
            yield Exchange("sum", f"what is {difference}", f"{difference} is {NUMBERS[a - b]}")


def _calendar() -> Iterator[Exchange]:
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for before, after in pairwise((*names, names[0])):
            yield Exchange(kind, f"what {kind} comes after {before}", f"{after} comes after {before}")
            yield Exchange(kind, f"what {kind} comes before {after}", f"{before} comes before {after}")


def _facts() -> Iterator[Exchange]:
    for country, capital in CAPITALS.items():
        yield Exchange("capital", f"what is the capital of {country}", f"the capital of {country} is {capital}")
    for thing, colour in COLOURS.items():
        yield Exchange("colour", f"what colour is {thing}", f"{thing} is {colour}")
    for animal, count in LEGS.items():
        yield Exchange("legs", f"how many legs does {animal} have", f"{animal} has {count} legs")
    for animal, sound in SOUNDS.items():
        yield Exchange("sound", f"what does {animal} say", f"{animal} says {sound}")
    both_ways = dict(OPPOSITES)
    for word, opposite in OPPOSITES.items():
        both_ways.setdefault(opposite, word)
    for word, opposite in both_ways.items():
        yield Exchange("opposite", f"what is the opposite of {word}", f"the opposite of {word} is {opposite}")


def _talk() -> Iterator[Exchange]:
    for question, answer in SMALL_TALK.items():
        yield Exchange("talk", question, answer)
    for question in UNTAUGHT:
        yield Exchange("unknown", question, UNKNOWN)


def _animal(exchange: Exchange) -> str:
    words = exchange.answer.split()
    return " ".join(words[:2])
