"""Comparing a mesh with golden cases: stages that are right, and stages that are wrong in one place."""

import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile
from chroma_mesh.codec.v1 import codec_pb2_grpc
from chroma_mesh.reasoner.v1 import reasoner_pb2_grpc
from chroma_mesh.speech.v1 import speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from google.rpc import code_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.errors import InputError
from client.golden_case import open_golden_folder, read_case
from client.message import Role
from client.parity import (
    CHECKS,
    CaseRun,
    Outcomes,
    connected_stages,
    first_audio_difference,
    first_hidden_difference,
    first_integer_difference,
    run_cases,
)
from client.stage_calls import read_tensor

NUMBERS = np.random.default_rng(0)
SOUND = NUMBERS.uniform(-0.5, 0.5, 16000).astype(np.float32)
MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": [{"type": "audio", "audio": "x"}]},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}, {"type": "audio", "audio": "x"}]},
]
FRAMES = NUMBERS.integers(0, 2048, (3, 8))
FRAMES[1, 7] = 0
PLAIN_ARRAY = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<i8', 'fortran_order': False, 'shape': (), }            \n" + bytes(
    8
)
# The fake orchestrator's sound, so that the conversation is equal too.
AUDIO = np.repeat(np.float32([0.01, 0.02, 0.03]), 1920)
EXPECTED = {
    "reasoner_input_ids": np.arange(9),
    "voice_text_ids": np.arange(4),
    "voice_codes": NUMBERS.integers(0, 2048, (5, 8)),
    "reasoner_tokens": np.array([11, 12]),
    "reasoner_hidden": NUMBERS.normal(size=(2, 6)).astype(np.float32),
    "backbone_hidden": np.zeros((3, 6), np.float32),
    "frames": FRAMES,
    "spoken_frames": FRAMES,
    "audio": AUDIO,
}


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A golden folder of one case."""
    write_case(tmp_path / "cases" / "one")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    return tmp_path


def write_case(folder: Path, spec: dict[str, Any] | None = None, **changes: Any) -> None:
    """Writes a case; `changes` are arrays that differ, or are left out when None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rate in (("user0.wav", 16000), ("user1.wav", 16000), ("voice.wav", 24000)):
        soundfile.write(folder / name, SOUND[: rate // 10], rate)
    base = {
        "messages": MESSAGES,
        "prompt_text": "I am a voice.",
        "max_new_frames": 3,
        "user_wavs": ["user0.wav", "user1.wav"],
        "voice_wav": "voice.wav",
    }
    (folder / "case.json").write_text(json.dumps({k: v for k, v in (base | (spec or {})).items() if v is not None}))
    np.savez(folder / "expected.npz", **{k: v for k, v in (EXPECTED | changes).items() if v is not None})


@pytest.fixture
async def stages(golden, fake_stages, serving) -> AsyncIterator[Any]:
    """Three fake stages that give what the case of `golden` expects."""
    fake = fake_stages(read_case(golden / "cases" / "one"))

    def add(server: grpc.aio.Server) -> None:
        reasoner_pb2_grpc.add_ReasonerServiceServicer_to_server(fake, server)
        speech_pb2_grpc.add_SpeechServiceServicer_to_server(fake, server)
        codec_pb2_grpc.add_CodecServiceServicer_to_server(fake, server)

    async with serving(add) as (_, address):
        fake.addresses = (address,) * 3
        yield fake


async def outcomes_of(folder: Path, stages: Any, orchestrator: Any) -> Outcomes:
    """Runs the case in a folder."""
    async with connected_stages(*stages.addresses) as calls:
        return await CaseRun(read_case(folder), calls, orchestrator.address).outcomes()


async def test_a_mesh_that_is_right_is_equal_everywhere(golden, stages, orchestrator):
    outcomes = await outcomes_of(golden / "cases" / "one", stages, orchestrator)
    assert list(outcomes) == list(CHECKS)
    assert {outcome.difference for outcome in outcomes.values()} == {None}
    assert all(outcome.is_equal for outcome in outcomes.values())


async def test_the_case_is_sent_as_it_is(golden, stages, orchestrator):
    await outcomes_of(golden / "cases" / "one", stages, orchestrator)
    case = stages.case
    reasoner = stages.requests["reasoner"]
    kinds = [request.WhichOneof("payload") for request in reasoner]
    assert kinds == ["open", "message", "message", "message", "part", "part", "end"]
    assert reasoner[0].open.max_step_count == len(EXPECTED["reasoner_tokens"]) + 2
    assert reasoner[0].open.return_prompt
    assert [message.message.role for message in reasoner[1:4]] == [
        types_pb2.ROLE_SYSTEM,
        types_pb2.ROLE_USER,
        types_pb2.ROLE_ASSISTANT,
    ]
    said = reasoner[2].message.parts[0].audio
    assert np.array_equal(np.frombuffer(said.data, "<i2") / np.float32(32768), case.messages[1].parts[0])
    assert [request.part.index for request in reasoner[4:6]] == [0, 1]
    assert reasoner[4].part.text == "And now?"
    assert reasoner[5].part.audio == case.messages[3].parts[1].tobytes()
    speech = stages.requests["speech"]
    assert [request.WhichOneof("payload") for request in speech] == ["open", "steps", "steps", "steps", "end"]
    opened = speech[0].open
    assert (opened.voice_prompt.transcript, opened.max_frame_count, opened.sampling.temperature) == (
        "I am a voice.",
        3,
        0,
    )
    assert len(opened.voice_prompt.frames) == 5
    assert [step.token_id for request in speech for step in request.steps.steps] == [11, 12, 7]
    assert len(stages.requests["codec"]) == 5
    (open_message,) = orchestrator.received("open")
    assert open_message.instructions == "Be kind."
    assert [message.role for message in open_message.history] == [types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT]
    assert open_message.sampling.temperature == 0
    assert open_message.voice_example.audio.data == case.voice.tobytes()
    assert orchestrator.heard == case.messages[3].parts[1].tobytes()


@pytest.mark.parametrize(
    ("name", "check", "said"),
    [
        ("reasoner_input_ids", "prompt ids", "prompt: position 1: expected 99, got 1"),
        ("voice_text_ids", "prompt ids", "transcript: position 1: expected 99, got 1"),
        ("voice_codes", "voice codes", "frame 1, codebook 1: expected 99"),
        ("reasoner_tokens", "tokens", "step 1: expected 99, got 12"),
        ("reasoner_hidden", "tokens", "hidden state of step 1, element 1: expected 99"),
        ("frames", "frames", "frame 1, codebook 1: expected 99"),
        ("audio", "audio", "sample 1: expected 99.000000, got 0.010000"),
    ],
)
async def test_the_first_difference_is_told(golden, stages, orchestrator, name, check, said):
    array = EXPECTED[name].copy()
    array[(1,) * array.ndim] = 99
    write_case(golden / "cases" / "one", **{name: array})
    outcomes = await outcomes_of(golden / "cases" / "one", stages, orchestrator)
    assert said in (outcomes[check].difference or "")
    others = {other for other in CHECKS if not outcomes[other].is_equal} - {check}
    assert others == ({"conversation"} if name == "audio" else set())


async def test_a_reasoner_that_ends_early_or_late_is_told(golden, stages, orchestrator):
    tokens, hidden = EXPECTED["reasoner_tokens"], EXPECTED["reasoner_hidden"]
    write_case(golden / "cases" / "one", backbone_hidden=np.zeros((9, 6)))  # it ended after 2 steps, by itself
    outcomes = await outcomes_of(golden / "cases" / "one", stages, orchestrator)
    assert outcomes["tokens"].difference == "step 2: expected 2 steps, got 3"
    longer = {"reasoner_tokens": np.append(tokens, [7, 8]), "reasoner_hidden": np.concatenate([hidden, hidden])}
    write_case(golden / "cases" / "one", **longer)
    outcomes = await outcomes_of(golden / "cases" / "one", stages, orchestrator)
    assert outcomes["tokens"].difference == "step 3: expected 4 steps, got 3"


async def test_an_error_of_a_stage_is_a_difference_and_what_needs_it_is_skipped(
    golden, stages, orchestrator, refusal, serving, monkeypatch
):
    async def refuse(requests: Any, context: Any) -> None:
        status = refusal(code_pb2.INVALID_ARGUMENT, "TOO_LONG", "the prompt has 99 positions, expected at most 9")
        await context.abort_with_status(rpc_status.to_status(status))

    monkeypatch.setattr(stages, "Generate", refuse)
    add = partial(reasoner_pb2_grpc.add_ReasonerServiceServicer_to_server, stages)
    async with serving(add) as (_, address):
        stages.addresses = (address, *stages.addresses[1:])
        outcomes = await outcomes_of(golden / "cases" / "one", stages, orchestrator)
    assert outcomes["tokens"].difference == "error: the prompt has 99 positions, expected at most 9"
    assert outcomes["frames"].skipped
    assert outcomes["prompt ids"].skipped
    assert outcomes["voice codes"].is_equal
    assert outcomes["conversation"].is_equal


async def test_cases_stop_at_the_first_difference_unless_told_to_go_on(golden, stages, orchestrator):
    write_case(golden / "cases" / "two", audio=AUDIO[:-1])
    write_case(golden / "cases" / "three")
    cases = [read_case(folder) for folder in open_golden_folder(golden).cases]
    assert [case.name for case in cases] == ["one", "three", "two"]
    for keep_going, names in ((False, ["two", "one"]), (True, ["two", "one", "three"])):
        async with connected_stages(*stages.addresses) as calls:
            ordered = [cases[2], cases[0], cases[1]] if keep_going else [cases[0], cases[2], cases[1]]
            ran = run_cases(ordered, calls, orchestrator.address, keep_going=keep_going)
            assert sorted(name for name, _ in [item async for item in ran]) == sorted(names)


def test_a_case_is_read_whole(golden):
    case = read_case(golden / "cases" / "one")
    assert [message.role for message in case.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]
    assert case.instructions == "Be kind."
    assert len(case.history) == 2
    assert case.turn[0] == "And now?"
    assert case.maximum_frame_count == 3
    assert not case.expected.text_ended
    write_case(golden / "cases" / "one", {"messages": MESSAGES[1:]})
    assert read_case(golden / "cases" / "one").instructions == ""


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        ({"voice_wav": None}, {}, "voice_wav is missing"),
        ({"voice_wav": "none.wav"}, {}, "none.wav: no such file"),
        ({"messages": MESSAGES[:3]}, {}, "user_wavs has more files|the last message must be the user's"),
        ({"messages": []}, {}, "more files"),
        ({"messages": [{"role": "robot", "content": ""}]}, {}, "robot"),
        ({"messages": [{"content": ""}]}, {}, "role is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "user_wavs": []}, {}, "type 'image'"),
        ({"messages": "hello"}, {}, "case.json"),
        ({"user_wavs": ["user0.wav"]}, {}, "user_wavs has fewer files"),
        ({"max_new_frames": "many"}, {}, "case.json"),
        ({}, {"frames": None}, "frames is missing"),
        ({}, {"frames": np.zeros(3)}, "frames has 1 dimensions, expected 2"),
    ],
)
def test_a_case_that_is_malformed_says_where(golden, spec, changes, said):
    write_case(golden / "cases" / "one", spec, **changes)
    with pytest.raises(InputError, match=said) as caught:
        read_case(golden / "cases" / "one")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("content", [b"", PLAIN_ARRAY, b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_arrays_that_cannot_be_read_are_told(golden, content):
    (golden / "cases" / "one" / "expected.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"expected\.npz"):
        read_case(golden / "cases" / "one")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), compressed=st.booleans())
def test_arrays_with_a_wrong_byte_anywhere_are_read_or_refused(golden, position, value, compressed):
    path = golden / "cases" / "one" / "expected.npz"
    (np.savez_compressed if compressed else np.savez)(path, **EXPECTED)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        read_case(path.parent)


def test_a_folder_that_is_not_golden_says_what_is_missing(golden):
    for path, said in (
        (golden / "none", "no such folder"),
        (golden / "cases", "checkpoint/config.json is missing"),
    ):
        with pytest.raises(InputError, match=said):
            open_golden_folder(path)
    (golden / "cases" / "one" / "expected.npz").unlink()
    with pytest.raises(InputError, match=r"one: expected\.npz is missing"):
        open_golden_folder(golden)
    (golden / "cases").rename(golden / "other")
    with pytest.raises(InputError, match="no case"):
        open_golden_folder(golden)


async def test_the_command_says_what_is_missing(tmp_path, cli):
    result = await cli("parity", str(tmp_path))
    assert result.status == 2
    assert result.err == f"chroma-mesh: {tmp_path}: checkpoint/config.json is missing\n"


INTEGERS = hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0), elements=st.integers(0, 3))
REALS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=1), elements=st.floats(-1, 1, width=32))


