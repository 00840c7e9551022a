"""`chroma-mesh bench`: how fast a mesh answers."""

from pathlib import Path
from typing import Annotated

import typer

from client.access import Access
from client.commands.options import (
    Checkpoint,
    DeviceOption,
    DTypeOption,
    Logs,
    PlacementOption,
    RunningAddress,
    Slots,
    Threads,
)
from client.commands.started_mesh import mesh_to_start
from client.mesh_settings import Device, DType, MeshSettings, Placement

CHECKPOINT = "random:tiny"
"""Its replies are as long as they are asked to be."""


def bench(
    context: typer.Context,
    address: RunningAddress = None,
    sessions: Annotated[
        str | None,
        typer.Option(
            help="Callers at a time, turns back to back; 1,2,4,8 is the default without --rate.", metavar="N,…"
        ),
    ] = None,
    replies: Annotated[int, typer.Option(min=1, help="Turns of every caller, after one that is not counted.")] = 4,
    live: Annotated[bool, typer.Option("--live", help="Callers speak and listen in real time, as people do.")] = False,
    rate: Annotated[
        str | None,
        typer.Option(help="Turns a second that arrive whatever becomes of those before, as 0.5,1,2.", metavar="X,…"),
    ] = None,
    duration: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="How long turns arrive at each --rate, in seconds.")
    ] = 60,
    frames: Annotated[int, typer.Option(min=1, max=2**32 - 1, help="Length of a reply in frames of 80 ms.")] = 485,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=2**32 - 1, help="Reasoner steps of a reply; default: 144 to 485 frames."),
    ] = None,
    user_seconds: Annotated[float, typer.Option(min=0.1, max=300, help="What the user says, in seconds.")] = 3,
    voice_seconds: Annotated[float, typer.Option(min=0.1, max=30, help="Example of the voice, in seconds.")] = 10,
    voice: Annotated[
        str | None, typer.Option(help="Answer with this voice of the mesh, rather than one made for the run.")
    ] = None,
    engine: Annotated[
        bool, typer.Option("--engine", help="Measure the engines without a mesh as well, and compare.")
    ] = False,
    flatness: Annotated[
        bool,
        typer.Option("--flatness", help="Also whether TTFA stays the same after long speech and in late turns."),
    ] = False,
    checkpoint: Checkpoint = CHECKPOINT,
    device: DeviceOption = Device.AUTO,
    dtype: DTypeOption = DType.AUTO,
    placement: PlacementOption = Placement.SEPARATE,
    slots: Slots = None,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for bench.json, bench.md and bench.png.", metavar="DIR")
    ] = None,
    logs: Logs = None,
) -> None:
    """Measure how fast a mesh answers, as voice apps would notice.

    Exit status 0: measured; 1: no turn got a reply, or something broke; 2: the options do not fit.
    """
    from client.bench.packages import check_bench_installed

    check_bench_installed()
    from client.bench.command import bench as measure
    from client.bench.settings import BenchSettings, read_loads
    from client.bench.shape import ReplyShape

    mesh = MeshSettings(
        checkpoint=checkpoint, device=device, dtype=dtype, placement=placement, slots=slots, threads=threads
    )
    own_mesh = mesh_to_start(address, mesh, MeshSettings(checkpoint=CHECKPOINT), engine=engine, logs=bool(logs))
    settings = BenchSettings(
        shape=ReplyShape.of(frames, steps, user_seconds),
        loads=read_loads(sessions, rate, reply_count=replies, is_live=live, duration_seconds=duration),
        voice=voice,
        voice_seconds=voice_seconds,
        is_flatness_asked=flatness,
    )
    # A mesh of its own asks for nothing.
    access = context.obj if own_mesh is None else Access()
    measure(settings, own_mesh, address or "", access=access, with_engines=engine, out=out, logs=logs)
