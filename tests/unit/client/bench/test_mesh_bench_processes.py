"""What is measured of other processes, and the program that measures the engines."""

import asyncio
import json
import os
import sys

import psutil
import pytest

from client.bench import gpu_memory
from client.bench.engine_part import engine_command, measure_engines, read_engine_part
from client.bench.gpu_memory import GpuProcess, gpu_cards, gpu_use, read_rows
from client.bench.process_use import ProcessMeter, metered, process_names
from client.bench.shape import ReplyShape
from client.errors import ClientError
from client.mesh_settings import Device, MeshSettings

SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) echo "NVIDIA H100 80GB HBM3, 555.42, 81559, 1234" ;;
  --query-compute-apps=*) printf '10, 1000\\n77, 200\\n88, [N/A]\\n' ;;
esac
"""


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A machine with one card."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setattr(gpu_memory, "PROGRAM", str(program))


async def test_the_memory_of_a_card_by_process(card):
    (found,) = await gpu_cards()
    assert (found.name, found.driver) == ("NVIDIA H100 80GB HBM3", "555.42")
    assert (found.total_bytes, found.used_bytes) == (81559 * 2**20, 1234 * 2**20)
    use = await gpu_use({10: "speech"})
    assert use is not None
    assert use.used_bytes == 1234 * 2**20
    assert use.processes == [
        GpuProcess("speech", 10, 1000 * 2**20),
        GpuProcess("process 77", 77, 200 * 2**20),
        GpuProcess("process 88", 88, 0),
    ]


async def test_a_machine_without_a_card_has_no_gpu_memory(monkeypatch):
    monkeypatch.setattr(gpu_memory, "PROGRAM", "no-such-program")
    assert await gpu_cards() == []
    assert await gpu_use({}) is None
    assert read_rows("") == []


def test_services_that_share_a_process_are_named_together():
    names = process_names({"reasoner": 1, "speech": 1, "orchestrator": 2})
    assert names == {1: "reasoner + speech", 2: "orchestrator", os.getpid(): "driver"}


def test_a_process_is_measured_by_what_it_uses_from_then_on():
    meter = ProcessMeter({os.getpid(): "driver", 2**22 + 1: "gone"})
    before = psutil.Process().cpu_times()
    sum(range(200_000))
    meter.sample()
    (use,) = meter.uses()
    assert use.name == "driver"
    assert 0 <= use.cpu_seconds <= psutil.Process().cpu_times().user + psutil.Process().cpu_times().system
    assert use.cpu_seconds <= before.user + before.system + 60
    assert use.peak_resident_bytes > 2**20


async def test_a_process_that_goes_keeps_what_it_had():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    uses = []
    async with metered({process.pid: "child"}, uses):
        await asyncio.sleep(0)  # one look at it
        await process.communicate(b"")
    (use,) = uses
    assert (use.name, use.pid) == ("child", process.pid)
    assert use.cpu_seconds >= 0


async def test_what_was_used_is_known_however_the_block_ends():
    uses = []
    with pytest.raises(BaseExceptionGroup):
        async with metered({os.getpid(): "driver"}, uses):
            raise ClientError("stopped")
    assert [use.name for use in uses] == ["driver"]


def test_the_engines_are_measured_on_what_the_mesh_runs_on():
    mesh = MeshSettings(checkpoint="random:small", device=Device.CPU, threads=1)
    command = engine_command(mesh, ReplyShape(64, 19, 3.0), 10.0)
    words = " ".join(command[1:])
    assert words == (
        "-P -m services.bench --checkpoint random:small --device cpu --dtype auto --threads 1 --frames 64 --steps 19 "
        "--user-seconds 3.0 --voice-seconds 10.0"
    )


async def test_the_engines_program_gives_tables_and_values():
    content = {"tables": [{"title": "T", "columns": ["a", "b"], "rows": [["x", 0.00123456]]}], "values": {"v": 1}}
    program = f"import sys; print('half way', file=sys.stderr); print({json.dumps(json.dumps(content))})"
    said = []
    part = await measure_engines([sys.executable, "-c", program], said.append)
    assert said == ["half way"]
    assert (part.values, part.frame_seconds, part.content) == ({"v": 1.0}, None, content)
    (table,) = part.tables
    assert (table.title, table.columns, table.rows) == ("T", ["a", "b"], [["x", "0.001235"]])


async def test_a_program_that_fails_says_why():
    program = "import sys; print('no such shape', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ClientError) as caught:
        await measure_engines([sys.executable, "-c", program], lambda line: None)
    assert str(caught.value) == "the measurement of the engines exited with status 3: no such shape"


async def test_a_program_does_not_outlive_its_measurement():
    program = "import sys, time; print('here', file=sys.stderr, flush=True); time.sleep(600)"
    here, others = asyncio.Event(), set(psutil.Process().children())
    measuring = asyncio.create_task(measure_engines([sys.executable, "-c", program], lambda line: here.set()))
    await here.wait()
    (child,) = set(psutil.Process().children()) - others
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    assert not child.is_running()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"tables": 1, "values": {}}',
        '{"tables": [], "values": {"a": "b"}}',
        '{"tables": [{"title": "T", "columns": ["a", "b"], "rows": [["x"]]}], "values": {}}',
    ],
)
def test_something_else_than_tables_is_refused(text):
    with pytest.raises(ClientError, match="the measurement of the engines wrote"):
        read_engine_part(text)
