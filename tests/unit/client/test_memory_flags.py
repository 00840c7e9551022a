"""How the mesh of one machine divides its device's memory, and says what came of it."""

import sys

import pytest
from rich.console import Console

from client.commands.started_mesh import service_reporter
from client.mesh_settings import MEMORY_SHARES, STAGES, MeshSettings, Placement
from client.service_process import ServiceEvent
from client.supervisor import running_mesh

SERVICE = """
import json, signal, sys
def say(event, **fields):
    print(json.dumps({"event": event, "stage": sys.argv[1], **fields}), flush=True)
say("listening", address="127.0.0.1:1", metrics_address="127.0.0.1:2")
if sys.argv[1] != "orchestrator":
    say("memory", summary=f"3 slots of the {sys.argv[1]}")
say("ready")
signal.pause()
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in STAGES:
        monkeypatch.delenv(f"CHROMA_{stage.upper()}_MEMORY_SHARE", raising=False)


def memory_flags(settings: MeshSettings) -> dict[str, float]:
    """What all processes are told about memory, by flag; a stage's own process has it under the stage's name."""
    told = {}
    for process in settings.stage_processes:
        words = settings.flags(process, {})
        for flag, value in zip(words[::2], words[1::2], strict=True):
            if "memory" in flag:
                told[flag if process == "colocated" else f"--{process}-{flag[2:]}"] = float(value)
    return told


@pytest.mark.parametrize("placement", Placement)
def test_stages_on_one_device_share_it(placement: Placement) -> None:
    shares = memory_flags(MeshSettings(placement=placement))
    assert shares == {f"--{stage}-memory-share": share for stage, share in MEMORY_SHARES.items()}
    assert sum(shares.values()) <= 0.9 + 1e-9


@pytest.mark.parametrize("placement", Placement)
def test_what_the_mesh_may_take_is_divided_among_its_stages(placement: Placement) -> None:
    told = memory_flags(MeshSettings(placement=placement, memory_gib=18))
    assert told.keys() == {f"--{stage}-memory-gib" for stage in STAGES}
    assert sum(told.values()) == pytest.approx(18)
    assert told["--reasoner-memory-gib"] == pytest.approx(11)


def test_a_stages_variable_is_left_to_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_SPEECH_MEMORY_SHARE", "0.5")
    assert memory_flags(MeshSettings()).keys() == {"--reasoner-memory-share", "--codec-memory-share"}
    assert "--speech-memory-gib" in memory_flags(MeshSettings(memory_gib=1))


async def test_a_service_says_its_size_when_it_is_ready() -> None:
    events: list[ServiceEvent] = []
    console = Console(width=200)
    show = service_reporter(console)
    with console.capture() as shown:
        async with running_mesh(
            MeshSettings(),
            report=lambda event: (events.append(event), show(event)),
            command=lambda service: [sys.executable, "-c", SERVICE, service],
        ):
            sizes = {event.service: event.size for event in events if event.kind == "ready"}
    assert sizes == {stage: f"3 slots of the {stage}" for stage in STAGES} | {"orchestrator": ""}
    assert "metrics at 127.0.0.1:2 (3 slots of the codec)\n" in shown.get()
    assert "metrics at 127.0.0.1:2\n" in shown.get()
