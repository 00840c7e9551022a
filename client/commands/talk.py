"""`chroma-mesh talk`: files and typed text are said, replies written."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.addresses import read_addresses
from client.audio_file import read_audio
from client.commands.conversation import hold_conversation, output_files
from client.commands.options import Address, MaxFrames, VoiceName
from client.commands.voice_example import read_example
from client.connection import DEFAULT_ADDRESS
from client.errors import InputError
from client.interruption import run
from client.pcm import USER_RATE_HZ
from client.session_settings import SessionSettings
from client.talk import Turn
from client.voice import VoiceExample


def talk(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="What you say: WAV, FLAC, OGG or MP3, a turn each.", metavar="FILE")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="What you type, a turn each, after the files. Repeatable.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="WAV of the reply; later ones are numbered: reply-1.wav, …")
    ] = Path("reply.wav"),
    voice: VoiceName = None,
    voice_audio: Annotated[
        Path | None, typer.Option(help="A voice of your own: an example, up to 30 s. Needs --voice-text.")
    ] = None,
    voice_text: Annotated[str | None, typer.Option(help="What is said in --voice-audio.")] = None,
    instructions: Annotated[str | None, typer.Option(help='The system message; "" for none.')] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="0 takes the most likely code. (default: the checkpoint's)"),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Draw among this many codes, 0: all. (default: the checkpoint's)")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same reply. (mesh's default: 0)")
    ] = None,
    max_frames: MaxFrames = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, max=2**32 - 1, help="Longest text of a reply in tokens.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Talk to a mesh: say files or type text, hear replies.

    Several files and texts are several turns of one conversation, files first.
    """
    turns = [Turn(file.name, read_audio(file, USER_RATE_HZ)) for file in files or ()]
    turns += [Turn(shortened(typed), typed) for typed in text or ()]
    if not turns:
        raise InputError("there is nothing to say: give sound files, or text with --text")
    outputs = output_files(out, len(turns))
    settings = SessionSettings(
        voice=chosen_voice(voice, voice_audio, voice_text),
        instructions=instructions,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        max_frame_count=max_frames,
        max_step_count=max_steps,
    )
    run(hold_conversation(Console(), read_addresses(address), settings, turns, outputs, access=context.obj))


def chosen_voice(name: str | None, audio: Path | None, text: str | None) -> str | VoiceExample | None:
    """The voice that the options name; None leaves it to the mesh."""
    if (audio is None) != (text is None):
        raise InputError("--voice-audio and --voice-text go together: an example and what is said in it")
    if audio is None or text is None:
        return name
    if name is not None:
        raise InputError("give --voice or --voice-audio, not both")
    return read_example(audio, text)


def shortened(text: str) -> str:
    """The start of a text, as a name for it."""
    return text if len(text) <= 24 else f"{text[:23]}…"
