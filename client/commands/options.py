"""Options of more than one command."""

from pathlib import Path
from typing import Annotated

import typer

from client.mesh_settings import Device, DType, Placement

Address = Annotated[
    str,
    typer.Option(
        help="Where the mesh's orchestrator listens; of several, a session goes on at another when it loses one.",
        metavar="HOST:PORT,…",
        envvar="CHROMA_MESH_ADDRESS",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        help="A folder in the published layout, mini for the shipped miniature, or random:tiny for noise.",
        metavar="SPEC",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where the models run.")]
DTypeOption = Annotated[DType, typer.Option(help="Numbers of reasoner and speech.")]
Logs = Annotated[
    str | None, typer.Option(help="Write the services' logs to this file; - is the terminal.", metavar="FILE")
]
RunningAddress = Annotated[
    str | None, typer.Option(help="A mesh that runs; without it, one is started for the run.", metavar="HOST:PORT")
]
PlacementOption = Annotated[Placement, typer.Option(help="As of 'up'.")]
Slots = Annotated[int | None, typer.Option(min=1, help="As of 'up'.")]
Threads = Annotated[int | None, typer.Option(min=1, help="As of 'up'.")]
VoiceName = Annotated[str | None, typer.Option(help="Name of the voice that answers.")]
MaxFrames = Annotated[
    int | None, typer.Option(min=1, max=2**32 - 1, help="Longest reply in frames of 80 ms. (mesh's default: 1000)")
]
JsonReport = Annotated[Path | None, typer.Option("--json", help="The report as JSON.", metavar="FILE")]
