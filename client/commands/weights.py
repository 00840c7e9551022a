"""`chroma-mesh weights`: the published checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.console import plain_console
from client.weights import REPOSITORY, REVISION, check_weights, fetch_weights


def weights(
    to: Annotated[Path, typer.Option(help="Folder for the checkpoint.", file_okay=False)] = Path("chroma-4b"),
    revision: Annotated[str, typer.Option(help="Revision of the repository.", metavar="SHA")] = REVISION,
    repo: Annotated[str, typer.Option(help="Repository on the hub.")] = REPOSITORY,
    token: Annotated[
        str | None, typer.Option(help="Access token; default: HF_TOKEN or the one you logged in with.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of the hub; default: HF_ENDPOINT.", hidden=True)] = None,
) -> None:
    """Download the published weights and check them; run it again for what is missing."""
    fetch_weights(to, repository=repo, revision=revision, token=token, endpoint=endpoint)
    held = check_weights(to)
    console = plain_console()
    console.print(
        f"{to} is complete: {held.tensor_count} tensors in {held.shard_count} files, {held.weight_bytes / 1e9:.1f} GB."
    )
    console.print(f"Start it with: chroma-mesh up --checkpoint {to}", style="dim")
