"""A whole benchmark: the mesh, the voice, load after load."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from client.access import Access
from client.bench.caller import Line
from client.bench.engine_part import engine_command, measure_engines
from client.bench.flatness import FlatnessDriver
from client.bench.gpu_memory import gpu_use
from client.bench.load import LoadDriver, LoadRecord
from client.bench.machine import this_machine
from client.bench.process_use import metered, process_names
from client.bench.report import MeasuredVoice, Report
from client.bench.sound import question, voice_example
from client.channel import open_channel
from client.clock import WallClock
from client.connection import Mesh, connect
from client.errors import ClientError, InputError, MeshError
from client.pcm import USER_RATE_HZ
from client.run_progress import RunProgress
from client.service_log import LineSink
from client.supervisor import running_mesh


@dataclass(frozen=True)
class Measurement:
    """Fills a report; the services' lines go to `log`. `access` is how the mesh is reached."""

    report: Report
    access: Access
    with_engines: bool
    progress: RunProgress
    log: LineSink

    async def run(self) -> None:
        """Everything that was asked for; whatever stops it, the report has what was found until then."""
        report = self.report
        report.machine = await this_machine()
        if report.mesh is None:
            await self._measure_mesh({})
        else:
            self.progress.say(f"A mesh on {report.mesh.checkpoint} is starting.")
            async with running_mesh(report.mesh, log=self.log) as mesh:
                report.address = mesh.address
                report.sizes = {name: service.size for name, service in mesh.services.items() if service.size}
                await self._measure_mesh({name: service.pid for name, service in mesh.services.items()})
            if self.with_engines:
                self.progress.say("The engines are measured without the mesh.")
                assert report.voice is not None
                command = engine_command(report.mesh, report.settings.shape, report.voice.example_seconds)
                report.engine = await measure_engines(command, self.progress.say)
        report.is_partial = False

    async def _measure_mesh(self, pids: Mapping[str, int]) -> None:
        report, names = self.report, process_names(pids)
        async with connect(report.address, self.access) as mesh, open_channel(report.address, self.access) as channel:
            if not await mesh.is_ready():
                raise ClientError(f"the mesh at {report.address} takes no sessions now: it is starting or stopping")
            async with self._voice(mesh) as voice:
                report.voice = voice
                line = Line(
                    address=report.address,
                    channel=channel,
                    voice=voice.name,
                    question=question(USER_RATE_HZ),
                    shape=report.settings.shape,
                    clock=WallClock(),
                    heard=self.progress.advance,
                )
                first_seed = 0
                for load in report.settings.loads:
                    await self._measure_load(line, LoadRecord(load), first_seed, names)
                    first_seed += load.turn_count
                if report.settings.is_flatness_asked:
                    await FlatnessDriver(line, report.flatness, self.progress.say).run()

    async def _measure_load(self, line: Line, record: LoadRecord, first_seed: int, names: Mapping[int, str]) -> None:
        self.report.records.append(record)
        load = record.load
        self.progress.begin(load.label, (load.turn_count + load.warm_up_count) * line.shape.frame_count)
        driver = LoadDriver(line, record, first_seed)
        await driver.warm_up()
        async with metered(names, record.processes):
            await driver.run()
        self.progress.finish()
        if self.report.mesh is not None:
            record.gpu = await gpu_use(names)

    @asynccontextmanager
    async def _voice(self, mesh: Mesh) -> AsyncIterator[MeasuredVoice]:
        """The voice that answers; one that was made for the run is gone afterwards."""
        settings = self.report.settings
        if settings.voice is not None:
            voices = {voice.name: voice for voice in await mesh.voices()}
            if settings.voice not in voices:
                raise InputError(f"--voice: there is no voice {settings.voice}; there are {', '.join(voices)}")
            yield MeasuredVoice(settings.voice, voices[settings.voice].example_seconds, was_made=False)
            return
        name = f"bench-{uuid.uuid4().hex[:12]}"
        voice = await mesh.add_voice(name, voice_example(settings.voice_seconds))
        try:
            yield MeasuredVoice(voice.name, voice.example_seconds, was_made=True)
        finally:
            with contextlib.suppress(MeshError):  # a mesh that is gone has no voice left
                await mesh.remove_voice(name)
