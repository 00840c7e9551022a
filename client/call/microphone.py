"""A person as the caller: the machine's microphone and loudspeaker, with the optional package sounddevice."""

import asyncio
import threading
from collections import deque
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from client.call.happening import Watch, ignore
from client.call.listener import Listener, Speaking
from client.call.player import Player
from client.call.recording import Recording
from client.clock import Clock
from client.errors import ClientError, first_cause
from client.pcm import Samples
from client.session import Session

NAME = "microphone"
WAITING_PACKETS = 500
"""Packets that may wait to be sent, 10 s of those of 20 ms; then the oldest are dropped, for they come too late."""


class SoundCard:
    """The default microphone and loudspeaker of the machine, open within `with`, in a running event loop.

    ClientError when there is no sound device, or nothing to speak to it with.
    """

    def __init__(self, input_rate_hz: int, output_rate_hz: int, packet_samples: int) -> None:
        self._sounddevice = load_sounddevice()
        self._input_rate_hz = input_rate_hz
        self._output_rate_hz = output_rate_hz
        self._packet_samples = packet_samples
        self._loop = asyncio.get_running_loop()
        self._packets: deque[Samples] = deque(maxlen=WAITING_PACKETS)
        self._has_packets = asyncio.Event()
        self._unplayed: deque[Samples] = deque()
        self._unplayed_lock = threading.Lock()
        self._open = ExitStack()
        self.dropped_packet_count = 0

    def __enter__(self) -> Self:
        device = self._sounddevice
        with ExitStack() as opened:
            try:
                opened.enter_context(
                    device.InputStream(
                        samplerate=self._input_rate_hz,
                        blocksize=self._packet_samples,
                        channels=1,
                        dtype="float32",
                        callback=self._on_input,
                    )
                )
                opened.enter_context(
                    device.OutputStream(
                        samplerate=self._output_rate_hz, channels=1, dtype="float32", callback=self._on_output
                    )
                )
            except device.PortAudioError as error:
                raise ClientError(
                    f"the microphone or the loudspeaker cannot be opened ({error}): connect them, or try another --rate"
                ) from None
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    async def packet(self) -> Samples:
        """The next packet of the microphone."""
        while not self._packets:
            self._has_packets.clear()
            await self._has_packets.wait()
        return self._packets.popleft()

    def play(self, samples: Samples) -> None:
        """Plays mono samples after those before."""
        with self._unplayed_lock:
            self._unplayed.append(samples)

    def drop(self) -> None:
        """Plays nothing of what has not been played."""
        with self._unplayed_lock:
            self._unplayed.clear()

    def _on_input(self, samples: Samples, *_: Any) -> None:
        """Called in the device's thread with samples of shape [frames, 1] that are not ours to keep."""
        self._loop.call_soon_threadsafe(self._take, samples[:, 0].copy())

    def _take(self, packet: Samples) -> None:
        self.dropped_packet_count += len(self._packets) == WAITING_PACKETS
        self._packets.append(packet)
        self._has_packets.set()

    def _on_output(self, samples: Samples, frames: int, *_: Any) -> None:
        """Called in the device's thread with room of shape [frames, 1]: silence where nothing has come."""
        samples[:] = 0
        filled = 0
        with self._unplayed_lock:
            while self._unplayed and filled < frames:
                piece = self._unplayed.popleft()
                part = piece[: frames - filled]
                samples[filled : filled + len(part), 0] = part
                filled += len(part)
                if len(part) < len(piece):
                    self._unplayed.appendleft(piece[len(part) :])


def load_sounddevice() -> ModuleType:
    """The package that speaks to sound devices."""
    try:
        import sounddevice
    except ImportError:
        raise ClientError("--mic needs the package sounddevice: pip install 'chroma-mesh[mic]'") from None
    except OSError:
        raise ClientError(
            "--mic needs the PortAudio library: install it, on Debian and Ubuntu with 'apt install libportaudio2'"
        ) from None
    module: ModuleType = sounddevice
    return module


class MicrophoneCaller:
    """Holds one call between a person and the mesh, which must listen for turns itself; it goes on until cancelled."""

    def __init__(
        self, session: Session, card: SoundCard, clock: Clock, *, watch: Watch = ignore, keeps_sound: bool = False
    ) -> None:
        self._session = session
        self._card = card
        player = Player(session.sample_rate_hz, keeps_sound=keeps_sound)
        self._listener = Listener(session, clock, watch, player, Speaking(NAME), card)
        self.record = self._listener.record
        self.recording = Recording(session.settings.input_format.sample_rate_hz, player) if keeps_sound else None

    async def run(self) -> None:
        """Sends what is heard and plays what comes; MeshError when the mesh ends the session."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listener.listen())
                await self._speak()
        except BaseExceptionGroup as group:
            raise first_cause(group) from None

    async def _speak(self) -> None:
        position = 0
        while True:
            packet = await self._card.packet()
            if self.recording is not None:
                self.recording.say(position, packet)
            position += len(packet)
            self._listener.advance()
            self.record.dropped_packet_count = self._card.dropped_packet_count
            await self._session.send_audio(np.clip(packet, -1, 1))
