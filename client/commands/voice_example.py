"""An example of a voice from a file."""

from pathlib import Path

from client.audio_file import read_audio
from client.pcm import VOICE_RATE_HZ
from client.voice import VoiceExample

LONGEST_SECONDS = 30


def read_example(audio: Path, transcript: str) -> VoiceExample:
    """The example, in which `transcript` is said; InputError where the file does not do."""
    return VoiceExample(transcript, read_audio(audio, VOICE_RATE_HZ, maximum_seconds=LONGEST_SECONDS))
