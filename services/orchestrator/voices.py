"""Voices: those that ship with the mesh, those that were created, and what the speech stage needs of each."""

import asyncio
import hashlib
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import structlog
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.stages import CodecFacts
from services.orchestrator.voice_store import NAME, VoiceExample, VoiceFolder, VoiceMemory, VoiceOutline, VoiceStore
from services.runtime.api_keys import current_caller
from services.runtime.audio import check_duration, check_format, decode_pcm
from services.runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)

BUILTIN_FOLDER = Path(str(resources.files("mini"))) / "voices"
"""The voices that the miniature was trained on, which are good examples for any other checkpoint, too."""

MINIMUM_EXAMPLE_SECONDS = 0.02
MAXIMUM_EXAMPLE_SECONDS = 30.0
# Nobody says more in 30 s, and ListVoices sends all transcripts in one message.
MAXIMUM_TRANSCRIPT_CHARACTERS = 2000
# Encoded examples that are remembered; each has at most some hundred KB.
REMEMBERED_EXAMPLES = 256


class VoiceStages(Protocol):
    """What voices need of the codec and of the speech stage."""

    @property
    def codec_facts(self) -> CodecFacts:
        """The codec's facts."""

    async def encode(self, audio: types_pb2.Audio) -> list[types_pb2.Frame]:
        """The sound's frames."""

    async def check_voice(self, prompt: types_pb2.VoicePrompt) -> None:
        """Raises InvalidArgument unless the speech stage speaks with it."""


@dataclass(frozen=True)
class Voice:
    """A named voice as it is listed; the example's length is in seconds."""

    name: str
    transcript: str
    example_seconds: float
    is_default: bool
    is_builtin: bool
    is_private: bool


