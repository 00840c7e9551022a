"""A mesh of child processes: they start, they are watched, they stop, whatever happens."""

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from client import supervisor
from client.errors import ClientError, MeshError
from client.mesh_settings import SERVICES, STAGES, Device, DType, MeshSettings, Placement
from client.supervisor import RunningMesh, ServiceDiedError, ServiceEvent, check_server_installed, running_mesh

FAKE = Path(__file__).with_name("fake_service.py")


def fake_command(service: str) -> list[str]:
    """A fake service in place of a real one."""
    return [sys.executable, str(FAKE), service]


class Observer:
    """What a supervisor reported and logged."""

    def __init__(self) -> None:
        self.events: list[ServiceEvent] = []
        self.lines: list[tuple[str, str]] = []
        self.ready = asyncio.Event()

    def report(self, event: ServiceEvent) -> None:
        """Takes in what happened to a service; `ready` is set when it is all of them."""
        self.events.append(event)
        if (event.service, event.kind) == ("orchestrator", "ready"):
            self.ready.set()

    def kinds(self, service: str) -> list[str]:
        """What happened to a service, in order."""
        return [event.kind for event in self.events if event.service == service]

    def said(self, service: str, event: str) -> dict[str, Any]:
        """A line of a service's log."""
        lines = [json.loads(line) for name, line in self.lines if name == service and line.startswith("{")]
        return next(line for line in lines if line["event"] == event)

    @property
    def left(self) -> list[int]:
        """Processes that are still there."""
        return [event.pid for event in self.events if event.kind == "started" and psutil.pid_exists(event.pid)]


@asynccontextmanager
async def fake_mesh(observer: Observer, **settings: Any) -> AsyncIterator[RunningMesh]:
    """A mesh of fake services."""
    async with running_mesh(
        MeshSettings(**settings),
        report=observer.report,
        log=lambda service, line: observer.lines.append((service, line)),
        command=fake_command,
    ) as mesh:
        yield mesh


@pytest.fixture
def observer() -> Observer:
    """What the supervisor of the test reports."""
    return Observer()


async def test_services_start_get_ready_and_stop(observer):
    async with fake_mesh(observer) as mesh:
        assert mesh.address == mesh.stage_address("orchestrator") == "127.0.0.1:1012"
        assert [observer.kinds(service) for service in SERVICES] == [["started", "ready"]] * 4
        assert mesh.services["speech"].metrics_address == "127.0.0.1:2006"
    assert [observer.kinds(service) for service in SERVICES] == [["started", "ready", "stopped"]] * 4
    assert not observer.left
    assert observer.said("codec", "drained")
    stopped = [event.service for event in observer.events if event.kind == "stopped"]
    assert stopped[0] == "orchestrator"


async def test_colocated_stages_start_and_stop_as_one_process(observer):
    async with fake_mesh(observer, placement=Placement.COLOCATED) as mesh:
        together = "reasoner, speech and codec"
        happened = [(event.service, event.kind) for event in observer.events]
        ready = [(stage, "ready") for stage in STAGES]
        assert happened == [(together, "started"), *ready, ("orchestrator", "started"), ("orchestrator", "ready")]
        assert [mesh.stage_address(service) for service in SERVICES] == [
            f"127.0.0.1:{1000 + len(service)}" for service in SERVICES
        ]
        assert mesh.services["speech"].metrics_address == "127.0.0.1:2006"
        assert len({mesh.services[stage].process.pid for stage in STAGES}) == 1
        assert len({event.pid for event in observer.events}) == 2
    stopped = [event.service for event in observer.events if event.kind == "stopped"]
    assert stopped == ["orchestrator", together]
    assert not observer.left


def flags_of(settings: MeshSettings, process: str) -> dict[str, str]:
    """Flags of a process, by name."""
    words = settings.flags(process, {stage: f"{stage}:1" for stage in STAGES})
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("threads", [None, 3])
def test_colocated_stages_are_told_what_separate_ones_are(monkeypatch, threads):
    monkeypatch.delenv("CHROMA_REASONER_THREADS", raising=False)
    monkeypatch.setenv("CHROMA_SPEECH_THREADS", "7")
    options = {"checkpoint": "folder", "dtype": DType.FLOAT32, "slots": 3, "codec_port": 50051, "metrics_port": 9000}
    separate = MeshSettings(threads=threads, **options)
    colocated = flags_of(MeshSettings(threads=threads, placement=Placement.COLOCATED, **options), "colocated")
    heard: set[str] = set()
    for stage in STAGES:
        for flag, value in flags_of(separate, stage).items():
            own = f"--{stage}-{flag[2:]}"
            assert value == colocated.get(own, colocated.get(flag)), (stage, flag)
            heard |= {own, flag}
    assert colocated.keys() <= heard


