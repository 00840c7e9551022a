"""Settings come from flags, variables and defaults, and every mistake is named."""

from typing import Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from services.runtime.settings import ServiceSettings, load


class SpeechSettings(ServiceSettings):
    """A stage's settings, with every kind of field that stages have."""

    checkpoint: str = Field(description="folder of the checkpoint")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where tensors live")
    slots: int = Field(4, ge=1, le=64, description="streams at a time")
    context_length: int | None = Field(None, ge=1, description="positions of a slot; by default the model's")
    graphs: bool = Field(True, description="capture graphs, 100% of them")

    @field_validator("checkpoint")
    @classmethod
    def no_blanks(cls, checkpoint: str) -> str:
        """A rule of one field."""
        if " " in checkpoint:
            raise ValueError("a checkpoint must have no blanks")
        return checkpoint

    @model_validator(mode="after")
    def room(self) -> "SpeechSettings":
        """A rule of two fields."""
        if self.slots == 13 and not self.graphs:
            raise ValueError("13 slots need graphs")
        return self


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHROMA_SPEECH_PORT", "CHROMA_SPEECH_CHECKPOINT"):
        monkeypatch.delenv(name, raising=False)


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """What is said on stderr when these flags are refused."""
    with pytest.raises(SystemExit) as caught:
        load(SpeechSettings, list(argv), stage="speech")
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_defaults() -> None:
    settings = load(SpeechSettings, ["--checkpoint", "here"], stage="speech")
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 0, 0)
    assert (settings.log_level, settings.log_format, settings.max_message_bytes) == ("info", "json", 16 * 2**20)
    assert (settings.checkpoint, settings.context_length, settings.graphs) == ("here", None, True)


def test_flags_win_over_variables_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_SPEECH_CHECKPOINT", "there")
    monkeypatch.setenv("CHROMA_SPEECH_SLOTS", "8")
    monkeypatch.setenv("CHROMA_SPEECH_GRAPHS", "false")
    settings = load(SpeechSettings, ["--slots=16", "--context-length", "512"], stage="speech")
    assert (settings.checkpoint, settings.slots, settings.context_length) == ("there", 16, 512)
    assert not settings.graphs
    assert load(SpeechSettings, ["--graphs"], stage="speech").graphs


def test_only_the_stages_own_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "HOST", "CHROMA_CODEC_PORT", "CHROMA_PORT", "CHECKPOINT"):
        monkeypatch.setenv(name, "7")
    assert load(SpeechSettings, ["--checkpoint", "here"], stage="speech").port == 0
    monkeypatch.setenv("CHROMA_SPEECH_PORT", "7")
    assert load(SpeechSettings, ["--checkpoint", "here"], stage="speech").port == 7
    assert SpeechSettings(checkpoint="here").port == 0


def test_a_bad_value_names_flag_value_and_where_it_came_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(capsys, "--checkpoint", "here", "--port", "abc") == [
        "speech: --port must be a valid integer: got 'abc' (from the command line)"
    ]
    monkeypatch.setenv("CHROMA_SPEECH_PORT", "abc")
    assert told(capsys, "--checkpoint", "here") == [
        "speech: --port must be a valid integer: got 'abc' (from CHROMA_SPEECH_PORT)"
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--port", "-1"], "--port must be greater than or equal to 0: got '-1'"),
        (["--port=70000"], "--port must be less than or equal to 65535: got '70000'"),
        (["--metrics-port", "9090.5"], "--metrics-port must be a valid integer: got '9090.5'"),
        (["--grace-seconds", "-3"], "--grace-seconds must be greater than or equal to 0: got '-3'"),
        (["--grace-seconds", "nan"], "--grace-seconds must be"),
        (["--max-message-bytes", "0"], "--max-message-bytes must be"),
        (["--host", ""], "--host must have at least 1 character: got ''"),
        (["--log-level", "loud"], "--log-level must be 'debug', 'info', 'warning' or 'error': got 'loud'"),
        (["--device", "tpu"], "--device must be 'auto', 'cpu' or 'cuda': got 'tpu'"),
        (["--slots", "0"], "--slots must be greater than or equal to 1: got '0'"),
        (["--checkpoint", "a b"], "--checkpoint: a checkpoint must have no blanks (from the command line)"),
        (["--slots", "13", "--no-graphs"], "13 slots need graphs"),
        (["--port"], "argument --port: expected one argument"),
        (["--prt", "7"], "unknown arguments: --prt 7"),
        (["--por", "7"], "unknown arguments: --por 7"),
        (["stray"], "unknown arguments: stray"),
    ],
)
def test_every_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    lines = told(capsys, *([] if "--checkpoint" in argv else ["--checkpoint", "here"]), *argv)
    assert len(lines) == 1
    assert lines[0].startswith(f"speech: {said}")


def test_what_is_missing_is_named_in_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == ["speech: --checkpoint is required (or CHROMA_SPEECH_CHECKPOINT)"]


def test_an_unknown_variable_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_SPEECH_SLOT", "4")
    assert told(capsys, "--checkpoint", "here") == ["speech: CHROMA_SPEECH_SLOT is not a setting of this service"]


def test_all_mistakes_are_told_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_SPEECH_SLOT", "4")
    assert len(told(capsys, "--port", "x", "--slots", "y")) == 4


def test_help_lists_every_setting_with_its_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        load(SpeechSettings, ["--help"], stage="speech")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in SpeechSettings.model_fields.items():
        assert field.description
        assert f"--{name.replace('_', '-')}" in text
        assert field.description in text
        assert f"CHROMA_SPEECH_{name.upper()}" in text
        if not field.is_required() and field.default is not None:
            assert f"(default: {field.default})" in text


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        ServiceSettings().port = 7
