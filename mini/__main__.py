"""`python -m mini make`: the checkpoint and its voices from nothing but espeak-ng; goes on where it was stopped."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)

State = Annotated[Path, typer.Option(help="Where recordings and half-trained weights are kept.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of this process.")]
DEFAULT_STATE = Path("build/mini")
HERE = Path(__file__).parent


@app.command()
def recordings(state: State = DEFAULT_STATE) -> None:
    """Speaks everything that is trained on or scored with."""
    from mini.recordings import make_all

    make_all(state)


@app.command()
def codec(state: State = DEFAULT_STATE, threads: Threads = 1) -> None:
    """Trains the codec; needs the recordings."""
    torch.set_num_threads(threads)
    from mini.codec import train

    train(state)


@app.command()
def reasoner(state: State = DEFAULT_STATE, threads: Threads = 1, device: Device = "cpu") -> None:
    """Trains the reasoner; needs the recordings."""
    torch.set_num_threads(threads)
    from mini.reasoner import train

    train(state, torch.device(device))


@app.command()
def speech(state: State = DEFAULT_STATE, threads: Threads = 1, device: Device = "cpu") -> None:
    """Trains backbone and depth decoder; needs the codec."""
    torch.set_num_threads(threads)
    from mini.speech import train

    train(state, torch.device(device))


@app.command()
def join(state: State = DEFAULT_STATE, threads: Threads = 1, device: Device = "cpu") -> None:
    """Trains backbone and depth decoder on with the reasoner's states; needs both trained."""
    torch.set_num_threads(threads)
    from mini.speech import join as join_stages

    join_stages(state, torch.device(device))


@app.command()
def export(state: State = DEFAULT_STATE, out: Annotated[Path, typer.Option()] = HERE / "checkpoint") -> None:
    """Writes checkpoint and voices; needs all that is trained."""
    from mini.checkpoint import write, write_voices

    typer.echo(f"{out}: {write(state, out):,} bytes")
    write_voices(state, HERE / "voices")


@app.command()
def understand(
    state: State = DEFAULT_STATE,
    stage: Annotated[str, typer.Option(help="recordings, codec or replies.")] = "replies",
    stride: Annotated[int, typer.Option(min=1, help="Every which of the answers is said, in all voices.")] = 10,
    wavs: Annotated[Path | None, typer.Option(help="Where to write what was said.")] = None,
) -> None:
    """What pocketsphinx understands of the answers after a stage; needs the recordings, and what the stage needs."""
    import soundfile

    from mini.rhythm import RATE_HZ
    from mini.understanding import spoken, understood

    said = spoken(state, stage, stride)
    if wavs is not None:
        wavs.mkdir(parents=True, exist_ok=True)
        for voice, sentence, samples in said:
            soundfile.write(wavs / f"{sentence.replace(' ', '_')}.{voice}.wav", samples, RATE_HZ)
    found = understood(said)
    for voice, sentence, heard in found.wrong:
        typer.echo(f"{voice}: {sentence!r} heard as {heard!r}")
    typer.echo(f"{stage}: {found.count} replies, forced choice {found.choice:.3f}, bigram words {found.words:.3f}")


@app.command()
def questions(
    out: Annotated[Path, typer.Option(help="Folder to write the set to.")],
    state: State = DEFAULT_STATE,
    is_small: Annotated[bool, typer.Option("--small", help="The few that are shipped in mini/questions.")] = False,
    stride: Annotated[int, typer.Option(min=1, help="Every which conversation of the set is taken.")] = 1,
) -> None:
    """Writes a set for `chroma-mesh evaluate` from recordings that are not trained on; needs the recordings."""
    from mini.question_set import full, small, write

    name, conversations = ("small set of the miniature", small()) if is_small else ("set of the miniature", full())
    conversations = conversations[::stride]
    typer.echo(f"{out}: {len(conversations)} conversations, {write(state, out, name, conversations):,} bytes")


@app.command()
def make(state: State = DEFAULT_STATE) -> None:
    """All of it, on two cores: the reasoner on one, codec and speech on the other, then each on both."""
    recordings(state)
    beside = subprocess.Popen([sys.executable, "-m", "mini", "reasoner", "--state", str(state)])
    try:
        codec(state)
        speech(state)
    finally:
        beside.terminate()
        beside.wait()
    reasoner(state, threads=2)  # what is left of it; what went wrong beside does so again
    join(state, threads=2)
    export(state)


def main() -> None:
    """The command line; of what an earlier command makes and is not there it says which file."""
    try:
        app()
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing; 'python -m mini --help' says which command needs which before it")


if __name__ == "__main__":
    main()