def test_flags_say_what_was_asked_for(monkeypatch):
    monkeypatch.delenv("CHROMA_REASONER_THREADS", raising=False)
    monkeypatch.setenv("CHROMA_SPEECH_THREADS", "7")
    settings = MeshSettings(
        checkpoint="folder",
        device=Device.CPU,
        dtype=DType.FLOAT32,
        slots=3,
        host="0.0.0.0",
        port=50050,
        reasoner_port=50051,
        metrics_port=9000,
        voices=Path("mine"),
        default_voice="ash",
    )
    addresses = {stage: f"{stage}:1" for stage in STAGES}
    words = [settings.flags(service, addresses) for service in SERVICES]
    reasoner, speech, codec, orchestrator = (dict(zip(flags[::2], flags[1::2], strict=True)) for flags in words)
    stage = {"--checkpoint": "folder", "--device": "cpu", "--slots": "3", "--host": "127.0.0.1", "--log-format": "json"}
    for flags, metrics_port in ((reasoner, 9001), (speech, 9002), (codec, 9003)):
        assert flags.items() >= (stage | {"--metrics-port": str(metrics_port)}).items()
    assert (reasoner["--port"], speech["--port"], codec["--port"]) == ("50051", "0", "0")
    assert reasoner["--dtype"] == speech["--dtype"] == "float32"
    assert "--dtype" not in codec
    fair = str(max(1, (os.cpu_count() or 1) // 2))
    assert (reasoner["--threads"], codec["--threads"]) == (fair, "1")
    assert "--threads" not in speech  # the service reads the variable itself
    assert (orchestrator["--host"], orchestrator["--port"]) == ("0.0.0.0", "50050")
    assert orchestrator["--metrics-port"] == "9000"
    assert [orchestrator[f"--{stage}-address"] for stage in STAGES] == ["reasoner:1", "speech:1", "codec:1"]
    assert (orchestrator["--voices"], orchestrator["--default-voice"]) == ("mine", "ash")
    default = MeshSettings().flags("orchestrator", addresses)
    assert "--voices" not in default
    assert default[default.index("--port") + 1] == "0"


@pytest.mark.parametrize(
    ("service", "fate", "said"),
    [
        ("codec", "fail", "the codec service exited with status 3: config.json is missing; and so is all else"),
        ("orchestrator", "fail", "the orchestrator service exited with status 3: config.json is missing"),
        ("speech", "crash", "the speech service exited with status 1: RuntimeError: the card is gone"),
        ("reasoner", "leave", "the reasoner service was killed by SIGKILL: out of memory"),
    ],
)
async def test_a_service_that_ends_by_itself_is_named_and_takes_the_mesh_down(
    observer, monkeypatch, service, fate, said
):
    monkeypatch.setenv(f"FAKE_{service.upper()}", fate)
    with pytest.raises(ServiceDiedError, match=said) as caught:
        await stay_in(observer)
    assert caught.value.service == service
    assert "stopped" not in observer.kinds(service)
    assert not observer.left


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("fail", "exited with status 3: speech: config.json is missing; and so is all else"),
        ("crash", "exited with status 1: RuntimeError: the card is gone"),
        ("leave", "was killed by SIGKILL: codec: out of memory"),
    ],
)
async def test_colocated_stages_that_end_are_named_with_the_one_that_said_why(observer, monkeypatch, fate, said):
    monkeypatch.setenv("FAKE_COLOCATED", fate)
    with pytest.raises(ServiceDiedError) as caught:
        await stay_in(observer, placement=Placement.COLOCATED)
    assert str(caught.value) == f"the process of reasoner, speech and codec {said}"
    assert not observer.left


async def stay_in(observer: Observer, **settings: Any) -> None:
    """Keeps a mesh up for ever."""
    async with fake_mesh(observer, **settings):
        await asyncio.Event().wait()


async def test_a_service_that_is_killed_interrupts_who_is_inside(observer):
    with pytest.raises(ServiceDiedError, match="the codec service was killed by SIGKILL"):
        await kill_from_inside(observer, "codec")
    assert not observer.left


async def kill_from_inside(observer: Observer, service: str, then: Exception | None = None) -> None:
    """Kills a service of a running mesh, then waits or fails."""
    async with fake_mesh(observer) as mesh:
        os.kill(mesh.services[service].process.pid, signal.SIGKILL)
        if then is not None:
            raise then
        await asyncio.Event().wait()


async def test_a_lost_service_explains_the_error_of_a_call(observer):
    error = MeshError(grpc.StatusCode.UNAVAILABLE, "UNREACHABLE", "nothing answers")
    with pytest.raises(ServiceDiedError, match="the orchestrator service was killed by SIGKILL"):
        await kill_from_inside(observer, "orchestrator", then=error)


async def test_an_exception_inside_comes_out_as_it_is(observer):
    with pytest.raises(ZeroDivisionError):
        await fail_inside(observer)
    assert not observer.left