@given(INTEGERS, INTEGERS)
def test_integers_differ_exactly_when_they_are_not_equal(one, other):
    difference = first_integer_difference(one, other, ("frame", "codebook"))
    both_empty = len(one) == len(other) == 0
    assert (difference is None) == (both_empty or np.array_equal(one, other))


@given(REALS, REALS)
def test_sound_differs_exactly_when_a_sample_or_the_length_does(one, other):
    same = one.shape == other.shape and bool(np.all(np.abs(one - other) <= 1e-4))
    assert (first_audio_difference(one, other) is None) == same


@given(REALS.filter(lambda row: bool(np.abs(row).max() > 1e-3)), st.floats(-2e-3, 2e-3))
def test_hidden_states_may_differ_by_a_thousandth_of_the_largest_element(row, share):
    other = row.copy()
    other[0] += np.float32(share) * np.abs(row).max()
    error = np.abs(row - other).max() / np.abs(row).max()
    assert (first_hidden_difference(row[None], other[None]) is None) == (error <= 1e-3)


def test_what_is_not_a_number_is_a_difference():
    nan = np.float32([[np.nan, 1]])
    assert first_hidden_difference(np.ones((1, 2), np.float32), nan)
    assert first_audio_difference(np.ones(2, np.float32), nan[0])
    assert first_hidden_difference(np.ones((1, 2), np.float32), np.ones((1, 3), np.float32))


def test_bfloat16_hidden_states_are_widened():
    values = np.float32([1.5, -2.0, 0.0, 3.0e38])
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    tensor = types_pb2.Tensor(data_type=types_pb2.DATA_TYPE_BFLOAT16, shape=[2, 2], data=bits.tobytes())
    assert np.array_equal(read_tensor(tensor)[0], values[:2])
    assert read_tensor(tensor).shape == (2, 2)
