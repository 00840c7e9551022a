"""A person at a microphone that is made up, and what is said where there is none."""

import asyncio
import builtins
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import client
from client.call.command import call
from client.call.microphone import WAITING_PACKETS, MicrophoneCaller, SoundCard
from client.call.settings import CallFormat, CallSettings, session_settings
from client.errors import ClientError


class FakeStream:
    """One direction of a sound device that runs when the test says so."""

    def __init__(self, **options):
        self.options = options
        self.is_open = False

    def __enter__(self):
        self.is_open = True
        return self

    def __exit__(self, *_):
        self.is_open = False

    def run(self, samples):
        """Calls back as the device's thread does, with shape [frames, 1]."""
        self.options["callback"](samples, len(samples), None, None)
        return samples[:, 0]


@pytest.fixture
def device(monkeypatch):
    """The package sounddevice with a microphone and a loudspeaker."""
    fake = SimpleNamespace(PortAudioError=type("PortAudioError", (Exception,), {}), inputs=[], outputs=[])
    fake.is_opened = asyncio.Event()

    def opener(streams):
        def opened(**options):
            streams.append(FakeStream(**options))
            if fake.outputs:
                fake.is_opened.set()
            return streams[-1]

        return opened

    fake.InputStream, fake.OutputStream = opener(fake.inputs), opener(fake.outputs)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def spoken(level, count=320):
    """A packet as a device gives it."""
    return np.full((count, 1), level, np.float32)


def room(count):
    """Where a device wants its samples."""
    return np.full((count, 1), np.nan, np.float32)


async def test_packets_come_in_order_and_are_not_the_devices_own(device):
    with SoundCard(16000, 24000, 320) as card:
        (microphone,) = device.inputs
        assert microphone.is_open
        assert (microphone.options["samplerate"], microphone.options["blocksize"]) == (16000, 320)
        waiting = asyncio.create_task(card.packet())
        for level in (0.1, 0.2):
            samples = spoken(level)
            await asyncio.to_thread(microphone.run, samples)
            samples[:] = 9
        assert (await waiting).tolist() == spoken(0.1)[:, 0].tolist()
        assert (await card.packet()).tolist() == spoken(0.2)[:, 0].tolist()
    assert not microphone.is_open
    assert not device.outputs[0].is_open


async def test_packets_that_nobody_takes_are_dropped_oldest_first(device):
    with SoundCard(16000, 24000, 1) as card:
        for index in range(WAITING_PACKETS + 3):
            device.inputs[0].run(spoken(index, 1))
        await asyncio.sleep(0)
        assert card.dropped_packet_count == 3
        assert (await card.packet()).tolist() == [3]


async def test_the_loudspeaker_plays_what_came_and_then_silence(device):
    with SoundCard(16000, 24000, 320) as card:
        (loudspeaker,) = device.outputs
        assert loudspeaker.options["samplerate"] == 24000
        card.play(np.float32([1, 2, 3]))
        card.play(np.float32([4, 5, 6, 7]))
        assert loudspeaker.run(room(5)).tolist() == [1, 2, 3, 4, 5]
        assert loudspeaker.run(room(4)).tolist() == [6, 7, 0, 0]
        card.play(np.float32([8, 9]))
        card.drop()
        assert loudspeaker.run(room(2)).tolist() == [0, 0]


async def test_a_person_speaks_hears_and_hangs_up(device, time, served, timed_mesh):
    mesh = timed_mesh(time, silence_seconds=0.04)
    has_heard = asyncio.Event()
    callers = []

    def watch(happening):
        if happening.kind == "sound":
            has_heard.set()

    async def hold(address):
        async with (
            client.connect(address) as connected,
            connected.session(turn_detection=client.ServerVad()) as session,
        ):
            with SoundCard(16000, 24000, 320) as card:
                callers.append(MicrophoneCaller(session, card, time, watch=watch, keeps_sound=True))
                await callers[0].run()

    async with served(mesh) as address:
        calling = asyncio.create_task(hold(address))
        await device.is_opened.wait()
        for level in (0.5, 2.0, 0, 0):
            device.inputs[0].run(spoken(level))
        await has_heard.wait()
        assert device.outputs[0].run(room(3)).tolist() == pytest.approx([1000 / 32767] * 3)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
    packets = [np.frombuffer(packet.data, np.int16)[0] for _, packet in mesh.received("audio")]
    assert packets == [16384, 32767, 0, 0]
    (turn,) = callers[0].record.turns.values()
    assert (turn.name, turn.first_audio_at) == ("microphone", pytest.approx(0.3))
    left = callers[0].recording.stereo()[:, 0]
    assert left[100:380] == pytest.approx(0.5, abs=0.1)


@pytest.fixture
def settings(free_address):
    """A call by microphone."""
    session = session_settings(CallFormat.PCM16, None, is_heard_by_mesh=True, speed=1, voice=None, max_frame_count=None)
    return CallSettings(
        addresses=[free_address], session=session, script=None, packet_ms=20, speed=1, out=None, json=None
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("none"), r"--mic needs the package sounddevice: pip install 'chroma-mesh\[mic\]'"),
        (OSError("PortAudio library not found"), "--mic needs the PortAudio library: install it.*libportaudio2"),
    ],
)
def test_what_is_missing_is_said_before_anybody_is_called(monkeypatch, settings, error, said):
    load = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "sounddevice":
            raise error
        return load(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ClientError, match=said):
        call(settings)


@pytest.mark.parametrize("direction", ["InputStream", "OutputStream"])
async def test_a_device_that_cannot_be_opened_is_said(device, direction):
    def refuse(**_):
        raise device.PortAudioError("Error querying device -1")

    setattr(device, direction, refuse)
    with pytest.raises(ClientError, match=r"cannot be opened \(Error querying device -1\): connect them"):
        SoundCard(16000, 24000, 320).__enter__()
    assert not any(stream.is_open for stream in device.inputs)
