"""`chroma-mesh demo`: two spoken questions to the miniature."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.audio_file import read_audio
from client.commands.conversation import hold_conversation, output_files
from client.commands.options import Checkpoint, DeviceOption, Logs
from client.commands.started_mesh import service_reporter
from client.interruption import run
from client.mesh_settings import Device, MeshSettings
from client.pcm import USER_RATE_HZ
from client.service_log import LineSink, open_log
from client.session_settings import SessionSettings
from client.supervisor import check_server_installed, running_mesh
from client.talk import Turn

FRAMES = 60
QUESTIONS = {
    "anew-what-is-the-capital-of-france.flac": "what is the capital of france",
    "anew-and-of-spain.flac": "and of spain",
}
"""Files of the miniature's questions, and what is said in them."""


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="WAV of the reply; the second is numbered: reply-1.wav.")
    ] = Path("reply.wav"),
    checkpoint: Checkpoint = "mini",
    device: DeviceOption = Device.AUTO,
    logs: Logs = None,
) -> None:
    """Start a mesh, ask it two spoken questions, the second of which needs the first, write the replies, stop it."""
    outputs = output_files(out, len(QUESTIONS))
    check_server_installed()
    with resources.as_file(resources.files("mini") / "questions") as folder:
        questions = [Turn(asked, read_audio(folder / name, USER_RATE_HZ)) for name, asked in QUESTIONS.items()]
    mesh_settings = MeshSettings(checkpoint=checkpoint, device=device)
    session_settings = SessionSettings(max_frame_count=FRAMES)
    console = Console()

    async def show(log: LineSink) -> None:
        async with running_mesh(mesh_settings, report=service_reporter(console), log=log) as mesh:
            await hold_conversation(console, mesh.addresses, session_settings, questions, outputs)

    with open_log(logs) as log:
        run(show(log))
