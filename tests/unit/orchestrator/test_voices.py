"""Voices: where they are kept, and how often they are encoded."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.stages import CodecFacts
from services.orchestrator.voice_store import VoiceExample, VoiceFolder, VoiceMemory, VoiceStore
from services.orchestrator.voices import BUILTIN_FOLDER, REMEMBERED_EXAMPLES, Voices
from services.runtime.errors import Internal, InvalidArgument, MeshError, Unavailable
from tests.conftest import BUILTIN_VOICES

FACTS = CodecFacts(sample_rate_hz=24_000, samples_per_frame=1920, codebook_count=8, codebook_size=2048)
S16, F32 = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE


class FakeStages:
    """Counts, and waits at its gate."""

    def __init__(self) -> None:
        self.codec_facts = FACTS
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.failure: MeshError | None = None

    async def encode(self, audio: types_pb2.Audio) -> list[types_pb2.Frame]:
        self.calls += 1
        self.entered.set()
        await self.gate.wait()
        if self.failure:
            raise self.failure
        return [types_pb2.Frame(codes=[sum(audio.data) % 2048] * 8)]

    async def check_voice(self, prompt: types_pb2.VoicePrompt) -> None:
        if "<|" in prompt.transcript:
            raise InvalidArgument("no special tokens", reason="REFUSED", stage="speech")


def example(seed: int = 0, encoding: types_pb2.AudioEncoding = S16) -> VoiceExample:
    samples = np.random.default_rng(seed).uniform(-0.9, 0.9, 2400)
    data = (samples * 32767).astype("<i2") if encoding == S16 else samples.astype("<f4")
    audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=24_000)
    return VoiceExample(f"number {seed} ü", types_pb2.Audio(format=audio_format, data=data.tobytes()))


def voices(stages: FakeStages, folder: Path | None = None) -> Voices:
    return Voices(stages, folder=folder, default_voice="ash", voice_limit=10)


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VoiceStore:
    return VoiceMemory() if request.param == "memory" else VoiceFolder(tmp_path / "new")


@pytest.mark.parametrize("encoding", [S16, F32])
def test_a_store_gives_back_what_it_was_given(store: VoiceStore, encoding: types_pb2.AudioEncoding) -> None:
    assert (store.names(), store.read("a"), store.outline("a")) == (set(), None, None)
    given = example(1, encoding)
    store.write("a", given)
    assert store.names() == {"a"}
    assert store.read("a") == given
    outline = store.outline("a")
    assert outline is not None
    assert (outline.transcript, outline.seconds) == (given.transcript, 0.1)
    store.remove("a")
    assert (store.names(), store.read("a")) == (set(), None)


def test_a_store_knows_whose_an_example_is(store: VoiceStore) -> None:
    store.write("a", example(1), owner="alice")
    store.write("b", example(1))
    outlines = [store.outline(name) for name in "ab"]
    assert [outline.owner for outline in outlines if outline] == ["alice", None]


def test_a_voice_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VoiceFolder(tmp_path)
    store.write("a", example(1))
    replaced = os.replace

    def fail_at_the_transcript(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            raise OSError("the disk is full")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_transcript)
    with pytest.raises(OSError, match="full"):
        store.write("b", example(2))
    assert store.names() == {"a"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.wav", "b.wav"}


@pytest.mark.parametrize(
    ("description", "samples", "problem"),
    [
        ("{", np.zeros(100), "Expecting"),
        ("[]", np.zeros(100), "must have a transcript"),
        ('{"transcript": " "}', np.zeros(100), "must have a transcript"),
        ('{"transcript": "a", "owner": 7}', np.zeros(100), "must be the id of a key"),
        ('{"transcript": "two"}', np.zeros((100, 2)), "must be mono, got 2"),
        ('{"transcript": "none"}', None, "a.wav"),
    ],
)
async def test_files_that_are_no_good_are_named_and_not_listed(
    tmp_path: Path, description: str, samples: np.ndarray | None, problem: str
) -> None:
    (tmp_path / "a.json").write_text(description)
    if samples is not None:
        soundfile.write(tmp_path / "a.wav", samples, 24_000)
    with pytest.raises(Internal, match=problem) as raised:
        await voices(FakeStages(), tmp_path).example("a")
    assert raised.value.reason == "VOICE_UNREADABLE"
    if samples is None or samples.ndim == 1:
        assert [voice.name for voice in await voices(FakeStages(), tmp_path).listing()] == [*BUILTIN_VOICES]


async def test_the_builtin_voices_are_fit_to_speak_with() -> None:
    shipped = voices(FakeStages())
    for name in BUILTIN_VOICES:
        given = await shipped.example(name)
        assert given.audio.format == types_pb2.AudioFormat(encoding=S16, sample_rate_hz=24_000)
        assert 1 <= given.seconds <= 5
        assert (BUILTIN_FOLDER / f"{name}.wav").stat().st_size < 250_000
        assert "espeak-ng" in json.loads((BUILTIN_FOLDER / f"{name}.json").read_text())["made_with"]
        samples = np.frombuffer(given.audio.data, "<i2")
        assert 0.5 < np.abs(samples).max() / 32768 < 1


async def test_those_who_ask_together_share_one_call() -> None:
    stages = FakeStages()
    stages.gate.clear()
    shared = voices(stages)
    asking = [asyncio.create_task(shared.prompt(example(1))) for _ in range(5)]
    await stages.entered.wait()
    stages.gate.set()
    prompts = await asyncio.gather(*asking)
    assert stages.calls == 1
    assert all(prompt == prompts[0] for prompt in prompts)
    await shared.prompt(example(1))
    assert stages.calls == 1
    await shared.prompt(example(2))
    assert stages.calls == 2


async def test_another_goes_on_when_the_first_to_ask_is_gone() -> None:
    stages = FakeStages()
    stages.gate.clear()
    shared = voices(stages)
    first, second = (asyncio.create_task(shared.prompt(example(1))) for _ in range(2))
    await stages.entered.wait()
    first.cancel()
    stages.gate.set()
    assert (await second).frames
    assert stages.calls == 2


async def test_a_failure_is_not_remembered() -> None:
    stages = FakeStages()
    stages.failure = Unavailable("the codec stage: gone")
    shared = voices(stages)
    with pytest.raises(Unavailable):
        await shared.create("mine", example(1))
    assert [voice.name for voice in await shared.listing()] == [*BUILTIN_VOICES]
    stages.failure = None
    await shared.create("mine", example(1))
    assert (await shared.prompt(await shared.example("mine"))).transcript == "number 1 ü"


async def test_a_voice_that_the_speech_stage_refuses_is_not_made() -> None:
    kept = voices(FakeStages())
    with pytest.raises(InvalidArgument) as raised:
        await kept.create("mine", replace(example(1), transcript="hello <|text_end|>"))
    assert (raised.value.reason, raised.value.field, raised.value.metadata) == (
        "REFUSED",
        "example",
        {"stage": "speech"},
    )
    assert [voice.name for voice in await kept.listing()] == [*BUILTIN_VOICES]


async def test_other_facts_need_another_encoding() -> None:
    stages = FakeStages()
    shared = voices(stages)
    await shared.prompt(example(1))
    stages.codec_facts = replace(FACTS, samples_per_frame=960)
    await shared.prompt(example(1))
    assert stages.calls == 2


async def test_what_is_remembered_is_bounded() -> None:
    stages = FakeStages()
    shared = voices(stages)
    for seed in range(REMEMBERED_EXAMPLES + 1):
        await shared.prompt(example(seed))
    await shared.prompt(example(REMEMBERED_EXAMPLES))
    assert stages.calls == REMEMBERED_EXAMPLES + 1
    await shared.prompt(example(0))
    assert stages.calls == REMEMBERED_EXAMPLES + 2


async def test_orchestrators_can_share_a_folder(tmp_path: Path) -> None:
    one, other = voices(FakeStages(), tmp_path), voices(FakeStages(), tmp_path)
    await one.create("mine", example(1))
    assert await other.example("mine") == example(1)
    await other.delete("mine")
    assert [voice.name for voice in await one.listing()] == [*BUILTIN_VOICES]
