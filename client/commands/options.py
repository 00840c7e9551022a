"""Options of more than one command."""

from typing import Annotated

import typer

from client.mesh_settings import Device, DType

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
