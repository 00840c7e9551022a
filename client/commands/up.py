"""`chroma-mesh up`: a mesh on this machine."""

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.commands.console import plain_console
from client.commands.options import Checkpoint, DeviceOption, DTypeOption, Logs
from client.commands.started_mesh import service_reporter
from client.interruption import Interrupted, run
from client.mesh_settings import Device, DType, MeshSettings, Placement, read_replicas
from client.service_log import LineSink, open_log
from client.service_process import in_words
from client.supervisor import check_server_installed, running_mesh


def up(
    checkpoint: Checkpoint = "mini",
    device: DeviceOption = Device.AUTO,
    dtype: DTypeOption = DType.AUTO,
    placement: Annotated[
        Placement,
        typer.Option(help="A process for each stage, or one for all three: on one GPU they need not take turns then."),
    ] = Placement.SEPARATE,
    replicas: Annotated[
        str | None,
        typer.Option(
            help="Processes of a service, where it is to have several: reasoner, speech, codec, orchestrator.",
            metavar="SERVICE=N,…",
        ),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Replies at a time, of every stage; default: what its memory holds.")
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(min=0.001, help="What the stages may take on their device, together; default: 90 percent of it."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of reasoner and speech, each; default: half the cores.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where orchestrator and gateway listen; stages stay on 127.0.0.1.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The orchestrator's port; 0 is any free one.")] = 50050,
    reasoner_port: Annotated[int, typer.Option(min=0, max=65535, help="The reasoner's port; 0: any.")] = 0,
    speech_port: Annotated[int, typer.Option(min=0, max=65535, help="The speech stage's port; 0: any.")] = 0,
    codec_port: Annotated[int, typer.Option(min=0, max=65535, help="The codec's port; 0: any.")] = 0,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65531,
            help="The orchestrator's metrics port; reasoner, speech, codec and gateway take the next four; 0: any.",
        ),
    ] = 0,
    gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", help="Whether OpenAI's clients and browsers can call, over HTTP.")
    ] = True,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The gateway's port; it listens on --host as well; 0: any.")
    ] = 8080,
    voices: Annotated[Path | None, typer.Option(help="Folder that keeps created voices.", file_okay=False)] = None,
    default_voice: Annotated[str | None, typer.Option(help="The voice of sessions that name none.")] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            help="Where sessions are kept, so that they go on when an orchestrator is lost: a file, or "
            "redis://host:port/db. Several orchestrators need it.",
            metavar="FILE|URL",
        ),
    ] = None,
    logs: Logs = None,
) -> None:
    """Start a mesh on this machine: reasoner, speech, codec, orchestrator and gateway; Ctrl-C stops it.

    A service that ends by itself once it was ready is started again.

    Every other setting of a service is an environment variable, CHROMA_<SERVICE>_<SETTING>;
    'python -m services.reasoner --help' lists them.
    """
    settings = MeshSettings(
        checkpoint=checkpoint,
        device=device,
        dtype=dtype,
        placement=placement,
        replicas={} if replicas is None else read_replicas(replicas),
        slots=slots,
        memory_gib=memory_gib,
        threads=threads,
        host=host,
        port=port,
        reasoner_port=reasoner_port,
        speech_port=speech_port,
        codec_port=codec_port,
        metrics_port=metrics_port,
        http_port=http_port if gateway else None,
        voices=voices,
        default_voice=default_voice,
        journal=journal,
    )

    async def stay_up(console: Console, log: LineSink) -> None:
        async with running_mesh(settings, report=service_reporter(console), log=log, restart=True) as mesh:
            console.print(f"The mesh is ready at {in_words(mesh.addresses)}", style="bold")
            if mesh.url is not None:
                console.print(f"HTTP, for OpenAI's clients: {mesh.url}/v1", style="bold", highlight=False)
            console.print("Ctrl-C stops it. To talk to it:", style="dim")
            console.print(f"  chroma-mesh talk question.wav --address {','.join(mesh.addresses)}", style="dim")
            await asyncio.Event().wait()

    check_server_installed()
    console = plain_console()
    with open_log(logs) as log, contextlib.suppress(Interrupted):
        run(stay_up(console, log))
    console.print("The mesh is down.")
