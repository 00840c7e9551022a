"""The sets that the miniature is asked: enough of everything, and what is shipped is what is said here."""

from importlib import resources
from pathlib import Path

import numpy as np
import soundfile

from client.evaluate.evaluation_set import opened_set, read_set
from mini.domain import answers, follow_ups, questions, single_exchanges
from mini.question_set import GROUPS, full, small, write
from mini.recordings import write as write_recordings
from mini.speakers import VOICES

LIMIT_BYTES = 1_500_000


def test_the_small_set_has_some_of_everything():
    conversations = small()
    assert {exchange.kind for it in conversations for exchange in it.exchanges} == {
        exchange.kind for exchange in single_exchanges()
    }
    assert {(it.group, it.voice) for it in conversations} == {(group, voice) for group in GROUPS for voice in VOICES}
    assert {it.voice for it in conversations if len(it.exchanges) == 2} == set(VOICES)
    assert sum(len(it.exchanges) == 2 for it in conversations) >= 6


def test_the_full_set_has_everything():
    conversations = full()
    for group in GROUPS:
        of_group = [it.exchanges for it in conversations if it.group == group]
        assert [it[0] for it in of_group if len(it) == 1] == single_exchanges()
        following = [it for it in of_group if len(it) == 2]
        assert {later.question for _, later in following} == {exchange.question for exchange in follow_ups()}
        assert all(later.before == first for first, later in following)
        assert len(set(following)) == len(following)


def test_what_is_shipped_is_the_small_set():
    folder = Path(str(resources.files("mini") / "questions"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < LIMIT_BYTES
    found = read_set(folder)
    assert list(found.sentences) == answers()
    assert [
        (it.voice, [(question.asked, question.answer) for question in it.questions]) for it in found.conversations
    ] == [(it.voice, [(exchange.question, exchange.answer) for exchange in it.exchanges]) for it in small()]
    named = {question.content for it in found.conversations for question in it.questions}
    assert named == set(folder.glob("*.flac"))
    assert {soundfile.info(path).samplerate for path in folder.glob("*.flac")} == {16_000}


def test_a_set_is_written_that_can_be_read(tmp_path):
    tone = np.sin(np.arange(4_000) / 9).astype(np.float32) / 2
    for name in GROUPS.values():
        write_recordings(tmp_path / name, [(question, "somebody", tone) for question in questions()])
    write_recordings(tmp_path / "answers", [(answer, "ash", np.tile(tone, 12)) for answer in answers()])
    size = write(tmp_path, tmp_path / "set", "small", small())
    assert size == sum(path.stat().st_size for path in (tmp_path / "set").iterdir())
    with opened_set([tmp_path / "set"]) as found:
        assert (len(found.conversations), set(found.groups)) == (
            len(small()),
            {"anew", "anew follow-ups", "strangers", "strangers follow-ups"},
        )
        question = found.conversations[0].questions[0]
        assert question.reference_seconds == 2
        assert len(question.turn().content) == 4_000 + round(0.55 * 16_000)
