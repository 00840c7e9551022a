"""Each stage is told what its own process would be told."""

import os

import pytest

from services.codec.settings import CodecSettings
from services.colocated.settings import ColocatedSettings
from services.reasoner.settings import ReasonerSettings
from services.runtime.settings import load
from services.speech.settings import SpeechSettings
from services.stage.settings import StageSettings

CLASSES: dict[str, type[StageSettings]] = {
    "reasoner": ReasonerSettings,
    "speech": SpeechSettings,
    "codec": CodecSettings,
}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHROMA_")]:
        monkeypatch.delenv(name)


def stages_told(*argv: str) -> dict[str, StageSettings]:
    """The settings of each stage of a process with these flags."""
    colocated = load(ColocatedSettings, list(argv), stage="colocated")
    return {stage: load(kind, colocated.flags(stage), stage=stage) for stage, kind in CLASSES.items()}


def test_a_stage_is_told_nothing_that_was_not_said() -> None:
    told = stages_told("--checkpoint", "random:tiny")
    for stage, kind in CLASSES.items():
        assert told[stage] == kind(checkpoint="random:tiny")


def test_what_is_shared_reaches_every_stage_that_has_it() -> None:
    shared = {
        "checkpoint": "folder",
        "device": "cpu",
        "dtype": "float32",
        "slots": 3,
        "host": "::1",
        "grace_seconds": 1.5,
        "log_level": "debug",
        "log_format": "console",
    }
    told = stages_told(*(f"--{name.replace('_', '-')}={value}" for name, value in shared.items()))
    for stage, settings in told.items():
        expected = {name: value for name, value in shared.items() if (stage, name) != ("codec", "dtype")}
        assert settings.model_dump().items() >= expected.items()


def test_ports_and_threads_are_each_stages_own() -> None:
    told = stages_told(
        *("--checkpoint", "x", "--reasoner-port", "1", "--speech-port", "2", "--codec-port", "3"),
        *("--reasoner-metrics-port", "4", "--speech-metrics-port", "5", "--codec-metrics-port", "6"),
        *("--reasoner-threads", "7", "--speech-threads", "8"),
    )
    of_stages = [(settings.port, settings.metrics_port, settings.threads) for settings in told.values()]
    assert of_stages == [(1, 4, 7), (2, 5, 8), (3, 6, None)]


def test_a_flag_wins_over_the_stages_variable_which_wins_over_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_SPEECH_SLOTS", "5")
    monkeypatch.setenv("CHROMA_SPEECH_QUEUE_LIMIT", "6")
    monkeypatch.setenv("CHROMA_REASONER_CHECKPOINT", "own")
    told = stages_told("--checkpoint", "shared", "--slots", "7")
    assert {settings.checkpoint for settings in told.values()} == {"shared"}
    assert {settings.slots for settings in told.values()} == {7}
    monkeypatch.setenv("CHROMA_SPEECH_CHECKPOINT", "own")
    monkeypatch.setenv("CHROMA_CODEC_CHECKPOINT", "own")
    told = stages_told()
    assert {settings.checkpoint for settings in told.values()} == {"own"}
    assert (told["speech"].slots, told["speech"].queue_limit) == (5, 6)
    assert told["reasoner"].queue_limit == ReasonerSettings(checkpoint="own").queue_limit


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "reasoner: --checkpoint is required (or CHROMA_REASONER_CHECKPOINT)"),
        (("--checkpoint", "x", "--slots", "0"), "reasoner: --slots must be greater than or equal to 1: got '0'"),
        (("--checkpoint", "x", "--codec-port", "-1"), "codec: --port must be greater than or equal to 0: got '-1'"),
        (("--checkpoint", "x", "--codec-port", "a"), "colocated: --codec-port must be a valid integer: got 'a'"),
        (("--checkpoint", "x", "--device", "tpu"), "colocated: --device must be 'auto', 'cpu' or 'cuda': got 'tpu'"),
        (("--port", "7"), "colocated: unknown arguments: --port 7"),
    ],
)
def test_a_mistake_is_a_sentence_that_names_the_stage(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        stages_told(*argv)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
