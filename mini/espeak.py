"""espeak-ng as a library: text to sound, and when each word begins."""

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_SYNCHRONOUS, _NO_EXIT = 2, 0x8000
_CHARACTER_POSITION = 1
_UTF8, _SSML = 1, 0x10
_RATE, _PITCH, _RANGE = 1, 3, 4
_WORD = 1


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng: its name with variant, words per minute, pitch and pitch range of 0 ..= 99."""

    voice: str
    speed: int = 165
    pitch: int = 50
    range: int = 50


@dataclass(frozen=True)
class Spoken:
    """Sound [n] float32 at `rate_hz`, and the second at which each word begins."""

    samples: Samples
    rate_hz: int
    word_seconds: tuple[float, ...]

    def at(self, rate_hz: int) -> Samples:
        """The sound at another rate."""
        resampled: Samples = soxr.resample(self.samples, self.rate_hz, rate_hz)
        return resampled


class Espeak:
    """The library, which has one state for the whole process: make one of these."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate_hz = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _NO_EXIT))
        if self.rate_hz <= 0:
            raise RuntimeError("espeak-ng found no data; expected the package espeak-ng to be installed")
        self._heard: list[NDArray[np.int16]] = []
        self._words: list[float] = []
        self._callback = _Callback(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, speaker: Speaker, rates: tuple[float, ...] | None = None) -> Spoken:
        """Speaks words separated by blanks; `rates` makes each word so many times as fast."""
        words = text.split()
        if rates is None:
            marked = " ".join(words)
        else:
            spoken = (f'<prosody rate="{round(100 * r)}%">{w}</prosody>' for w, r in zip(words, rates, strict=True))
            marked = f"<speak>{' '.join(spoken)}</speak>"
        library = self._library
        if library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {speaker.voice!r}")
        for parameter, value in ((_RATE, speaker.speed), (_PITCH, speaker.pitch), (_RANGE, speaker.range)):
            library.espeak_SetParameter(parameter, value, 0)
        self._heard.clear()
        self._words.clear()
        encoded = marked.encode()
        flags = _UTF8 | (0 if rates is None else _SSML)
        library.espeak_Synth(encoded, len(encoded) + 1, 0, _CHARACTER_POSITION, 0, flags, None, None)
        library.espeak_Synchronize()
        samples = np.concatenate(self._heard).astype(np.float32) / np.float32(32768)
        return Spoken(samples, self.rate_hz, tuple(self._words))

    def _take(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if count > 0:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type:
            if events[index].type == _WORD:
                self._words.append(events[index].audio_position / 1000)
            index += 1
        return 0


@cache
def espeak() -> Espeak:
    """The library of this process."""
    return Espeak()
