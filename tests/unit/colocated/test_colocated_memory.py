"""Stages of one process share its device as separate ones do."""

import pytest

from services.codec.settings import CodecSettings
from services.colocated.settings import ColocatedSettings
from services.reasoner.settings import ReasonerSettings
from services.runtime.settings import load
from services.speech.settings import SpeechSettings
from services.stage.settings import StageSettings


@pytest.mark.parametrize(
    ("stage", "kind"), [("reasoner", ReasonerSettings), ("speech", SpeechSettings), ("codec", CodecSettings)]
)
def test_memory_is_each_stages_own(stage: str, kind: type[StageSettings]) -> None:
    argv = ["--checkpoint", "x", "--reasoner-memory-gib", "3.5", "--speech-memory-share", "0.25"]
    told = load(kind, load(ColocatedSettings, argv, stage="colocated").flags(stage), stage=stage)
    expected = {"reasoner": (3.5, 1.0), "speech": (None, 0.25), "codec": (None, 1.0)}
    assert (told.memory_gib, told.memory_share) == expected[stage]