class Voices:
    """Finds voices by name, among those that the running call's key may know, and encodes each example once.

    A created voice is its key's alone, and to all others as if it did not exist, so that several keys may each have one
    of a name; or it is everybody's: one that was shared, or made without a key. Created voices are kept in `folder`, a
    key's in a folder of its own there, or in memory without one.
    """

    def __init__(self, stages: VoiceStages, *, folder: Path | None, default_voice: str, voice_limit: int) -> None:
        self._stages = stages
        self._builtin: VoiceStore = VoiceFolder(BUILTIN_FOLDER)
        self._builtin_names = self._builtin.names()
        self._everybodys: VoiceStore = VoiceMemory() if folder is None else VoiceFolder(folder)
        self._folder = folder
        self._in_memory: defaultdict[str, VoiceMemory] = defaultdict(VoiceMemory)
        self._default_voice = default_voice
        self._voice_limit = voice_limit
        self._changing = asyncio.Lock()
        # By what was encoded, not by name: a name may be deleted and taken by another voice.
        self._encoded: OrderedDict[tuple[bytes, CodecFacts], list[types_pb2.Frame]] = OrderedDict()
        self._encoding: WeakValueDictionary[tuple[bytes, CodecFacts], asyncio.Lock] = WeakValueDictionary()

    async def listing(self) -> list[Voice]:
        """The caller's voices and everybody's, sorted by name; one that cannot be read is left out and logged."""
        return await asyncio.to_thread(self._listing, current_caller().key_id)

    async def create(self, name: str, example: VoiceExample, *, is_shared: bool = False) -> Voice:
        """Adds a voice of the caller's, once the codec and the speech stage have taken its example.

        Raises InvalidArgument for a bad name or example, AlreadyExists, and ResourceExhausted at the limit.
        """
        if not NAME.fullmatch(name):
            raise InvalidArgument(
                f"name must be 1 to 64 of a-z, 0-9, '-' and '_', got {name!r}", reason="BAD_NAME", field="name"
            )
        prompt = await self.prompt(example, field="example")
        try:
            await self._stages.check_voice(prompt)
        except InvalidArgument as refusal:
            refusal.field = "example"
            raise
        owner = current_caller().key_id
        async with self._changing:
            if any([name in await asyncio.to_thread(store.names) for store in self._visible(owner)]):
                raise AlreadyExists(f"voice {name} exists", reason="VOICE_EXISTS", field="name")
            store = self._everybodys if owner is None or is_shared else self._own(owner)
            if len(await asyncio.to_thread(store.names)) >= self._voice_limit:
                raise ResourceExhausted(
                    f"at most {self._voice_limit} voices can be created", reason="VOICE_LIMIT", field="name"
                )
            await asyncio.to_thread(store.write, name, example, owner=owner)
        return self._voice(name, VoiceOutline(example.transcript, example.seconds), store)

    async def delete(self, name: str) -> None:
        """Removes a created voice; prompts that were made of it stay good.

        Raises NotFound, FailedPrecondition for a voice that ships with the mesh or that sessions use by default, and
        PermissionDenied for everybody's voice that another key made.
        """
        owner = current_caller().key_id
        if name in self._builtin_names:
            raise FailedPrecondition(
                f"voice {name} ships with the mesh and stays", reason="VOICE_IS_BUILTIN", field="name"
            )
        async with self._changing:
            if owner is not None and name in await asyncio.to_thread(self._own(owner).names):
                await asyncio.to_thread(self._own(owner).remove, name)
                return
            if name == self._default_voice:
                raise FailedPrecondition(
                    f"voice {name} is the default and stays", reason="VOICE_IS_DEFAULT", field="name"
                )
            if name not in await asyncio.to_thread(self._everybodys.names):
                raise _not_found(name, "name")
            outline = await asyncio.to_thread(self._everybodys.outline, name)
            if outline is not None and outline.owner != owner:
                raise PermissionDenied(f"voice {name} was not made by this key", reason="NOT_OWNER")
            await asyncio.to_thread(self._everybodys.remove, name)

    async def example(self, name: str | None = None, *, field: str = "voice_name") -> VoiceExample:
        """The example of the named voice, or of the default one, which is everybody's; raises NotFound."""
        owner = None if name is None else current_caller().key_id
        name = self._default_voice if name is None else name
        if NAME.fullmatch(name):
            for store in self._visible(owner):
                example = await asyncio.to_thread(store.read, name)
                if example is not None:
                    return example
        raise _not_found(name, field)

    async def prompt(self, example: VoiceExample, *, field: str = "voice_example") -> types_pb2.VoicePrompt:
        """The example as the speech stage needs it; raises InvalidArgument for one that is no good."""
        self._check_example(example, field)
        return types_pb2.VoicePrompt(transcript=example.transcript, frames=await self._frames(example))

    def _own(self, owner: str) -> VoiceStore:
        return self._in_memory[owner] if self._folder is None else VoiceFolder(self._folder / owner)

    def _visible(self, owner: str | None) -> list[VoiceStore]:
        """Where a caller's voices are looked for, first to last: what is found first hides others of its name."""
        return [self._builtin, *([] if owner is None else [self._own(owner)]), self._everybodys]

    def _listing(self, owner: str | None) -> list[Voice]:
        voices: dict[str, Voice] = {}
        for store in self._visible(owner):
            for name in store.names() - voices.keys():
                try:
                    outline = store.outline(name)
                except Internal as error:
                    structlog.get_logger().warning("voice left out", voice=name, detail=error.message)
                    continue
                if outline is not None:
                    voices[name] = self._voice(name, outline, store)
        return sorted(voices.values(), key=lambda voice: voice.name)

    def _voice(self, name: str, outline: VoiceOutline, store: VoiceStore) -> Voice:
        is_everybodys = store in (self._builtin, self._everybodys)
        return Voice(
            name=name,
            transcript=outline.transcript,
            example_seconds=outline.seconds,
            is_default=name == self._default_voice and is_everybodys,
            is_builtin=store is self._builtin,
            is_private=not is_everybodys,
        )

    def _check_example(self, example: VoiceExample, field: str) -> None:
        if not example.transcript.strip():
            raise InvalidArgument(
                f"{field}.transcript must say what is said in the example, got nothing",
                reason="NO_TRANSCRIPT",
                field=f"{field}.transcript",
            )
        if len(example.transcript) > MAXIMUM_TRANSCRIPT_CHARACTERS:
            raise InvalidArgument(
                f"{field}.transcript must have at most {MAXIMUM_TRANSCRIPT_CHARACTERS} characters, "
                f"got {len(example.transcript)}",
                reason="TRANSCRIPT_TOO_LONG",
                field=f"{field}.transcript",
            )
        rate = self._stages.codec_facts.sample_rate_hz
        encoding = check_format(example.audio.format, sample_rate_hz=rate, field=f"{field}.audio.format")
        samples = decode_pcm(example.audio.data, encoding, field=f"{field}.audio.data")
        check_duration(
            len(samples),
            sample_rate_hz=rate,
            minimum_seconds=MINIMUM_EXAMPLE_SECONDS,
            maximum_seconds=MAXIMUM_EXAMPLE_SECONDS,
            field=f"{field}.audio.data",
        )

    async def _frames(self, example: VoiceExample) -> list[types_pb2.Frame]:
        audio = example.audio.SerializeToString(deterministic=True)
        key = (hashlib.sha256(audio).digest(), self._stages.codec_facts)
        lock = self._encoding.setdefault(key, asyncio.Lock())
        async with lock:  # those who ask meanwhile wait for the one call
            frames = self._encoded.get(key)
            if frames is None:
                frames = self._encoded[key] = await self._stages.encode(example.audio)
                if len(self._encoded) > REMEMBERED_EXAMPLES:
                    self._encoded.popitem(last=False)
            else:
                self._encoded.move_to_end(key)
            return frames


def _not_found(name: str, field: str) -> NotFound:
    return NotFound(f"there is no voice {name!r}", reason="VOICE_NOT_FOUND", field=field)
