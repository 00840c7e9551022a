"""The examples of a mesh's voices, which it does not hand out: from a folder such as it keeps them in."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import resources
from pathlib import Path

from client.audio_file import read_audio
from client.errors import InputError
from client.pcm import VOICE_RATE_HZ, Samples
from client.voice import Voice

LENGTH_TOLERANCE_SECONDS = 0.02


def voice_examples(voices: Sequence[Voice], folder: Path | None) -> Mapping[str, Samples]:
    """Mono samples at 24,000 Hz of the mesh's voices that the folder has, by name; None: of the shipped voices.

    The folder has NAME.wav and NAME.json with its transcript. A voice whose length or transcript the mesh tells
    otherwise is another one of that name, and left out. InputError when a folder was given and none is left.
    """
    shipped = resources.as_file(resources.files("mini") / "voices")
    with shipped if folder is None else nullcontext(folder) as place:
        read = {voice.name: _example(voice, place) for voice in voices}
    found = {name: samples for name, samples in read.items() if samples is not None}
    if folder is not None and not found:
        names = ", ".join(voice.name for voice in voices)
        raise InputError(f"--voices: {folder} has the example of none of the mesh's voices ({names})")
    return found


def _example(voice: Voice, folder: Path) -> Samples | None:
    sound, description = folder / f"{voice.name}.wav", folder / f"{voice.name}.json"
    if not (sound.is_file() and description.is_file()):
        return None
    try:
        transcript = json.loads(description.read_text(encoding="utf-8"))["transcript"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{description}: expected JSON with a transcript") from None
    samples = read_audio(sound, VOICE_RATE_HZ)
    is_same = abs(len(samples) / VOICE_RATE_HZ - voice.example_seconds) <= LENGTH_TOLERANCE_SECONDS
    return samples if is_same and transcript == voice.transcript else None
