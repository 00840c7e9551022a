"""All stages in one process: the same servers, the same bytes, one life."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import soundfile
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client import Audio, ReplyEnded, Text, connect

SERVICES = {
    "reasoner": "chroma_mesh.reasoner.v1.ReasonerService",
    "speech": "chroma_mesh.speech.v1.SpeechService",
    "codec": "chroma_mesh.codec.v1.CodecService",
}
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def reply(address: str, seed: int, question: np.ndarray, **options: Any) -> tuple[str, bytes]:
    """Text and sound of the reply to a spoken turn and a typed one."""
    heard: tuple[str, bytes] = ("", b"")
    async with connect(address) as mesh, mesh.session(seed=seed, max_frame_count=10, **options) as session:
        for say in (session.send_audio(question), session.send_text("And now?")):
            await say
            await session.end_turn()
            text, samples = heard[0], [np.frombuffer(heard[1], np.float32)]
            async for event in session.reply():
                match event:
                    case Text():
                        text += event.text
                    case Audio():
                        samples.append(event.samples)
                    case ReplyEnded():
                        assert event.text in text
            heard = (text, np.concatenate(samples).tobytes())
    return heard


async def test_replies_are_those_of_separate_processes(mesh, colocated_mesh, golden):
    sound, _ = soundfile.read(golden / "cases" / "greedy_one_turn" / "user0.wav", dtype="float32")
    asked = [
        (1, sound, {"voice": "ash", "temperature": 0.9}),
        (2, sound[:8000], {"voice": "birch", "temperature": 0.9}),
        (3, sound[:20000], {"voice": "ash", "temperature": 0.0}),
    ]
    separate = [await reply(mesh.address, seed, said, **options) for seed, said, options in asked]
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(reply(colocated_mesh.address, *turn[:2], **turn[2])) for turn in asked]
    assert [answer.result() for answer in answers] == separate
    assert len({sound for _, sound in separate}) == len(asked)


async def health_of(address: str, service: str) -> int:
    """What the server at an address says of a service; UNKNOWN for one that it has not."""
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        return (await watch.read()).status


def metrics_of(address: str) -> str:
    """What can be read at a metrics address."""
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        return response.read().decode()


async def test_each_stage_has_its_own_server_health_and_metrics(colocated_mesh):
    places = {stage: colocated_mesh.services[stage] for stage in SERVICES}
    assert len({place.pid for place in places.values()}) == 1
    assert places["codec"].pid != colocated_mesh.services["orchestrator"].pid
    for stage, place in places.items():
        for other, service in SERVICES.items():
            expected = SERVING if other == stage else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            assert await health_of(place.address, service) == expected
        metrics = await asyncio.to_thread(metrics_of, place.metrics_address)
        assert [other for other in SERVICES if f"chroma_{other}_slots " in metrics] == [stage]


class Child:
    """`python -m services.colocated` as a process of the test's own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []

    async def said(self, event: str) -> dict[str, dict[str, Any]]:
        """The lines about an event by stage, once all stages have said it."""
        assert self._process.stdout is not None
        while len(found := {line["stage"]: line for line in self.lines if line["event"] == event}) < len(SERVICES):
            line = await self._process.stdout.readline()
            assert line, f"not every stage said {event}"
            self.lines.append(json.loads(line))
        return found

    async def ended(self) -> int:
        """Its exit status, once all its lines are there."""
        assert self._process.stdout is not None
        self.lines += [json.loads(line) async for line in self._process.stdout]
        return await self._process.wait()

    def terminate(self) -> None:
        """Tells it to stop."""
        self._process.terminate()


Start = Callable[..., AbstractAsyncContextManager[Child]]


@pytest.fixture
def start(golden) -> Start:
    """`start(*flags)` runs the process on the golden checkpoint within its block."""

    @asynccontextmanager
    async def child(*flags: str) -> AsyncIterator[Child]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "services.colocated", "--checkpoint", str(golden / "checkpoint")),
            *("--device", "cpu", "--reasoner-threads", "1", "--speech-threads", "1", "--codec-threads", "1", *flags),
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("CHROMA_")},
        )
        try:
            yield Child(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    return child


async def test_a_signal_drains_every_stage_and_ends_with_status_0(start):
    async with start("--grace-seconds", "60") as child:
        addresses = {stage: line["address"] for stage, line in (await child.said("listening")).items()}
        await child.said("ready")
        async with (
            grpc.aio.insecure_channel(addresses["reasoner"]) as reasoner,
            grpc.aio.insecure_channel(addresses["codec"]) as codec,
        ):
            call = codec_pb2_grpc.CodecServiceStub(codec).Decode()
            pcm = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=24000)
            await call.write(codec_pb2.DecodeRequest(open=codec_pb2.DecodeOpen(audio_format=pcm)))
            assert (await call.read()).HasField("opened")
            watches = [
                health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                for channel in (reasoner, codec)
            ]
            assert [(await watch.read()).status for watch in watches] == [SERVING] * 2
            child.terminate()
            assert [(await watch.read()).status for watch in watches] == [NOT_SERVING] * 2
            await call.write(codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd()))
            assert (await call.read()).HasField("finished")
            assert await call.code() is grpc.StatusCode.OK
        assert await child.ended() == 0
    assert {line["stage"] for line in child.lines} == set(SERVICES)
    assert "error" not in {line["level"] for line in child.lines}


async def test_a_port_that_is_taken_ends_the_process_and_is_named(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with start("--speech-port", str(port)) as child:
            assert await child.ended() == 1
    (failed,) = [line for line in child.lines if line["event"] == "failed"]
    assert failed["stage"] == "speech"
    assert str(port) in failed["reason"]


async def test_a_checkpoint_that_is_not_there_ends_the_process_with_a_sentence(start, tmp_path):
    async with start("--checkpoint", str(tmp_path / "none")) as child:
        assert await child.ended() == 1
    (failed,) = [line for line in child.lines if line["event"] == "failed"]
    assert failed["stage"] == "reasoner"
    assert "none" in failed["reason"]
    assert "exception" not in failed


def test_a_killed_process_is_named_and_started_again_where_it_was(colocated_mesh):
    pid = colocated_mesh.services["speech"].pid
    psutil.Process(pid).kill()
    lines = iter(colocated_mesh.process.stdout.readline, "")
    lost = next(line for line in lines if "starts again" in line)
    assert lost.startswith(f"reasoner, speech and codec  pid {pid}  was killed by SIGKILL")
    ready = [next(line for line in lines if "ready at" in line) for _ in range(3)]
    addresses = {line.split()[0]: line.split("ready at ")[1].split()[0] for line in ready}
    assert addresses == {stage: colocated_mesh.services[stage].address for stage in ("reasoner", "speech", "codec")}
