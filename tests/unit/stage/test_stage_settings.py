"""Settings that stages with a model share."""

import pytest
from pydantic import ValidationError

from services.inference.device import BadSetting
from services.reasoner.settings import ReasonerSettings
from services.runtime.settings import load
from services.speech.settings import SpeechSettings
from services.stage.settings import StageSettings, TransformerStageSettings

MESH = TransformerStageSettings(checkpoint="random:tiny")


@pytest.mark.parametrize(("model_limit", "expected"), [(2048, 2048), (8192, 8192), (32_768, 8192)])
def test_the_context_is_the_models_up_to_a_bound(model_limit: int, expected: int) -> None:
    assert MESH.resolve_context_length(model_limit) == expected


def test_a_context_may_be_asked_for_up_to_the_models() -> None:
    asked = MESH.model_copy(update={"context_length": 20_000})
    assert asked.resolve_context_length(32_768) == asked.resolve_context_length(20_000) == 20_000
    with pytest.raises(BadSetting, match=r"20000.* at most .*19999"):
        asked.resolve_context_length(19_999)


@pytest.mark.parametrize(
    "wrong",
    [
        {"checkpoint": ""},
        {"device": "tpu"},
        {"dtype": "float16"},
        {"slots": 0},
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
    speech = load(SpeechSettings, flags, stage="speech")
    assert (speech.slots, speech.depth_positions, speech.rope_scaling) == (3, "training", "published")
    reasoner = load(ReasonerSettings, ["--checkpoint", "random:tiny", "--prefill-chunk", "32"], stage="reasoner")
    assert (reasoner.slots, reasoner.prefill_chunk, reasoner.dtype) == (8, 32, "auto")


@pytest.mark.parametrize("settings_class", [ReasonerSettings, SpeechSettings])
def test_every_setting_says_what_it_is(settings_class: type[StageSettings]) -> None:
    assert all(field.description for field in settings_class.model_fields.values())
