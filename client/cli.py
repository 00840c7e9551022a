"""The `chroma-mesh` command."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from client.access import Access
from client.commands.bench import bench
from client.commands.call import call
from client.commands.checkpoint import checkpoint
from client.commands.demo import demo
from client.commands.evaluate import evaluate
from client.commands.key import key_app
from client.commands.parity import parity
from client.commands.talk import talk
from client.commands.up import up
from client.commands.voices import voices_app
from client.commands.weights import weights
from client.errors import ClientError
from client.reply_display import printable

app = typer.Typer(
    help="Chroma-4B, the open speech-to-speech model, as a mesh of gRPC services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (up, talk, call, weights, checkpoint, parity, demo, bench, evaluate):
    app.command()(command)
app.add_typer(voices_app, name="voices")
app.add_typer(key_app, name="key")


@app.callback()
def access_options(
    context: typer.Context,
    tls: Annotated[
        bool, typer.Option("--tls", help="Connect to the mesh over TLS.", envvar="CHROMA_TLS", show_default=False)
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with the authority of the mesh's certificate, for TLS; default: the public ones.",
            envvar="CHROMA_TLS_CA",
            dir_okay=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with a certificate of one's own, for a mesh that asks for one.",
            envvar="CHROMA_TLS_CERTIFICATE",
            dir_okay=False,
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="PEM file with its key.", envvar="CHROMA_TLS_KEY", dir_okay=False)
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="The API key, for a mesh that asks for one; other users of this machine see it unless it is in the "
            "variable.",
            envvar="CHROMA_API_KEY",
        ),
    ] = None,
) -> None:
    """What comes before the command says how a mesh is reached."""
    context.obj = Access(tls=tls, ca=ca, certificate=certificate, key=key, api_key=api_key)


def main() -> None:
    """Runs the command line; an error is one sentence on stderr and an exit status."""
    try:
        app()
    except ClientError as error:
        sys.stderr.write(f"chroma-mesh: {printable(' '.join(str(error).split()))}\n")
        sys.exit(error.exit_status)
    except BrokenPipeError:  # the reader of our output has left, as in `| head`
        sys.stderr.close()
        sys.exit(1)
