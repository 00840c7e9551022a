"""`chroma-mesh evaluate`: what a mesh answers, and how it is understood."""

from pathlib import Path
from typing import Annotated

import typer

from client.access import Access
from client.commands.options import (
    Checkpoint,
    DeviceOption,
    DTypeOption,
    JsonReport,
    Logs,
    MaxFrames,
    PlacementOption,
    RunningAddress,
    Slots,
    Threads,
)
from client.commands.started_mesh import mesh_to_start
from client.mesh_settings import Device, DType, MeshSettings, Placement


def evaluate(
    context: typer.Context,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A set of questions with their answers, as docs/evaluation.md has it, or sound files; default: the "
            "miniature's small set.",
            metavar="SET|FILE",
        ),
    ] = None,
    address: RunningAddress = None,
    voice: Annotated[str | None, typer.Option(help="Name of the voice that answers; default: the set's.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 takes the most likely code; default: the mesh's.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 1,
    max_frames: MaxFrames = None,
    voices: Annotated[
        Path | None,
        typer.Option(
            help="Folder with examples of the mesh's voices, NAME.wav and NAME.json; default: the shipped ones.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(
            help="Least shares, as exact=0.97,strangers:exact=0.9; of exact, choice, answered, words, voice, ended. "
            "At most: longest=2.",
            metavar="X,…",
        ),
    ] = None,
    checkpoint: Checkpoint = "mini",
    device: DeviceOption = Device.AUTO,
    dtype: DTypeOption = DType.AUTO,
    placement: PlacementOption = Placement.SEPARATE,
    slots: Slots = None,
    threads: Threads = None,
    json: JsonReport = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the replies as WAV and a figure.", metavar="DIR")
    ] = None,
    logs: Logs = None,
) -> None:
    """Ask a mesh spoken questions and judge what it says.

    Exit status 0: judged; 1: less than --require, or something broke; 2: the set or the options do not fit.
    """
    from client.evaluate.packages import check_evaluate_installed

    check_evaluate_installed()
    from client.evaluate.command import evaluate as judge
    from client.evaluate.evaluation_set import opened_set
    from client.evaluate.requirement import read_requirements
    from client.evaluate.settings import EvaluationSettings

    mesh = MeshSettings(
        checkpoint=checkpoint, device=device, dtype=dtype, placement=placement, slots=slots, threads=threads
    )
    own_mesh = mesh_to_start(address, mesh, MeshSettings(), logs=bool(logs))
    settings = EvaluationSettings(
        voice=voice,
        temperature=temperature,
        max_frame_count=max_frames,
        session_count=sessions,
        voices=voices,
    )
    requirements = read_requirements(require)
    # A mesh of its own asks for nothing.
    access = context.obj if own_mesh is None else Access()
    with opened_set(inputs or ()) as asked:
        judge(asked, settings, requirements, own_mesh, address or "", access=access, json=json, out=out, logs=logs)
