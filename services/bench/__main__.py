"""`python -m services.bench --checkpoint random:small`: what a frame costs, as one JSON object on stdout."""

import dataclasses
import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import structlog
import torch
import transformers
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services.bench.clock import ClockName, clock
from services.bench.engines import ModelSettings
from services.bench.measurement import PARTS_COUNT, SAMPLED, Round, prepared
from services.bench.report import Report, ReportShape, Summary, tables
from services.bench.shape import CannotMeasure, ReplyShape
from services.inference.checkpoint import CheckpointError
from services.inference.device import BadSetting, DeviceName, DtypeName, resolve_device, resolve_dtype
from services.inference.slots import Refused

app = typer.Typer(add_completion=False)


@app.command()
def main(
    checkpoint: Annotated[str, typer.Option(help="A directory in the published layout, or random:<shape>[:<seed>].")],
    frames: Annotated[int, typer.Option(min=2, help="Frames of a reply; the published measurement has 485.")] = 101,
    steps: Annotated[int, typer.Option(min=1, help="Reasoner steps of a reply; the published one has 144.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured, in turn.")] = 3,
    slots: Annotated[int, typer.Option(min=2, help="Slots of the larger engines, and sessions at once.")] = 8,
    voice_seconds: Annotated[float, typer.Option(min=0.08, help="Length of the voice's example.")] = 10.0,
    user_seconds: Annotated[float, typer.Option(min=0.1, max=300, help="Length of what the user says.")] = 3.0,
    device: Annotated[DeviceName, typer.Option(help="Where the models run; auto is CUDA where there is one.")] = "auto",
    dtype: Annotated[DtypeName, typer.Option(help="Precision; auto is bfloat16 on CUDA, float32 on a CPU.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each engine.")] = None,
    clock_name: Annotated[
        ClockName, typer.Option("--clock", help="Time that passes, or CPU time of all threads: fairer on a busy core.")
    ] = "wall",
    profile: Annotated[Path | None, typer.Option(help="A file for a profile of the speech engine.")] = None,
) -> None:
    """Measure what a frame costs in the engines, beside its matrix products alone and beside plain transformers."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    transformers.logging.set_verbosity_error()
    if threads is not None:
        torch.set_num_threads(threads)
    refused: list[BaseException] = []
    try:
        if profile is not None and not profile.parent.is_dir():
            raise CannotMeasure(f"{profile}: there is no directory {profile.parent}")
        if clock_name == "cpu" and resolve_device(device).type == "cuda":
            raise CannotMeasure("CPU time says nothing about work on a GPU: expected --clock wall or --device cpu")
        shape = ReplyShape(frames, steps, voice_seconds, user_seconds)
        model = ModelSettings(checkpoint, device, dtype)
        report = uvloop.run(measure(model, shape, clock_name, slots=slots, round_count=rounds, profile=profile))
    except* (CannotMeasure, CheckpointError, BadSetting, Refused) as group:
        refused += group.exceptions
    if refused:
        typer.echo(str(_innermost(refused[0])), err=True)
        raise typer.Exit(2)
    typer.echo(json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False))


async def measure(
    model: ModelSettings,
    shape: ReplyShape,
    clock_name: ClockName,
    *,
    slots: int,
    round_count: int,
    profile: Path | None,
) -> Report:
    """Runs the rounds and sums them up; says on stderr how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("loading", total=round_count * PARTS_COUNT)
        measured: list[Round] = []
        begun = itertools.count()

        def begin(part: str) -> None:
            progress.update(task, description=part, completed=next(begun))

        async with prepared(model, shape, clock(clock_name), slots) as measurement:
            for _ in range(round_count):
                measured.append(await measurement.round(begin))
            if profile is not None:
                begin("profile")
                await measurement.write_profile(profile)
            frame_audio_seconds = measurement.single.engines.frame_audio_seconds
    values = Summary(measured, shape, slots, frame_audio_seconds).values()
    place = resolve_device(model.device)
    return Report(
        checkpoint=model.checkpoint,
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        dtype=str(resolve_dtype(model.dtype, place)).removeprefix("torch."),
        threads=torch.get_num_threads(),
        clock=clock_name,
        shape=ReportShape(
            frame_count=shape.frame_count,
            step_count=shape.step_count,
            voice_seconds=shape.voice_seconds,
            user_seconds=shape.user_seconds,
            slot_count=slots,
            round_count=round_count,
            temperature=SAMPLED.temperature,
            top_k=SAMPLED.top_k,
        ),
        tables=tables(values, slots),
        values=values,
    )


def _innermost(error: BaseException) -> BaseException:
    """The first error that a task was refused with."""
    return _innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    app()
