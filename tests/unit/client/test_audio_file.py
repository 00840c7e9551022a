"""Reading any sound file, refusing what is none, writing WAV."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.audio_file import check_writable, read_audio, read_audio_bytes, write_audio
from client.errors import InputError
from client.pcm import Encoding, Samples

ANY_FOLDER = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tone(rate: int, channels: int = 1, seconds: float = 1.0) -> Samples:
    """A quiet tone, [samples, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * 440 * time)[:, None], channels, axis=1).astype(np.float32)


def wav(data: bytes, *, rate: int = 16000, channels: int = 1, bits: int = 16, kind: int = 1, length: int = -1) -> bytes:
    """A WAV file that says of itself what it is told to."""
    frame = channels * bits // 8
    header = struct.pack("<IHHIIHH", 16, kind, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    announced = len(data) if length < 0 else length
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + header
        + b"data"
        + struct.pack("<I", announced)
        + data
    )


@pytest.mark.parametrize(("suffix", "exact"), [("wav", True), ("flac", True), ("ogg", False), ("mp3", False)])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format_rate_and_channel_count_becomes_mono_at_the_rate(tmp_path, suffix, exact, rate, channels):
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, tone(rate, channels), rate)
    samples = read_audio(path, 16000)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - 16000) <= 1
    middle = slice(4000, 12000)
    assert np.abs(samples[middle] - tone(16000)[middle, 0]).max() < (0.001 if exact else 0.1)


def test_sound_at_the_rate_is_not_touched_and_other_sound_is_resampled_once(tmp_path):
    path = tmp_path / "sound.wav"
    stereo = np.random.default_rng(0).integers(-(2**15), 2**15, (44100, 2)).astype(np.int16)
    soundfile.write(path, stereo, 44100)
    mono = (stereo / np.float32(32768)).mean(axis=1, dtype=np.float32)
    assert np.array_equal(read_audio(path, 44100), mono)
    assert np.array_equal(read_audio(path, 24000), soxr.resample(mono, 44100, 24000))


@pytest.mark.parametrize("suffix", ["wav", "ogg", "flac"])
@ANY_FOLDER
@given(share=st.floats(0, 0.999))
def test_a_file_that_is_cut_anywhere_is_never_read_as_a_shorter_one(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, tone(16000, seconds=0.5), 16000)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="cut"):
        read_audio(path, 16000)


@ANY_FOLDER
@given(head=st.sampled_from([b"", b"RIFF", b"OggS", b"fLaC", b"ID3", b"\xff\xfb", wav(b"")[:36]]), tail=st.binary())
def test_any_bytes_are_sound_or_refused(tmp_path, head, tail):
    path = tmp_path / "any.bin"
    path.write_bytes(head + tail)
    try:
        samples = read_audio(path, 16000)
    except InputError as error:
        said = str(error)
    else:
        said = f"{path}: {np.isfinite(samples).all()}"
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert not said.endswith(": False")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_file_in_memory_is_the_same_sound(tmp_path, suffix, rate):
    path = tmp_path / f"sound.{suffix}"
    # More than is read at once, so that it is resampled in blocks.
    soundfile.write(path, tone(rate, 2, seconds=10), rate)
    assert np.array_equal(read_audio_bytes(path.read_bytes(), 16000, name="it"), read_audio(path, 16000))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([b"", b"RIFF", b"OggS", b"fLaC", b"ID3", b"\xff\xfb", b"RF64", wav(b"")[:36], wav(bytes(99))]),
    tail=st.binary(),
)
def test_any_bytes_in_memory_are_sound_or_refused_without_a_trace(capfd, head, tail):
    try:
        samples = read_audio_bytes(head + tail, 16000, name="it")
    except InputError as error:
        said = str(error)
    else:
        said = f"it: {np.isfinite(samples).all()}"
    assert said.startswith("it: ")
    assert "\n" not in said
    assert not said.endswith(": False")
    assert "Traceback" not in capfd.readouterr().err  # the MP3 library has notes of its own


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"just text", "damaged, or not a WAV, FLAC, OGG or MP3 file"),
        (wav(b""), "there is no sound"),
        (wav(b"\0\0" * 1600, length=5000), "cut short: 1800 bytes"),
        (wav(b"\0\0" * 301_000, rate=1000), "301 s long; expected at most 300 s"),
        (wav(b"\0\0" * 1600, rate=500), "500 Hz is no sound"),
        (wav(b"\0\0" * 1600, rate=2**32 - 1), "damaged"),
        (wav(b"\0\0" * 1600, rate=0), "damaged"),
        (wav(b"\0\0" * 1600, channels=100), "100 channels"),
        (wav(b"\0\0" * 1600, channels=0), "damaged"),
        (wav(b"\0\0\xc0\x7f" * 1600, bits=32, kind=3), "not numbers"),
    ],
)
def test_hostile_files_are_refused_in_a_sentence(tmp_path, content, said):
    path = tmp_path / "hostile.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_audio(path, 16000)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_whose_writer_did_not_know_its_length_is_read(tmp_path, length):
    path = tmp_path / "piped.wav"
    path.write_bytes(wav(b"\0\1" * 1600, length=length))
    assert len(read_audio(path, 16000)) == 1600


