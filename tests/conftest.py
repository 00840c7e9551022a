"""What many tests share: the golden cases, their models and engines, and a stage's server around an engine."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
import soundfile

# Models are heavy to import, and many tests below this folder have none.
if TYPE_CHECKING:
    from torch import Tensor

    from services.inference.checkpoint import Checkpoint
    from services.inference.slots import SlotEngine
    from services.inference.tokenizer import Tokenizer
    from services.reasoner.engine import ReasonerEngine
    from services.reasoner.features import MelFeatures
    from services.reasoner.model import ReasonerModel
    from services.reasoner.prompt import Turn
    from services.speech.engine import SpeechEngine, SpeechStep, Voice
    from services.speech.model import SpeechModel
    from services.stage.process import StageService
    from services.stage.settings import StageSettings

BUILTIN_VOICES = ("ash", "birch", "cedar", "willow")
GOLDEN = Path(__file__).parent / "golden" / "tiny"
CASE_NAMES = sorted(folder.name for folder in (GOLDEN / "cases").iterdir())

Running = Callable[..., AbstractAsyncContextManager[Any]]


def pytest_configure() -> None:
    """Small models are fastest on one thread, processes that tests start as well; no law is about time or luck."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Silero asks for threads of its own, which wait for each other in busy loops.
    os.environ["OMP_THREAD_LIMIT"] = "1"
    hypothesis.settings.register_profile("laws", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One golden case as tests/golden has it; sound is float32 in [-1, 1]."""

    name: str
    spec: dict[str, Any]
    clips: list[np.ndarray]
    voice_samples: np.ndarray
    expected: dict[str, np.ndarray]

    @property
    def maximum_frame_count(self) -> int:
        """Frames after which the reference stopped."""
        return int(self.spec["max_new_frames"])

    @property
    def tokens(self) -> list[int]:
        """Tokens of the reasoner steps that the reference used."""
        return self.expected["reasoner_tokens"].tolist()

    @property
    def frames(self) -> list[list[int]]:
        """The reference's frames."""
        return self.expected["frames"].tolist()

    def turns(self) -> "list[Turn]":
        """The conversation, with its sound in place."""
        from services.reasoner.prompt import Clip, Turn

        clips = iter(self.clips)
        return [
            Turn(
                message["role"],
                tuple(
                    part["text"] if part["type"] == "text" else Clip(next(clips)) for part in listed(message["content"])
                ),
            )
            for message in self.spec["messages"]
        ]

    def voice(self) -> "Voice":
        """The voice prompt."""
        from services.speech.engine import Voice

        return Voice(self.spec["prompt_text"], self.expected["voice_codes"].tolist())

    def steps(self, end_token_id: int) -> "list[SpeechStep]":
        """The reasoner steps that the reference used."""
        from services.speech.engine import SpeechStep

        return [
            SpeechStep(token, hidden, token == end_token_id)
            for token, hidden in zip(self.tokens, self.expected["reasoner_hidden"], strict=True)
        ]


def listed(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A message's content as items."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def read_golden_case(folder: Path) -> GoldenCase:
    """Reads one case of tests/golden."""

    def sound(name: str) -> np.ndarray:
        samples, _ = soundfile.read(folder / name, dtype="float32")
        return samples

    spec = json.loads((folder / "case.json").read_text())
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        expected = {name: file[name] for name in file.files}
    expected["reasoner_hidden"] = expected["reasoner_hidden"].astype(np.float32)
    return GoldenCase(folder.name, spec, [sound(n) for n in spec["user_wavs"]], sound(spec["voice_wav"]), expected)


@pytest.fixture(scope="session")
def golden_cases() -> dict[str, GoldenCase]:
    """All golden cases by name."""
    return {name: read_golden_case(GOLDEN / "cases" / name) for name in CASE_NAMES}


@pytest.fixture(params=CASE_NAMES)
def golden_case(request: pytest.FixtureRequest, golden_cases: dict[str, GoldenCase]) -> GoldenCase:
    """Each golden case in turn."""
    return golden_cases[request.param]


@pytest.fixture(scope="session")
def golden_checkpoint() -> "Checkpoint":
    """The checkpoint of the golden cases."""
    from services.inference.checkpoint_spec import open_checkpoint

    return open_checkpoint(str(GOLDEN / "checkpoint"))


@pytest.fixture(scope="session")
def tokenizer(golden_checkpoint: "Checkpoint") -> "Tokenizer":
    """The golden checkpoint's tokenizer."""
    from services.inference.tokenizer import Tokenizer

    return Tokenizer(golden_checkpoint.folder)


@pytest.fixture(scope="session")
def mel_features(golden_checkpoint: "Checkpoint") -> "MelFeatures":
    """The golden checkpoint's feature extractor."""
    from services.reasoner.features import MelFeatures

    return MelFeatures(golden_checkpoint.folder)


@pytest.fixture(scope="session")
def reasoner_model(golden_checkpoint: "Checkpoint") -> "ReasonerModel":
    """The golden reasoner, float32 on the CPU; shared, so what a test changes in it must be changed back."""
    import torch

    from services.reasoner import weights

    return weights.load(golden_checkpoint, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def speech_model(golden_checkpoint: "Checkpoint") -> "SpeechModel":
    """The golden speech model, float32 on the CPU; shared, so what a test changes in it must be changed back."""
    import torch

    from services.speech import weights

    return weights.load(golden_checkpoint, torch.device("cpu"), torch.float32)


@asynccontextmanager
async def started(engine: "SlotEngine[Any]") -> AsyncIterator[Any]:
    """Runs an engine's device thread for the block."""
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


@pytest.fixture(scope="session")
def new_reasoner_engine(
    reasoner_model: "ReasonerModel", tokenizer: "Tokenizer", mel_features: "MelFeatures"
) -> "Callable[..., ReasonerEngine]":
    """Makes an engine over the golden reasoner that is not started: keywords replace small defaults."""
    from services.reasoner.engine import ReasonerEngine

    def make(model: "ReasonerModel" = reasoner_model, **settings: int) -> "ReasonerEngine":
        defaults = {"slot_count": 4, "queue_limit": 8, "context_length": 1024, "prefill_chunk": 64}
        return ReasonerEngine(model, tokenizer, mel_features, **(defaults | settings))

    return make


@pytest.fixture(scope="session")
def new_speech_engine(speech_model: "SpeechModel", tokenizer: "Tokenizer") -> "Callable[..., SpeechEngine]":
    """Makes an engine over the golden speech model that is not started: keywords replace small defaults."""
    from services.speech.engine import SpeechEngine

    def make(model: "SpeechModel" = speech_model, **settings: int) -> "SpeechEngine":
        defaults = {"slot_count": 4, "queue_limit": 8, "context_length": 1024, "prefill_chunk": 64}
        defaults["voice_cache_bytes"] = 2**24
        return SpeechEngine(model, tokenizer, **(defaults | settings))

    return make


@pytest.fixture(scope="session")
def reasoner_engine(new_reasoner_engine: "Callable[..., ReasonerEngine]") -> Running:
    """`async with reasoner_engine(slot_count=2) as engine`: the golden reasoner's engine, running."""
    return lambda **settings: started(new_reasoner_engine(**settings))


@pytest.fixture(scope="session")
def speech_engine(new_speech_engine: "Callable[..., SpeechEngine]") -> Running:
    """`async with speech_engine(slot_count=2) as engine`: the golden speech engine, running."""
    return lambda **settings: started(new_speech_engine(**settings))


async def until_idle(engine: "SlotEngine[Any]") -> None:
    """Returns when no stream holds a slot. A stream that leaves does so on the device thread: each wait is a round."""
    while engine.slots_in_use:
        await engine.call(lambda: None)


@dataclass
class Gate:
    """A place in a model where the device thread stops until the test lets it go on."""

    arrived: Event = field(default_factory=Event)
    opened: Event = field(default_factory=Event)
    calls: int = 0

    async def reached(self) -> None:
        """Returns when the device thread stands at the gate."""
        # A thread that waits can't be cancelled: without a limit a gate that is never reached would hang the whole run.
        assert await asyncio.to_thread(self.arrived.wait, 60), "the device thread never came to the gate"


@contextmanager
def gated(owner: Any, name: str, *, at_call: int = 1) -> Iterator[Gate]:
    """Within the block, the `at_call`-th call of a method stops at the gate, and all are counted."""
    gate, original, is_own = Gate(), getattr(owner, name), name in vars(owner)

    def call(*args: Any, **kwargs: Any) -> Any:
        gate.calls += 1
        if gate.calls == at_call:
            gate.arrived.set()
            gate.opened.wait()
        return original(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield gate
    finally:
        gate.opened.set()
        if is_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@pytest.fixture
def rewritten(golden_checkpoint: "Checkpoint", tmp_path: Path) -> "Callable[..., Checkpoint]":
    """Stores the golden checkpoint again after `change(tensors, config)`, and opens the copy."""
    from safetensors.torch import load_file, save_file

    from services.inference.checkpoint_spec import open_checkpoint

    def rewrite(change: "Callable[[dict[str, Tensor], dict[str, Any]], None]") -> "Checkpoint":
        tensors = load_file(golden_checkpoint.folder / "model.safetensors")
        config = json.loads((golden_checkpoint.folder / "config.json").read_text())
        change(tensors, config)
        folder = tmp_path / f"checkpoint{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(str(folder))

    return rewrite


@asynccontextmanager
async def serving(
    engine: "SlotEngine[Any]", service: "StageService", service_name: str, settings: "StageSettings", registry: Any
) -> AsyncIterator[str]:
    """Serves an engine in this process on a free port; gives the address."""
    from services.runtime.server import running
    from services.stage.process import StageLife

    life = StageLife(settings, service, lambda: engine, type(engine).warm)
    async with running(
        stage="stage",
        settings=settings,
        add=life.add_to,
        services=[service_name],
        prepare=life.prepare,
        close=life.close,
        registry=registry,
    ) as server:
        yield server.address
