"""What the orchestrator can be told, and how it says what is wrong."""

import math

import pytest

from services.orchestrator.settings import OrchestratorSettings
from services.runtime.settings import load

ADDRESSES = ["--reasoner-address", "r:1", "--speech-address", "10.0.0.1:65535", "--codec-address", "[::1]:50051"]


def test_addresses_are_enough() -> None:
    settings = load(OrchestratorSettings, ADDRESSES, stage="orchestrator")
    assert (settings.codec_address, settings.idle_seconds, settings.reply_deadline_seconds) == ("[::1]:50051", 300, 600)
    assert (settings.session_limit, settings.turn_queue_limit, settings.voices) == (128, 4, None)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:65536", "http://host:1", "a b:1", "::1:5"]
)
def test_an_address_is_host_and_port(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load(OrchestratorSettings, [*ADDRESSES[:4], f"--codec-address={address}"], stage="orchestrator")
    assert raised.value.code == 2
    assert "codec" in capsys.readouterr().err


def test_every_setting_is_described() -> None:
    assert all(field.description for field in OrchestratorSettings.model_fields.values())


@pytest.mark.parametrize(("given", "seconds"), [("0.1", 0.1), ("3600", 3600), ("inf", math.inf)])
def test_how_far_a_reply_may_be_ahead(given: str, seconds: float) -> None:
    settings = load(OrchestratorSettings, [*ADDRESSES, f"--ahead-seconds={given}"], stage="orchestrator")
    assert settings.ahead_seconds == seconds


@pytest.mark.parametrize("given", ["0", "0.05", "3601", "nan", "-inf"])
def test_how_far_is_too_far_or_too_little(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(OrchestratorSettings, [*ADDRESSES, f"--ahead-seconds={given}"], stage="orchestrator")
    assert "must be 0.1 to 3600 seconds, or infinity" in capsys.readouterr().err
