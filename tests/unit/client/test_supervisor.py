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
from client.errors import ClientError, InputError, MeshError
from client.mesh_settings import SERVICES, STAGES, Device, DType, MeshSettings, Placement, read_replicas
from client.service_process import ServiceEvent
from client.supervisor import RunningMesh, ServiceDiedError, check_server_installed, running_mesh

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
        self._changed = asyncio.Event()

    def report(self, event: ServiceEvent) -> None:
        """Takes in what happened to a service; `ready` is set when it is all of them."""
        self.events.append(event)
        self._changed.set()
        if (event.service, event.kind) == ("orchestrator", "ready"):
            self.ready.set()

    def kinds(self, service: str) -> list[str]:
        """What happened to a service, in order."""
        return [event.kind for event in self.events if event.service == service]

    async def until(self, service: str, kind: str, count: int = 1) -> None:
        """Returns when something has happened to a service so many times."""
        while self.kinds(service).count(kind) < count:
            self._changed.clear()
            await self._changed.wait()

    def said(self, service: str, event: str) -> dict[str, Any]:
        """A line of a service's log."""
        lines = [json.loads(line) for name, line in self.lines if name == service and line.startswith("{")]
        return next(line for line in lines if line["event"] == event)

    @property
    def left(self) -> list[int]:
        """Processes that are still there."""
        return [event.pid for event in self.events if event.kind == "started" and psutil.pid_exists(event.pid)]


