"""Where the examples of voices are kept."""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from chroma_mesh.types.v1 import types_pb2

from services.runtime.errors import Internal

NAME = re.compile(r"[a-z0-9_-]{1,64}")

# How soundfile names the samples of each encoding: in the file, and in memory.
WAVE_SUBTYPES = {
    types_pb2.AUDIO_ENCODING_PCM_S16LE: ("PCM_16", "int16"),
    types_pb2.AUDIO_ENCODING_PCM_F32LE: ("FLOAT", "float32"),
}


@dataclass(frozen=True)
class VoiceExample:
    """Sound in a voice, and what is said in it."""

    transcript: str
    audio: types_pb2.Audio

    @property
    def seconds(self) -> float:
        """Length of the sound, in seconds."""
        _, dtype = WAVE_SUBTYPES[self.audio.format.encoding]
        return len(self.audio.data) / np.dtype(dtype).itemsize / self.audio.format.sample_rate_hz


@dataclass(frozen=True)
class VoiceOutline:
    """What a list tells of an example: what is said, its length in seconds, and the key that made it, by its id."""

    transcript: str
    seconds: float
    owner: str | None = None


class VoiceStore(Protocol):
    """Examples by name. Its methods block; names are checked before they get here."""

    def names(self) -> set[str]:
        """Names of all examples."""

    def read(self, name: str) -> VoiceExample | None:
        """The example of that name, if there is one."""

    def outline(self, name: str) -> VoiceOutline | None:
        """The outline of the example of that name, if there is one."""

    def write(self, name: str, example: VoiceExample, *, owner: str | None = None) -> None:
        """Keeps the example."""

    def remove(self, name: str) -> None:
        """Forgets the example."""


class VoiceMemory:
    """Examples that are gone when the process ends."""

    def __init__(self) -> None:
        self._examples: dict[str, VoiceExample] = {}
        self._owners: dict[str, str | None] = {}

    def names(self) -> set[str]:
        """Names of all examples."""
        return set(self._examples)

    def read(self, name: str) -> VoiceExample | None:
        """The example of that name, if there is one."""
        return self._examples.get(name)

    def outline(self, name: str) -> VoiceOutline | None:
        """The outline of the example of that name, if there is one."""
        example = self._examples.get(name)
        return None if example is None else VoiceOutline(example.transcript, example.seconds, self._owners[name])

    def write(self, name: str, example: VoiceExample, *, owner: str | None = None) -> None:
        """Keeps the example."""
        self._examples[name], self._owners[name] = example, owner

    def remove(self, name: str) -> None:
        """Forgets the example."""
        del self._examples[name], self._owners[name]


class VoiceFolder:
    """Examples in a folder: NAME.json with the transcript, which makes a voice exist, and NAME.wav with the sound.

    It is read at every use, so voices may be put there by hand, and orchestrators may share it. Files that are no good
    raise Internal with reason VOICE_UNREADABLE.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> set[str]:
        """Names of all examples."""
        return {path.stem for path in self._folder.glob("*.json") if NAME.fullmatch(path.stem)}

    def read(self, name: str) -> VoiceExample | None:
        """The example of that name, if there is one."""
        with _reading(name):
            outline = self._description(name)
            if outline is None:
                return None
            with soundfile.SoundFile(self._path(name, "wav")) as sound:
                if sound.channels != 1:
                    raise ValueError(f"its sound must be mono, got {sound.channels} channels")
                encoding = next((key for key, names in WAVE_SUBTYPES.items() if names[0] == sound.subtype), None)
                if encoding is None:
                    raise ValueError(f"its samples must be PCM_16 or FLOAT, got {sound.subtype}")
                samples = sound.read(dtype=WAVE_SUBTYPES[encoding][1])
                audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=sound.samplerate)
        return VoiceExample(outline.transcript, types_pb2.Audio(format=audio_format, data=samples.tobytes()))

    def outline(self, name: str) -> VoiceOutline | None:
        """The outline of the example of that name, if there is one."""
        with _reading(name):
            outline = self._description(name)
            if outline is None:
                return None
            return replace(outline, seconds=soundfile.info(self._path(name, "wav")).duration)

    def write(self, name: str, example: VoiceExample, *, owner: str | None = None) -> None:
        """Keeps the example: the whole of it, or nothing when the process ends meanwhile."""
        audio_format = example.audio.format
        subtype, dtype = WAVE_SUBTYPES[audio_format.encoding]
        self._folder.mkdir(parents=True, exist_ok=True)

        def write_sound(path: Path) -> None:
            with soundfile.SoundFile(path, "w", audio_format.sample_rate_hz, 1, subtype, format="WAV") as sound:
                sound.buffer_write(example.audio.data, dtype=dtype)

        def write_transcript(path: Path) -> None:
            description = {"transcript": example.transcript} | ({} if owner is None else {"owner": owner})
            path.write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")

        self._replace(self._path(name, "wav"), write_sound)
        self._replace(self._path(name, "json"), write_transcript)

    def remove(self, name: str) -> None:
        """Forgets the example."""
        self._path(name, "json").unlink(missing_ok=True)
        self._path(name, "wav").unlink(missing_ok=True)

    def _description(self, name: str) -> VoiceOutline | None:
        try:
            description = json.loads(self._path(name, "json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        transcript = description.get("transcript") if isinstance(description, dict) else None
        if not isinstance(transcript, str) or not transcript.strip():
            raise ValueError("its description must have a transcript")
        owner = description.get("owner")
        if owner is not None and not isinstance(owner, str):
            raise ValueError("its owner must be the id of a key")
        return VoiceOutline(transcript, 0.0, owner)

    def _path(self, name: str, extension: str) -> Path:
        assert NAME.fullmatch(name), "names are checked before they become paths"
        return self._folder / f"{name}.{extension}"

    def _replace(self, path: Path, write: Callable[[Path], None]) -> None:
        temporary = self._folder / f".{secrets.token_hex(8)}.part"
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, soundfile.SoundFileError) as failure:
        raise Internal(f"voice {name} cannot be read: {failure}", reason="VOICE_UNREADABLE") from failure
