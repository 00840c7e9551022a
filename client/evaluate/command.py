"""`chroma-mesh evaluate`, from its options to its files."""

import re
import shlex
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

from client.access import Access
from client.audio_file import write_audio
from client.call.report import check_json_writable, write_json
from client.errors import ClientError, InputError
from client.evaluate.evaluation import Evaluation
from client.evaluate.evaluation_set import EvaluationSet
from client.evaluate.examination import Answer
from client.evaluate.report import Report, described, json_text
from client.evaluate.requirement import Requirement
from client.evaluate.settings import EvaluationSettings
from client.evaluate.tables import faults_table, remarks, scores_table
from client.interruption import run
from client.mesh_settings import MeshSettings
from client.report_output import make_folder, show
from client.run_progress import RunProgress
from client.service_log import open_log


def evaluate(
    asked: EvaluationSet,
    settings: EvaluationSettings,
    requirements: tuple[Requirement, ...],
    mesh: MeshSettings | None,
    address: str,
    *,
    access: Access,
    json: Path | None,
    out: Path | None,
    logs: str | None,
) -> None:
    """Asks, judges, prints the tables and writes the files, also when the mesh is lost on the way.

    `mesh` is started for the run; None asks the one at `address`, which is reached by `access`. ClientError when a
    requirement is not met, and what stopped the run at the end of everything.
    """
    check_requirements(requirements, asked)
    make_folder(out)
    if json is not None:
        check_json_writable(json)
    report = Report(
        settings=settings,
        asked=asked,
        mesh=mesh,
        address=address,
        command=shlex.join(["chroma-mesh", *sys.argv[1:]]),
        started_at=datetime.now().astimezone(),
        requirements=requirements,
    )
    stopped: ClientError | None = None
    try:
        with open_log(logs) as log, RunProgress(Console(stderr=True), "replies") as progress:
            run(Evaluation(report, access, progress, log).run())
    except ClientError as error:
        if not report.judged:
            raise
        stopped = error
    filled = [table for table in (scores_table(report), faults_table(report)) if table.rows]
    show(described(report), filled, remarks(report))
    if json is not None:
        write_json(json, json_text(report))
    if out is not None:
        write_folder(report, out)
    if stopped is not None:
        raise stopped
    if report.shortfalls:
        raise ClientError("; ".join(report.shortfalls))


def check_requirements(requirements: tuple[Requirement, ...], asked: EvaluationSet) -> None:
    """InputError when one is about a group that the set does not have."""
    for requirement in requirements:
        if requirement.group is not None and requirement.group not in asked.groups:
            groups = ", ".join(asked.groups)
            raise InputError(f"--require: there is no group {requirement.group} in the set; there are {groups}")


def write_folder(report: Report, out: Path) -> None:
    """Writes the figure and the sound of every reply."""
    from client.evaluate.plot import write_plot

    try:
        write_plot(report, out / "evaluation.png")
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written to: {error.strerror or error}") from None
    count = 0
    for answer in report.answers:
        if answer.reply is not None:
            write_audio(out / reply_name(answer), answer.reply.samples, answer.reply.sample_rate_hz)
            count += 1
    sys.stdout.write(f"Written to {out}: evaluation.png and {count} replies as WAV\n")


def reply_name(answer: Answer) -> str:
    """The file of a reply: the question's index, the voice, what was asked."""
    asked = re.sub(r"[^a-z0-9]+", "-", Path(answer.question.asked).stem.lower()).strip("-")[:60]
    return f"{answer.index:04d}-{answer.voice}-{asked}.wav"
