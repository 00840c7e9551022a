"""`python -m services.checkpoints random:tiny --out DIR`: a random checkpoint in the published layout."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from services.checkpoints.writer import plan, write
from services.inference.checkpoint import CheckpointError
from services.inference.random_checkpoint import RANDOM, RandomCheckpoint

app = typer.Typer(add_completion=False)


@app.command()
def main(
    spec: Annotated[str, typer.Argument(help="What to write: random:<shape>[:<seed>], such as random:tiny.")],
    out: Annotated[Path, typer.Option(help="The directory to make; it must not exist, or be empty.")],
    shard_bytes: Annotated[int, typer.Option(min=1, help="The greatest size of a weights file, in bytes.")] = 5 * 10**9,
) -> None:
    """Write the random weights that the services make of the same SPEC, for any implementation to load."""
    try:
        if not spec.startswith(RANDOM):
            raise CheckpointError(f"{spec}: only {RANDOM}<shape>[:<seed>] can be written")
        checkpoint = RandomCheckpoint.parse(spec)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(spec, total=plan(checkpoint, shard_bytes=shard_bytes).total_bytes)
            written = write(
                checkpoint,
                out,
                shard_bytes=shard_bytes,
                progress=lambda count: progress.advance(task, count),
            )
    except CheckpointError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{out}: {written.total_bytes:,} bytes of weights in {len(written.shards)} files")


if __name__ == "__main__":
    app()