async def fail_inside(observer: Observer) -> None:
    """An error of the caller's own."""
    async with fake_mesh(observer):
        raise ZeroDivisionError


async def test_cancelling_stops_the_services(observer):
    task = asyncio.create_task(stay_in(observer))
    await observer.ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not observer.left
    assert observer.kinds("reasoner")[-1] == "stopped"


async def test_a_service_that_does_not_stop_is_killed(observer, monkeypatch):
    monkeypatch.setenv("FAKE_CODEC", "stay")
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "KILL_SECONDS", 0.1)
    async with fake_mesh(observer):
        pass
    assert not observer.left
    assert observer.kinds("speech")[-1] == "stopped"


async def test_services_die_with_a_supervisor_that_is_killed_hard(tmp_path):
    code = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[1]); from test_supervisor import *\n"
        "async def main():\n"
        "    async with running_mesh(MeshSettings(), report=lambda e: print(e.kind, e.pid, flush=True),"
        " command=fake_command):\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(Path(__file__).parent), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    services = []
    ready_count = 0
    while ready_count < len(SERVICES):
        kind, pid = (await process.stdout.readline()).decode().split()
        if kind == "started":
            services.append(os.pidfd_open(int(pid)))
        ready_count += kind == "ready"
    process.kill()
    await process.wait()
    for service in services:
        await asyncio.to_thread(select.select, [service], [], [])  # returns when the process has ended
        os.close(service)
    await process.stdout.read()


@pytest.mark.parametrize("name", ["port", "codec_port", "metrics_port"])
async def test_an_address_that_is_taken_is_said_before_anything_starts(observer, name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClientError, match=f"nothing can listen at 127.0.0.1:{port}"):
            await fake_mesh(observer, **{name: port}).__aenter__()
    assert not observer.events


def test_a_client_without_the_server_says_what_to_install(monkeypatch):
    check_server_installed()
    monkeypatch.setattr(supervisor, "SERVER_PACKAGES", ("no_such_package",))
    with pytest.raises(ClientError, match=r"pip install 'chroma-mesh\[server\]'"):
        check_server_installed()


@pytest.fixture
def fake_services(tmp_path: Path) -> dict[str, str]:
    """An environment in which `python -m services.<service>` is a fake one."""
    package = tmp_path / "services"
    package.mkdir()
    (package / "__init__.py").touch()
    for service in (*SERVICES, "colocated"):
        code = f"import runpy, sys\nsys.argv[1:1] = [{service!r}]\nrunpy.run_path({str(FAKE)!r})\n"
        (package / f"{service}.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path)}


StartUp = Callable[..., Any]


async def test_up_tells_what_happens_and_stops_on_a_signal(fake_services, start_cli, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        log = tmp_path / "log"
        process = await start_cli("up", "--port", "0", "--logs", str(log), **fake_services)
        lines = [line async for line in until(process, "The mesh is ready at 127.0.0.1:1012")]
        ready = [line for line in lines if "ready at" in line and "metrics at" in line]
        assert [line.split()[0] for line in ready][-1] == "orchestrator"
        assert len(ready) == len(SERVICES)
        process.send_signal(number)
        out, err = await process.communicate()
        assert process.returncode == 0, err
        assert err == b""
        assert out.decode().splitlines()[-1] == "The mesh is down."
        pids = [int(line.split()[2]) for line in lines if "starting" in line]
        assert len(pids) == len(SERVICES)
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert 'speech | {"event": "ready"' in log.read_text()


async def test_up_can_place_the_stages_in_one_process(fake_services, start_cli):
    process = await start_cli("up", "--port", "0", "--placement", "colocated", **fake_services)
    lines = [line async for line in until(process, "The mesh is ready at 127.0.0.1:1012")]
    assert lines[0].startswith("reasoner, speech and codec  pid ")
    assert [line.split()[0] for line in lines if " ready at " in line and "metrics at" in line] == list(SERVICES)
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert "reasoner, speech and codec" in out.decode()


async def until(process: asyncio.subprocess.Process, end: str) -> AsyncIterator[str]:
    """Lines of a process up to the one that begins in some way."""
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode().rstrip():
        yield line
        if line.startswith(end):
            return
    raise AssertionError(f"{end!r} did not come")


async def test_up_says_which_service_ended_and_why(fake_services, cli):
    result = await cli("up", "--port", "0", **fake_services, FAKE_SPEECH="fail")
    assert result.status == 1
    assert result.err == (
        "chroma-mesh: the speech service exited with status 3: config.json is missing; and so is all else\n"
    )


async def test_up_shows_logs_on_the_terminal(fake_services, cli):
    result = await cli("up", "--logs", "-", **fake_services, FAKE_CODEC="crash")
    assert result.status == 1
    assert 'codec | {"event": "listening"' in result.out
    assert "codec | RuntimeError: the card is gone" in result.out
