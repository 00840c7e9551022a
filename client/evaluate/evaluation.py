"""A whole evaluation: the mesh, the questions, then the judgement."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from client.access import Access
from client.addresses import read_addresses
from client.bench.machine import this_machine
from client.connection import Mesh, connect
from client.errors import ClientError, InputError
from client.evaluate.examination import Answer, Examination
from client.evaluate.judgement import Judge
from client.evaluate.report import Report
from client.evaluate.voice_examples import voice_examples
from client.run_progress import RunProgress
from client.service_log import LineSink
from client.supervisor import running_mesh
from client.voice import Voice


@dataclass(frozen=True)
class Evaluation:
    """Fills a report; the services' lines go to `log`. `access` is how the mesh is reached."""

    report: Report
    access: Access
    progress: RunProgress
    log: LineSink

    async def run(self) -> None:
        """Asks everything, then judges it: at the same time, one would slow down the other.

        When the mesh is lost on the way, what was heard of it is judged before its error is raised.
        """
        report = self.report
        report.machine = await this_machine()
        stopped: ClientError | None = None
        try:
            async with AsyncExitStack() as stack:
                if report.mesh is not None:
                    self.progress.say(f"A mesh on {report.mesh.checkpoint} is starting.")
                    running = await stack.enter_async_context(running_mesh(report.mesh, log=self.log))
                    report.address = running.address
                mesh = await stack.enter_async_context(connect(read_addresses(report.address), self.access))
                voices = await self._voices(mesh)
                judge = await asyncio.to_thread(Judge, report.asked, voice_examples(voices, report.settings.voices))
                report.voices = judge.voices
                await self._ask(mesh, next((voice.name for voice in voices if voice.is_default), ""))
        except ClientError as error:
            if not report.answers:
                raise
            stopped = error
        self.progress.begin("judged", len(report.answers))
        for answer in sorted(report.answers, key=lambda it: it.index):
            report.judged.append((answer, await asyncio.to_thread(judge.judge, answer)))
            self.progress.advance()
        if stopped is not None:
            raise stopped

    async def _voices(self, mesh: Mesh) -> list[Voice]:
        """The mesh's voices; InputError when one is asked for that it does not have."""
        report = self.report
        if not await mesh.is_ready():
            raise ClientError(f"the mesh at {report.address} takes no sessions now: it is starting or stopping")
        voices = await mesh.voices()
        names = [voice.name for voice in voices]
        wanted = [("--voice", report.settings.voice)]
        if report.settings.voice is None:
            wanted = [(report.asked.name, conversation.voice) for conversation in report.asked.conversations]
        for source, name in wanted:
            if name is not None and name not in names:
                raise InputError(f"{source}: the mesh has no voice {name}; it has {', '.join(names)}")
        return voices

    async def _ask(self, mesh: Mesh, default_voice: str) -> None:
        examination = Examination(mesh, self.report.asked, self.report.settings, default_voice, self._keep)
        self.progress.say("Every voice is heard once before counting begins.")
        await examination.warm_up()
        self.progress.begin("asked", self.report.asked.question_count)
        await examination.run()

    def _keep(self, answer: Answer) -> None:
        self.report.answers.append(answer)
        self.progress.advance()
