"""A simulated caller with a mesh that lives in the same made-up time: what is reported is what the mesh did."""

import numpy as np
import pytest
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from google.rpc import code_pb2

import client
from client.call.caller import NotHeardError
from client.errors import MeshError
from client.events import FinishReason

VAD = client.ServerVad()
FRAME, TAIL_SAMPLES = 1920, 23


def steady(planned, frame_count, first=0.3):
    """A reply that comes in real time, a frame a packet."""
    return planned([(first + index * 0.08, 1) for index in range(frame_count)], [("Hel", 0), ("lo.", 3840)])


@pytest.mark.parametrize(("packet_ms", "rate"), [(20, 16000), (20, 8000), (1, 48000), (30, 24000)])
async def test_packets_leave_in_order_when_they_have_been_said(hold, packet_ms, rate):
    call = await hold([0.05], packet_ms=packet_ms, input_format=client.SoundFormat(client.Encoding.S16, rate))
    packets = call.mesh.received("audio")
    assert [packet.index for _, packet in packets] == list(range(len(packets)))
    sizes = [len(packet.data) // 2 for _, packet in packets]
    assert set(sizes[:-1]) <= {rate * packet_ms // 1000}
    assert [moment for moment, _ in packets] == pytest.approx(np.cumsum(sizes) / rate)
    assert b"".join(packet.data for _, packet in packets) == np.full(rate // 20, 512, np.int16).tobytes()
    ((ended_at, _),) = call.mesh.received("end_turn")
    assert ended_at == pytest.approx(0.05)
    assert call.caller.record.lateness_seconds == pytest.approx(0, abs=1e-9)


async def test_the_first_sound_counts_from_the_end_of_the_speech(hold, planned):
    call = await hold([0.05, 0.1], plan=lambda turn: steady(planned, 3, first=0.3 + turn / 10))
    first, second = call.caller.record.turns_from(0)
    assert (first.name, second.name) == ("0.wav", "1.wav")
    assert first.speech_ended_at == pytest.approx(0.05)
    assert first.first_audio_seconds == pytest.approx(0.3)
    assert second.first_audio_seconds == pytest.approx(0.4)
    for turn in (first, second):
        assert turn.under_run_seconds == 0
        assert (turn.received_sample_count, turn.played_sample_count, turn.stale_sample_count) == (
            3 * FRAME,
            3 * FRAME,
            0,
        )
        assert turn.ended.reason is FinishReason.STOP
        assert (turn.barge_in_seconds, turn.stop_seconds, turn.noticed_seconds) == (None, None, None)


@pytest.mark.parametrize("pause", [0.0, 1.0])
async def test_the_next_turn_begins_a_pause_after_the_reply_was_played(hold, planned, pause):
    call = await hold([0.06, 0.06], plan=lambda _: planned([(0.3, 10)]), pause_seconds=pause)
    played_until = 0.06 + 0.3 + 0.8
    begun = call.caller.record.turns[1].speech_began_at
    assert played_until + pause <= begun <= played_until + pause + 0.04 + 1e-9
    assert len(call.mesh.received("end")) == 1


async def test_silence_in_a_reply_is_found_where_it_was(hold, planned):
    call = await hold([0.06], plan=lambda _: planned([(0.3, 1), (0.5, 1), (0.52, 2), (0.8, 1)]))
    (turn,) = call.caller.record.turns_from(0)
    gaps = [(gap.audio_sample, pytest.approx(gap.seconds)) for gap in turn.gaps]
    assert gaps == [(FRAME, 0.12), (4 * FRAME, 0.06)]
    assert turn.under_run_seconds == pytest.approx(0.18)


async def test_a_reply_is_spoken_over_on_schedule(hold, planned):
    call = await hold(
        [0.06, 0.1, 0.06, 0.06],
        plan=lambda _: planned([(0.3, 1), (0.36, 24)]),
        barge_in_seconds=[0.5, None],
        pause_seconds=0.1,
    )
    turns = call.caller.record.turns_from(0)
    assert [turn.ended.reason.name for turn in turns] == ["STOP"] * 4  # the mesh has sent all of it long before
    assert [turn.is_cut for turn in turns] == [True, False, True, False]
    assert not call.mesh.received("cancel_reply")
    for turn in (turns[0], turns[2]):
        assert 0.5 <= turn.barge_in_seconds <= 0.52
    said = [(played.turn_index, played.sample_count) for _, played in call.mesh.received("reply_played")]
    assert said == [(turn.turn_index, turn.played_sample_count) for turn in (turns[0], turns[2])]
    for turn in (turns[0], turns[2]):
        assert turn.played_sample_count == pytest.approx(turn.barge_in_seconds * 24000, abs=1)
    assert turns[1].speech_began_at == pytest.approx(turns[0].barge_in_at)


async def test_a_reply_that_is_being_given_is_cancelled(hold, planned):
    call = await hold([0.06, 0.06], plan=lambda _: steady(planned, 30), barge_in_seconds=[0.5], stop_seconds=0.1)
    cut, whole = call.caller.record.turns_from(0)
    ((played_at, played), *_) = call.mesh.received("reply_played")
    ((cancelled_at, cancelled),) = call.mesh.received("cancel_reply")
    assert (cancelled.turn_index, cancelled.HasField("turn_index")) == (0, True)
    assert played_at == cancelled_at == pytest.approx(cut.barge_in_at)
    assert [kind for _, kind, _ in call.mesh.came].index("reply_played") < [
        kind for _, kind, _ in call.mesh.came
    ].index("cancel_reply")
    assert played.sample_count == cut.played_sample_count == pytest.approx(cut.barge_in_seconds * 24000, abs=1)
    assert cut.ended.reason is FinishReason.CANCELLED
    assert cut.stop_seconds == pytest.approx(0.1)
    assert cut.stale_sample_count == FRAME  # a packet that was sent before the mesh stopped
    assert cut.played_sample_count < cut.received_sample_count
    first_packet_of_next = next(moment for moment, _ in call.mesh.received("audio") if moment > cut.barge_in_at)
    assert first_packet_of_next == pytest.approx(cut.barge_in_at + 0.02)
    assert whole.ended.reason is FinishReason.STOP


async def test_text_is_told_when_it_is_spoken_and_not_when_it_is_cut(hold, planned):
    texts = [("a", 0), ("b", 2 * FRAME), ("c", 20 * FRAME)]
    call = await hold([0.06, 0.06], plan=lambda _: planned([(0.3, 25)], texts), barge_in_seconds=[0.5])
    first = [one for one in call.happenings if one.kind == "text" and one.turn.turn_index == 0]
    assert [one.text for one in first] == ["a", "b"]
    assert [one.seconds for one in first] == pytest.approx([0.36, 0.52], abs=0.021)
    second = [one for one in call.happenings if one.kind == "text" and one.turn.turn_index == 1]
    assert [one.text for one in second] == ["a", "b", "c"]
    pieces = call.caller.record.turns[0].texts
    assert [(piece.text, piece.audio_sample, pytest.approx(piece.received_at)) for piece in pieces] == [
        (text, sample, 0.36) for text, sample in texts
    ]


async def test_where_the_mesh_listens_sound_goes_out_all_the_time_and_no_turn_is_ended(hold, planned):
    call = await hold([0.31, 0.2], plan=lambda _: steady(planned, 5), turn_detection=VAD)
    assert not call.mesh.received("end_turn")
    assert not call.mesh.received("cancel_reply")
    packets = call.mesh.received("audio")
    assert {len(packet.data) for _, packet in packets} == {640}
    assert [moment for moment, _ in packets] == pytest.approx([0.02 * (index + 1) for index in range(len(packets))])
    first, second = call.caller.record.turns_from(0)
    assert (first.name, second.name) == ("0.wav", "1.wav")
    assert first.noticed_seconds == pytest.approx(0.02)
    assert first.speech_ended_at == pytest.approx(0.31)
    assert first.stopped_seconds == pytest.approx(0.51)  # the last 10 ms of the last packet were silent
    assert first.first_audio_seconds == pytest.approx(0.81)
    assert [kind for _, kind in call.told("noticed", "stopped", "sound", "over")] == [
        "noticed",
        "stopped",
        "sound",
        "over",
    ] * 2


async def test_where_the_mesh_listens_it_stops_the_reply_and_is_told_what_was_heard(hold, planned):
    call = await hold(
        [0.2, 0.2],
        plan=lambda _: steady(planned, 30),
        turn_detection=VAD,
        barge_in_seconds=[0.5],
        stop_seconds=0.1,
    )
    assert not call.mesh.received("cancel_reply")
    cut, whole = call.caller.record.turns_from(0)
    ((played_at, played),) = call.mesh.received("reply_played")
    assert played_at == pytest.approx(whole.noticed_at) == pytest.approx(cut.barge_in_at + 0.02)
    assert (played.turn_index, played.sample_count) == (0, cut.played_sample_count)
    assert cut.played_sample_count == pytest.approx((played_at - cut.first_audio_at) * 24000, abs=1)
    assert cut.ended.reason is FinishReason.CANCELLED
    assert cut.stop_seconds == pytest.approx(0.12)
    assert (whole.is_cut, whole.ended.reason) == (False, FinishReason.STOP)


async def test_who_goes_on_speaking_has_two_turns_of_one_file(hold, planned):
    call = await hold([[0.2, 0.7, 0.3]], plan=lambda turn: steady(planned, 5, first=0.1), turn_detection=VAD)
    first, second = call.caller.record.turns_from(0)
    assert (first.name, second.name) == ("0.wav", "0.wav")
    assert first.speech_ended_at == pytest.approx(0.7)  # as far as the mesh heard before it answered
    assert first.first_audio_seconds == pytest.approx(0.1)
    assert (first.is_cut, first.stop_seconds) == (True, pytest.approx(0.05))
    assert second.speech_began_at == pytest.approx(0.9)
    assert second.speech_ended_at == pytest.approx(1.2)
    assert second.ended.reason is FinishReason.STOP


async def test_without_barge_in_the_player_goes_on(hold, planned):
    call = await hold(
        [0.2, 0.2],
        plan=lambda _: planned([(0.3, 25)]),
        turn_detection=client.ServerVad(barge_in=False),
        barge_in_seconds=[0.5],
    )
    assert not call.mesh.received("reply_played")
    first, second = call.caller.record.turns_from(0)
    assert (first.is_cut, first.played_sample_count) == (False, 25 * FRAME)
    assert 0.5 <= first.barge_in_seconds <= 0.52
    assert not second.gaps


async def test_a_turn_that_the_mesh_does_not_hear_is_said(hold):
    with pytest.raises(NotHeardError, match=r"the mesh did not hear 0\.wav in the 5 s after it"):
        await hold([0.1], turn_detection=VAD, is_deaf=True, patience_seconds=5)


async def test_a_turn_that_the_mesh_does_not_hear_the_end_of_is_said(hold):
    with pytest.raises(NotHeardError, match=r"the mesh did not hear 0\.wav in the 5 s after it"):
        await hold([0.1], turn_detection=VAD, silence_seconds=60, patience_seconds=5)


async def test_what_comes_after_the_end_of_a_reply_is_counted_and_not_heard(hold, planned):
    late = orchestrator_pb2.ReplyAudio(turn_index=0, frame_index=2, frame_count=1, data=bytes(2 * FRAME))
    call = await hold([0.06], plan=lambda _: planned([(0.3, 2)]), late=late)
    (turn,) = call.caller.record.turns_from(0)
    assert (turn.late_sample_count, turn.received_sample_count, turn.played_sample_count) == (
        FRAME,
        2 * FRAME,
        2 * FRAME,
    )


async def test_samples_that_are_no_frame_of_their_own_are_heard_to_the_last(hold, planned):
    call = await hold([0.06], plan=lambda _: planned([(0.3, 1), (0.35, 0)]))
    (turn,) = call.caller.record.turns_from(0)
    assert (turn.received_sample_count, turn.played_sample_count) == (FRAME + TAIL_SAMPLES, FRAME + TAIL_SAMPLES)
    assert not turn.gaps


async def test_an_empty_reply_does_not_hold_up_the_call(hold, planned):
    call = await hold([0.06, 0.06], plan=lambda _: planned([], []), barge_in_seconds=[1.0])
    for turn in call.caller.record.turns_from(0):
        assert (turn.first_audio_seconds, turn.under_run_seconds, turn.played_sample_count) == (None, None, 0)
        assert turn.is_over


@pytest.mark.parametrize("kind", ["audio", "end_turn", "cancel_reply", "end"])
async def test_an_error_of_the_mesh_ends_the_call_wherever_it_comes(hold, planned, refusal, kind):
    refuse = (kind, refusal(code_pb2.RESOURCE_EXHAUSTED, "FULL", "no more today"))
    with pytest.raises(MeshError, match="no more today") as caught:
        await hold([0.1, 0.1], plan=lambda _: steady(planned, 20), barge_in_seconds=[0.2], refuse=refuse)
    assert caught.value.reason == "FULL"


async def test_a_recording_has_both_sides_in_time(hold, planned):
    call = await hold([0.1, 0.1], plan=lambda _: planned([(0.3, 1), (0.5, 1)], []), pause_seconds=0.4)
    recording = call.caller.recording
    stereo = recording.stereo()
    assert recording.sample_rate_hz == 24000
    right = np.zeros(len(stereo), np.float32)
    second_began = call.caller.record.turns[1].speech_began_at
    for turn, ended_at in enumerate((0.1, second_began + 0.1)):
        for seconds in (0.3, 0.5):
            start = round((ended_at + seconds) * 24000)
            right[start : start + FRAME] = (turn + 1) * 1000 / 32767
    assert np.abs(stereo[:, 1] - right).max() < 1e-6
    left = np.abs(stereo[:, 0])
    assert left[480 : 2400 - 480] == pytest.approx(1 / 64, abs=1e-3)
    second = round(second_began * 24000)
    assert left[second + 480 : second + 2400 - 480] == pytest.approx(2 / 64, abs=1e-3)
    assert left[2400 + 480 : second - 480].max() < 1e-3


async def test_the_same_call_is_the_same_twice(hold, planned):
    reports = []
    for _ in range(2):
        call = await hold([0.2, 0.2], plan=lambda _: steady(planned, 20), turn_detection=VAD, barge_in_seconds=[0.3])
        began_at = call.mesh.came[0][0]
        reports.append([(round(moment - began_at, 6), kind) for moment, kind, _ in call.mesh.came])
    assert reports[0] == reports[1]
