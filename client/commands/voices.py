"""`chroma-mesh voices`: list them, add and remove them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.access import Access
from client.addresses import read_addresses
from client.commands.options import Address
from client.commands.voice_example import read_example
from client.connection import DEFAULT_ADDRESS, connect
from client.interruption import run
from client.table import voices_table

voices_app = typer.Typer(help="List the mesh's voices, add and remove them.", invoke_without_command=True)


@voices_app.callback()
def voices_command(context: typer.Context, address: Address = DEFAULT_ADDRESS) -> None:
    """List the mesh's voices, add and remove them."""
    access: Access = context.obj
    context.obj = (read_addresses(address), access)
    if context.invoked_subcommand is not None:
        return

    async def list_voices() -> None:
        async with connect(read_addresses(address), access) as mesh:
            Console().print(voices_table(await mesh.voices()))

    run(list_voices())


@voices_app.command("add")
def add_voice(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="1 to 64 of a-z, 0-9, '-' and '_'.")],
    audio: Annotated[Path, typer.Option(help="An example of the voice, up to 30 s: WAV, FLAC, OGG or MP3.")],
    text: Annotated[str, typer.Option(help="What is said in the example.")],
    shared: Annotated[
        bool, typer.Option("--shared", help="For all users of the mesh; default: where it asks for keys, yours alone.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="As of 'voices'.", metavar="HOST:PORT,…")] = None,
) -> None:
    """Add a voice from an example and its transcript."""
    example = read_example(audio, text)

    async def add() -> None:
        of_voices, access = context.obj
        async with connect(read_addresses(address) if address else of_voices, access) as mesh:
            voice = await mesh.add_voice(name, example, shared=shared)
            Console().print(f"Added {voice.name}, {voice.example_seconds:.1f} s.", markup=False)

    run(add())


@voices_app.command("remove")
def remove_voice(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A created voice; the built-in ones stay.")],
    address: Annotated[str | None, typer.Option(help="As of 'voices'.", metavar="HOST:PORT,…")] = None,
) -> None:
    """Remove a voice that was added."""

    async def remove() -> None:
        of_voices, access = context.obj
        async with connect(read_addresses(address) if address else of_voices, access) as mesh:
            await mesh.remove_voice(name)
            Console().print(f"Removed {name}.", markup=False)

    run(remove())