@asynccontextmanager
async def fake_mesh(observer: Observer, *, restart: bool = False, **settings: Any) -> AsyncIterator[RunningMesh]:
    """A mesh of fake services."""
    async with running_mesh(
        MeshSettings(**settings),
        report=observer.report,
        log=lambda service, line: observer.lines.append((service, line)),
        command=fake_command,
        restart=restart,
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
        assert len({mesh.services[stage].pid for stage in STAGES}) == 1
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
        os.kill(mesh.services[service].pid, signal.SIGKILL)
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


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_SECONDS", 0.004)


REPLICAS = {"reasoner": 1, "speech": 2, "codec": 3, "orchestrator": 2}


@pytest.mark.usefixtures("_short_pauses")
@pytest.mark.parametrize("service", ["speech-1", "orchestrator-0", "reasoner"])
async def test_a_replica_that_ends_is_started_again_where_it_was(observer, service):
    async with fake_mesh(observer, restart=True, replicas=REPLICAS, journal="kept") as mesh:
        place, before = mesh.services[service], mesh.services[service].pid
        address, metrics_address = place.address.result(), place.metrics_address
        os.kill(before, signal.SIGKILL)
        await observer.until(service, "ready", 2)
        assert place.ready.is_set()
        assert place.pid != before
        assert psutil.pid_exists(place.pid)
        assert observer.kinds(service) == ["started", "ready", "lost", "started", "ready"]
        (lost,) = [event for event in observer.events if event.kind == "lost"]
        assert (lost.service, lost.pid, lost.pause_seconds) == (service, before, 0.001)
        assert lost.reason.startswith("was killed by SIGKILL")
        listened = [event for event in observer.events if (event.service, event.kind) == (service, "ready")]
        assert [(event.address, event.metrics_address) for event in listened] == [(address, metrics_address)] * 2
    assert not observer.left


@pytest.mark.usefixtures("_short_pauses")
async def test_a_replica_that_is_asked_to_end_is_started_again(observer):
    async with fake_mesh(observer, restart=True) as mesh:
        os.kill(mesh.services["codec"].pid, signal.SIGTERM)
        await observer.until("codec", "ready", 2)
        assert [event.reason for event in observer.events if event.kind == "lost"] == ["exited with status 0"]


@pytest.mark.usefixtures("_short_pauses")
async def test_pauses_grow_up_to_the_longest(observer, monkeypatch):
    monkeypatch.setenv("FAKE_CODEC", "leave")
    async with fake_mesh(observer, restart=True):
        await observer.until("codec", "lost", 5)
    pauses = [event.pause_seconds for event in observer.events if event.kind == "lost"]
    assert pauses[:5] == [0.001, 0.002, 0.004, 0.004, 0.004]
    assert not observer.left


@pytest.mark.usefixtures("_short_pauses")
async def test_a_process_that_lived_for_long_begins_with_the_first_pause(observer, monkeypatch):
    monkeypatch.setenv("FAKE_CODEC", "leave")
    monkeypatch.setattr(supervisor, "STEADY_SECONDS", 0)
    async with fake_mesh(observer, restart=True):
        await observer.until("codec", "lost", 3)
    assert {event.pause_seconds for event in observer.events if event.kind == "lost"} == {0.001}


async def test_a_service_that_was_never_ready_ends_a_mesh_that_starts_again_what_is_lost(observer, monkeypatch):
    monkeypatch.setenv("FAKE_SPEECH", "fail")
    with pytest.raises(ServiceDiedError, match=r"the speech-[01] service exited with status 3: config"):
        async with fake_mesh(observer, restart=True, replicas={"speech": 2}):
            pytest.fail("it must not come up")
    assert not observer.left


async def test_a_process_of_all_stages_is_started_again_where_it_was(observer, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.001)
    async with fake_mesh(observer, restart=True, placement=Placement.COLOCATED) as mesh:
        before = [mesh.stage_address(stage) for stage in STAGES]
        os.kill(mesh.services["speech"].pid, signal.SIGKILL)
        for stage in STAGES:
            await observer.until(stage, "ready", 2)
        assert [mesh.stage_address(stage) for stage in STAGES] == before
        assert len({mesh.services[stage].pid for stage in STAGES}) == 1


async def test_replicas_are_known_by_name_and_to_the_orchestrators(observer):
    async with fake_mesh(observer, replicas=REPLICAS, journal="kept", speech_port=40001, port=40011) as mesh:
        assert sorted(mesh.services) == [
            *("codec-0", "codec-1", "codec-2", "orchestrator-0", "orchestrator-1", "reasoner", "speech-0", "speech-1")
        ]
        assert mesh.stage_address("speech") == "127.0.0.1:40001,127.0.0.1:40002"
        assert mesh.stage_address("codec") == ",".join(["127.0.0.1:1005"] * 3)
        assert mesh.addresses == ["127.0.0.1:40011", "127.0.0.1:40012"]
        assert mesh.address == mesh.addresses[0]
    stopped = [event.service for event in observer.events if event.kind == "stopped"]
    assert sorted(stopped[:2]) == ["orchestrator-0", "orchestrator-1"]
    assert len(stopped) == 8


def test_replicas_share_what_one_would_have(monkeypatch):
    for stage in STAGES:
        monkeypatch.delenv(f"CHROMA_{stage.upper()}_THREADS", raising=False)
        monkeypatch.delenv(f"CHROMA_{stage.upper()}_MEMORY_SHARE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    settings = MeshSettings(
        replicas={"speech": 2, "orchestrator": 2}, speech_port=700, metrics_port=9000, port=800, journal="kept.db"
    )

    def told(service: str, index: int, **ports: int) -> dict[str, str]:
        words = settings.flags(service, dict.fromkeys(STAGES, "a:1,b:1"), index, ports)
        return dict(zip(words[::2], words[1::2], strict=True))

    assert [told("orchestrator", index)["--port"] for index in (0, 1)] == ["800", "801"]
    assert told("orchestrator", 1)["--speech-address"] == "a:1,b:1"
    assert told("orchestrator", 1)["--orchestrator-count"] == "2"
    assert told("orchestrator", 1)["--journal"] == "kept.db"
    assert [told("speech", index)["--port"] for index in (0, 1)] == ["700", "701"]
    replicas = [("orchestrator", 0), ("orchestrator", 1), ("reasoner", 0), ("speech", 0), ("speech", 1), ("codec", 0)]
    assert [told(*replica)["--metrics-port"] for replica in replicas] == [str(9000 + count) for count in range(6)]
    assert [told(stage, 0)["--threads"] for stage in STAGES] == ["4", "4", "1"]
    one = MeshSettings()
    assert 2 * float(told("speech", 0)["--memory-share"]) == float(flags_of(one, "speech")["--memory-share"])
    assert told("reasoner", 0)["--memory-share"] == flags_of(one, "reasoner")["--memory-share"]
    assert told("codec", 0, port=77)["--port"] == "77"
    listening = {("127.0.0.1", port) for port in (700, 701, 800, 801, *range(9000, 9006))}
    assert set(settings.fixed_addresses) == listening


def test_replicas_are_given_as_words():
    assert read_replicas("speech=2,codec=64") == {"speech": 2, "codec": 64}
    for text in ("", "speech", "speech=", "speech=0", "speech=65", "speech=-1", "speech=x", "gateway=2", "speech=2,"):
        with pytest.raises(InputError, match="--replicas must be as speech=2,codec=2"):
            read_replicas(text)


def test_several_orchestrators_need_a_journal(monkeypatch):
    monkeypatch.delenv("CHROMA_ORCHESTRATOR_JOURNAL", raising=False)
    with pytest.raises(InputError, match=r"several orchestrators need a journal.*give --journal"):
        MeshSettings(replicas={"orchestrator": 2})
    monkeypatch.setenv("CHROMA_ORCHESTRATOR_JOURNAL", "redis://localhost/0")
    assert "--journal" not in MeshSettings(replicas={"orchestrator": 2}).flags(
        "orchestrator", dict.fromkeys(STAGES, "")
    )


def test_stages_in_one_process_have_one_replica():
    MeshSettings(placement=Placement.COLOCATED, replicas={"orchestrator": 3, "speech": 1}, journal="kept")
    with pytest.raises(InputError, match="give --placement separate"):
        MeshSettings(placement=Placement.COLOCATED, replicas={"speech": 2})


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


async def test_an_address_that_is_given_twice_is_said_before_anything_starts(observer):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ClientError, match=f"nothing can listen at 127.0.0.1:{port}"):
        await fake_mesh(observer, speech_port=port, codec_port=port).__aenter__()
    assert not observer.events


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
    for service in (*SERVICES, "colocated", "gateway"):
        code = f"import runpy, sys\nsys.argv[1:1] = [{service!r}]\nrunpy.run_path({str(FAKE)!r})\n"
        (package / f"{service}.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path)}


StartUp = Callable[..., Any]


async def test_up_tells_what_happens_and_stops_on_a_signal(fake_services, start_cli, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        log = tmp_path / "log"
        process = await start_cli("up", "--port", "0", "--no-gateway", "--logs", str(log), **fake_services)
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


async def test_up_starts_replicas_and_starts_them_again(fake_services, start_cli):
    process = await start_cli(
        "up",
        "--port",
        "0",
        "--no-gateway",
        "--replicas",
        "speech=2,orchestrator=2",
        "--journal",
        "kept",
        **fake_services,
    )
    lines = [line async for line in until(process, "The mesh is ready at 127.0.0.1:1012 and 127.0.0.1:1012")]
    pids = {line.split()[0]: int(line.split()[2]) for line in lines if "starting" in line}
    assert sorted(pids) == ["codec", "orchestrator-0", "orchestrator-1", "reasoner", "speech-0", "speech-1"]
    os.kill(pids["speech-1"], signal.SIGKILL)
    again = [line async for line in until(process, "speech-1") if line.startswith("speech-1")]
    again += [line async for line in until(process, "speech-1") if line.startswith("speech-1")]
    again += [line async for line in until(process, "speech-1") if line.startswith("speech-1")]
    assert "was killed by SIGKILL" in again[0]
    assert again[0].endswith("; starts again in 0.5 s")
    assert again[1].endswith("starting")
    assert "ready at 127.0.0.1:1006" in again[2]
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.decode().splitlines()[-1] == "The mesh is down."


async def test_up_can_place_the_stages_in_one_process(fake_services, start_cli):
    process = await start_cli("up", "--port", "0", "--no-gateway", "--placement", "colocated", **fake_services)
    lines = [line async for line in until(process, "The mesh is ready at 127.0.0.1:1012")]
    assert lines[0].startswith("reasoner, speech and codec  pid ")
    assert [line.split()[0] for line in lines if " ready at " in line and "metrics at" in line] == list(SERVICES)
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert "reasoner, speech and codec" in out.decode()


async def test_up_puts_a_gateway_in_front(fake_services, start_cli):
    """It is the last to come and the first to go."""
    process = await start_cli("up", "--port", "0", "--http-port", "0", **fake_services)
    lines = [line async for line in until(process, "HTTP, for OpenAI's clients: http://127.0.0.1:1007/v1")]
    ready = [line.split()[0] for line in lines if "ready at" in line and "metrics at" in line]
    assert ready[-2:] == ["orchestrator", "gateway"]
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    stopped = [line.split()[0] for line in out.decode().splitlines() if line.endswith("stopped")]
    assert stopped[:2] == ["gateway", "orchestrator"]


async def until(process: asyncio.subprocess.Process, end: str) -> AsyncIterator[str]:
    """Lines of a process up to the one that begins in some way."""
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode().rstrip():
        yield line
        if line.startswith(end):
            return
    raise AssertionError(f"{end!r} did not come")


async def test_up_says_which_service_ended_and_why(fake_services, cli):
    result = await cli("up", "--port", "0", "--no-gateway", **fake_services, FAKE_SPEECH="fail")
    assert result.status == 1
    assert result.err == (
        "chroma-mesh: the speech service exited with status 3: config.json is missing; and so is all else\n"
    )


async def test_up_shows_logs_on_the_terminal(fake_services, cli):
    result = await cli("up", "--no-gateway", "--logs", "-", **fake_services, FAKE_CODEC="crash")
    assert result.status == 1
    assert 'codec | {"event": "listening"' in result.out
    assert "codec | RuntimeError: the card is gone" in result.out
