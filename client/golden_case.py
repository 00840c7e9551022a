"""A golden case: inputs, and what the reference implementation gives for them."""

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from client.audio_file import read_audio
from client.errors import InputError
from client.message import Message, Role
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Samples

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

DIMENSIONS = {
    "reasoner_input_ids": 1,
    "voice_text_ids": 1,
    "voice_codes": 2,
    "reasoner_tokens": 1,
    "reasoner_hidden": 2,
    "frames": 2,
    "spoken_frames": 2,
    "audio": 1,
}


@dataclass(frozen=True, eq=False)
class Expected:
    """The reference's outputs: integers [length] or [frames, codebooks], float32 [steps, hidden size] and [samples].

    `backbone_call_count` is how often the reference's backbone ran, 0 where the file does not say.
    """

    reasoner_input_ids: Integers
    voice_text_ids: Integers
    voice_codes: Integers
    reasoner_tokens: Integers
    reasoner_hidden: Samples
    frames: Integers
    spoken_frames: Integers
    audio: Samples
    backbone_call_count: int

    @property
    def text_ended(self) -> bool:
        """Whether the reasoner certainly ended by itself: the backbone ran on and took no further step."""
        return len(self.reasoner_tokens) < (self.backbone_call_count + 1) // 2


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One case; the last of `messages` is the user turn that is answered."""

    name: str
    messages: Sequence[Message]
    voice_transcript: str
    voice: Samples
    maximum_frame_count: int
    expected: Expected

    @property
    def instructions(self) -> str:
        """Text of the system message; "" without one."""
        if self.messages[0].role is not Role.SYSTEM:
            return ""
        return "".join(part for part in self.messages[0].parts if isinstance(part, str))

    @property
    def history(self) -> Sequence[Message]:
        """Messages between the system message and the user turn."""
        return [message for message in self.messages[:-1] if message.role is not Role.SYSTEM]

    @property
    def turn(self) -> Sequence[str | Samples]:
        """What the user says in the turn that is answered, in order."""
        return self.messages[-1].parts


@dataclass(frozen=True)
class GoldenFolder:
    """A checkpoint and the folders of its cases, by name."""

    checkpoint: Path
    cases: Sequence[Path]


def open_golden_folder(folder: Path) -> GoldenFolder:
    """The parts of a golden folder; InputError says what is missing."""
    checkpoint, cases = folder / "checkpoint", folder / "cases"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{folder}: checkpoint/config.json is missing")
    names = sorted(path for path in cases.iterdir() if path.is_dir()) if cases.is_dir() else []
    if not names:
        raise InputError(f"{folder}: there is no case under cases/")
    for case in names:
        for name in ("case.json", "expected.npz"):
            if not (case / name).is_file():
                raise InputError(f"{case}: {name} is missing")
    return GoldenFolder(checkpoint, names)


def read_case(folder: Path) -> GoldenCase:
    """The case of a folder; InputError says what is missing or malformed."""
    try:
        spec = json.loads((folder / "case.json").read_bytes())
        clips = [read_audio(folder / str(name), USER_RATE_HZ) for name in spec["user_wavs"]]
        voice = read_audio(folder / str(spec["voice_wav"]), VOICE_RATE_HZ)
        messages = read_messages(spec["messages"], clips)
        transcript, maximum_frame_count = str(spec["prompt_text"]), int(spec["max_new_frames"])
    except KeyError as error:
        raise InputError(f"{folder / 'case.json'}: {error.args[0]} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder / 'case.json'}: {error}") from None
    return GoldenCase(folder.name, messages, transcript, voice, maximum_frame_count, read_expected(folder))


def read_messages(entries: list[dict[str, Any]], clips: Sequence[Samples]) -> list[Message]:
    """The messages of case.json with their sound: audio items stand for the clips in order."""
    unheard = iter(clips)
    messages = [Message(Role(entry["role"]), list(read_parts(entry["content"], unheard))) for entry in entries]
    if next(unheard, None) is not None:
        raise ValueError("user_wavs has more files than the messages have audio items")
    if not messages or messages[-1].role is not Role.USER:
        raise ValueError("the last message must be the user's")
    if not messages[-1].parts:
        raise ValueError("the last message has no content")
    return messages


def read_parts(content: str | list[dict[str, Any]], clips: Iterator[Samples]) -> Iterator[str | Samples]:
    """The parts of one message: text that is not empty, and clips."""
    for item in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if item["type"] == "audio":
            clip = next(clips, None)
            if clip is None:
                raise ValueError("user_wavs has fewer files than the messages have audio items")
            yield clip
        elif item["type"] != "text":
            raise ValueError(f"content of type {item['type']!r}; expected text or audio")
        elif item["text"]:
            yield str(item["text"])


def read_expected(folder: Path) -> Expected:
    """The arrays of expected.npz."""
    path = folder / "expected.npz"
    arrays: dict[str, Any] = {}
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
            for name, dimensions in DIMENSIONS.items():
                if name not in file:
                    raise InputError(f"{path}: {name} is missing")
                if file[name].ndim != dimensions:
                    raise InputError(f"{path}: {name} has {file[name].ndim} dimensions, expected {dimensions}")
                is_real = name in ("reasoner_hidden", "audio")
                arrays[name] = file[name].astype(np.float32 if is_real else np.int64)
            call_count = len(file["backbone_hidden"]) if "backbone_hidden" in file else 0
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return Expected(**arrays, backbone_call_count=call_count)
