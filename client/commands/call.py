"""`chroma-mesh call`: a caller as a person is one."""

from pathlib import Path
from typing import Annotated

import typer

from client.addresses import read_addresses
from client.audio_file import read_audio
from client.call.command import call as hold_call
from client.call.script import PATIENCE_SECONDS, Script, SpokenTurn, read_barge_in
from client.call.settings import CallFormat, CallSettings, session_settings
from client.commands.options import Address, JsonReport, MaxFrames, VoiceName
from client.connection import DEFAULT_ADDRESS
from client.errors import InputError


def call(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="What is said: WAV, FLAC, OGG or MP3, a turn each.", metavar="FILE")
    ] = None,
    mic: Annotated[
        bool, typer.Option("--mic", help="Speak yourself: microphone and loudspeaker. Needs the extra 'mic'.")
    ] = False,
    vad: Annotated[
        bool | None,
        typer.Option(
            "--vad/--manual",
            help="Whether the mesh hears that a turn is over, or the caller says so; --mic: the mesh. Default: manual.",
        ),
    ] = None,
    pause: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds from a reply's end to the next turn.")] = 1.0,
    barge_in: Annotated[
        str | None,
        typer.Option(
            help="Seconds after a reply's first sound at which the next turn is spoken over it, for each reply in "
            "turn; - lets it end. As 1.5,-,0.8.",
            metavar="X,…",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Say all files this many times.")] = 1,
    packet_ms: Annotated[int, typer.Option(min=1, max=100, help="Length of a packet.")] = 20,
    sound_format: Annotated[
        CallFormat, typer.Option("--format", help="Encoding both ways; mulaw and alaw are G.711.")
    ] = CallFormat.PCM16,
    rate: Annotated[
        int | None, typer.Option(help="Samples a second both ways; default: 16000 in, 24000 out, G.711 8000.")
    ] = None,
    voice: VoiceName = None,
    max_frames: MaxFrames = None,
    speed: Annotated[
        float, typer.Option(min=0.01, max=1000, help="How many times faster than real time the caller lives.")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="WAV of the call: left the caller, right what was heard.")
    ] = None,
    json: JsonReport = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Call a mesh as a person does: speak in packets at real-time pace, listen at once, barge in; report every latency.

    Several files are several turns of one conversation.
    """
    if mic == bool(files):
        raise InputError("give sound files or --mic" + (", not both" if mic else ", there is nothing to say"))
    if mic and (vad is False or barge_in is not None or repeat != 1 or speed != 1):
        raise InputError("--mic is a person: give none of --manual, --barge-in, --repeat and --speed with it")
    settings = session_settings(
        sound_format, rate, is_heard_by_mesh=mic or bool(vad), speed=speed, voice=voice, max_frame_count=max_frames
    )
    input_rate_hz = settings.input_format.sample_rate_hz
    turns = [SpokenTurn(file.name, read_audio(file, input_rate_hz)) for file in files or ()]
    script = Script(
        turns=turns * repeat,
        pause_seconds=pause,
        barge_in_seconds=() if barge_in is None else read_barge_in(barge_in),
        packet_ms=packet_ms,
        patience_seconds=PATIENCE_SECONDS * max(1, speed),  # the mesh hears no faster for a caller in a hurry
    )
    hold_call(
        CallSettings(
            addresses=read_addresses(address),
            access=context.obj,
            session=settings,
            script=None if mic else script,
            packet_ms=packet_ms,
            speed=speed,
            out=out,
            json=json,
        )
    )
