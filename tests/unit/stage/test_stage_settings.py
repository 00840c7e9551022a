"""Settings that stages with a model share."""

import pytest
from pydantic import ValidationError

from services.inference.device import BadSetting
from services.reasoner.settings import ReasonerSettings
from services.runtime.settings import load
from services.speech.settings import SpeechSettings
from services.stage.settings import StageSettings, TransformerStageSettings

MESH = TransformerStageSettings(checkpoint="random:tiny")


@pytest.mark.parametrize(
    ("model_limit", "expected"),
    [
        (2048, [1024, 2048]),
        (8192, [1024, 2048, 4096, 8192]),
        (32_768, [1024, 2048, 4096, 8192]),
        (3000, [1024, 2048, 3000]),
        (1024, [1024]),
        (600, [600]),
    ],
)
def test_a_context_may_be_as_long_as_the_models_up_to_a_bound(model_limit: int, expected: list[int]) -> None:
    assert MESH.context_lengths(model_limit) == expected


def test_a_context_may_be_asked_for_up_to_the_models() -> None:
    asked = MESH.model_copy(update={"context_length": 20_000})
    assert asked.context_lengths(32_768) == asked.context_lengths(20_000) == [20_000]
    assert MESH.model_copy(update={"context_length": 16}).context_lengths(20_000) == [16]
    with pytest.raises(BadSetting, match=r"20000.* at most .*19999"):
        asked.context_lengths(19_999)


@pytest.mark.parametrize(
    "wrong",
    [
        {"checkpoint": ""},
        {"device": "tpu"},
        {"dtype": "float16"},
        {"slots": 0},
        {"memory_gib": 0},
        {"memory_share": 0},
        {"memory_share": 1.1},
        {"queue_limit": -1},
        {"threads": 0},
        {"context_length": 15},
        {"prefill_chunk": 0},
        {"unknown": 1},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TransformerStageSettings(**({"checkpoint": "random:tiny"} | wrong))


def test_a_checkpoint_must_be_named() -> None:
    with pytest.raises(ValidationError, match="checkpoint"):
        StageSettings()


def test_flags_reach_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_SPEECH_SLOTS", "3")
    flags = ["--checkpoint", "random:tiny", "--depth-positions", "training", "--rope-scaling", "published"]
    flags += ["--memory-gib", "1.5", "--voice-cache-mib", "0"]
    speech = load(SpeechSettings, flags, stage="speech")
    assert (speech.slots, speech.depth_positions, speech.rope_scaling) == (3, "training", "published")
    assert (speech.memory_gib, speech.voice_cache_mib) == (1.5, 0)
    reasoner = load(ReasonerSettings, ["--checkpoint", "random:tiny", "--prefill-chunk", "32"], stage="reasoner")
    assert (reasoner.slots, reasoner.prefill_chunk, reasoner.dtype) == (None, 32, "auto")
    assert (reasoner.memory_gib, reasoner.memory_share) == (None, 1.0)


@pytest.mark.parametrize("settings_class", [ReasonerSettings, SpeechSettings])
def test_every_setting_says_what_it_is(settings_class: type[StageSettings]) -> None:
    assert all(field.description for field in settings_class.model_fields.values())