def test_what_is_no_file_is_refused(tmp_path):
    for path, said in ((tmp_path / "none.wav", "no such file"), (tmp_path, "not a file"), (Path("/dev/zero"), "not a")):
        with pytest.raises(InputError, match=said):
            read_audio(path, 16000)
    raw = tmp_path / "samples.raw"
    raw.write_bytes(b"\0\0" * 100)
    with pytest.raises(InputError, match="not a WAV"):
        read_audio(raw, 16000)


def test_a_limit_of_ones_own(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(8000, seconds=31), 8000)
    with pytest.raises(InputError, match="31 s long; expected at most 30 s"):
        read_audio(path, 24000, maximum_seconds=30)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "out.wav"
    samples = np.float32([0, 0.5, -0.5, 1, -1, 2, -2])
    write_audio(path, samples, 24000)
    assert np.abs(read_audio(path, 24000) - np.clip(samples, -1, 1)).max() < 1e-4
    write_audio(path, samples[:0], 24000)
    assert soundfile.info(path).frames == 0


def test_names_that_cannot_be_written_are_refused_early(tmp_path):
    check_writable(tmp_path / "out.wav")
    (tmp_path / "folder.wav").mkdir()
    for path, said in (
        (tmp_path / "out.mp3", "ends in .wav"),
        (tmp_path / "none" / "out.wav", "no folder"),
        (tmp_path / "folder.wav", "is a folder"),
    ):
        with pytest.raises(InputError, match=said):
            check_writable(path)
    with pytest.raises(InputError, match="cannot be written"):
        write_audio(tmp_path / "none" / "out.wav", np.zeros(1, np.float32), 24000)


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1))
def test_16_bit_sound_reaches_the_mesh_as_the_file_holds_it(integers):
    samples = np.array(integers, np.int16)
    as_read = samples / np.float32(32768)
    assert Encoding.S16.encode(as_read) == Encoding.S16.encode(samples) == samples.astype("<i2").tobytes()
    assert np.array_equal(Encoding.F32.decode(Encoding.F32.encode(samples)), as_read)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1))
def test_16_bit_sound_of_the_mesh_is_what_it_wrote(values):
    samples = np.array(values, np.float32)
    wire = np.round(samples * np.float32(32767)).astype("<i2").tobytes()
    decoded = Encoding.S16.decode(wire)
    assert np.abs(decoded - samples).max() <= 0.5001 / 32767
    assert np.array_equal(np.round(decoded * np.float32(32767)).astype("<i2"), np.frombuffer(wire, "<i2"))
    assert np.abs(decoded).max() <= 1
