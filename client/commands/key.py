"""`chroma-mesh key`: API keys."""

from typing import Annotated

import typer

from client.api_key import KeyLimits, Scope, new_key

key_app = typer.Typer(help="Make API keys for the users of a mesh.", no_args_is_help=True)


@key_app.command("new")
def new_key_command(
    key_id: Annotated[str, typer.Argument(help="Names the key in logs: 1 to 64 of a-z, 0-9, '-' and '_'.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="What it opens; default: all. Repeatable.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="Sessions at a time; default: the mesh's.")] = None,
    audio_per_minute: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds of audio a minute, heard and made; default: any.")
    ] = None,
    audio_per_hour: Annotated[float | None, typer.Option(min=0.001, help="The same an hour.")] = None,
    audio_per_day: Annotated[float | None, typer.Option(min=0.001, help="The same a day.")] = None,
) -> None:
    """Make an API key: print it, this once, and its entry for the file that CHROMA_ORCHESTRATOR_API_KEYS names."""
    limits = KeyLimits(
        sessions=sessions,
        audio_seconds_per_minute=audio_per_minute,
        audio_seconds_per_hour=audio_per_hour,
        audio_seconds_per_day=audio_per_day,
    )
    key = new_key(key_id, scope or list(Scope), limits)
    typer.echo(f"The key, for its holder; it is not kept anywhere:\n\n{key.secret}\n")
    typer.echo(f"Its entry, for the mesh's file of keys:\n\n{key.entry}")
