"""Clips that were heard before: told by their samples, the last ones asked for remembered."""

import pytest

from services.reasoner import known_clips
from services.reasoner.known_clips import KnownClips


def digest(clips: KnownClips, *pieces: bytes) -> bytes:
    made = clips.digest()
    for piece in pieces:
        made.update(piece)
    return made.digest()


def test_a_clip_is_told_by_its_samples_however_they_came() -> None:
    clips = KnownClips()
    clips.keep(digest(clips, b"hear", b"", b"d"), (1, 2))
    assert clips.find(digest(clips, b"heard")) == (1, 2)
    assert clips.find(digest(clips, b"hear")) is None
    assert clips.find(digest(KnownClips(), b"heard")) is None


def test_the_clip_that_was_asked_for_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_clips, "MOST_CLIPS", 3)
    clips = KnownClips()
    for name in (b"a", b"b", b"c"):
        clips.keep(name, (0,))
    assert clips.find(b"a") == (0,)
    clips.keep(b"c", (1,))
    clips.keep(b"d", (2,))
    assert [clips.find(name) for name in (b"a", b"b", b"c", b"d")] == [(0,), None, (1,), (2,)]
