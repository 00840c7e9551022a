"""What each key has used of what it may."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.clock import Clock
from services.orchestrator.user_turn import SAMPLE_BYTES
from services.runtime.api_keys import Caller, Quota
from services.runtime.errors import ResourceExhausted

# When a session of the key's ends nobody knows.
SESSION_RETRY_SECONDS = 5.0
LEAST_RETRY_SECONDS = 1.0
WINDOWS: Mapping[str, float] = MappingProxyType({"minute": 60.0, "hour": 3600.0, "day": 86_400.0})


class Account:
    """What one key has used on this orchestrator.

    For each time that has a limit, what was used drains away evenly, the whole limit in that time. Work begins while
    the limit is not reached, and what has begun is finished: the limit is gone beyond by that much, and paid back
    before anything begins again.
    """

    def __init__(self, clock: Clock, default_session_limit: int | None) -> None:
        self.session_count = 0
        self._call_count = 0
        self._clock = clock
        self._default_session_limit = default_session_limit
        self._quota = Quota()
        self._used = dict.fromkeys(WINDOWS, 0.0)
        self._drained_at = clock.now()

    def follow(self, quota: Quota) -> None:
        """The key's quota is this from now on."""
        self._drain()
        self._quota = quota

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts one call for a session within the block; raises ResourceExhausted for one too many.

        There may be twice as many as sessions: a session that goes on has two calls until its older one has ended.
        """
        self._expect_room(self._call_count, 2)
        self._call_count += 1
        try:
            yield
        finally:
            self._call_count -= 1

    @contextmanager
    def session(self, *, goes_on: bool = False) -> Iterator[None]:
        """Counts one session within the block; raises ResourceExhausted for one too many, or with no audio left.

        One that goes on may have none left: what was said before is still answered.
        """
        self._expect_room(self.session_count)
        if not goes_on:
            self.check()
        self.session_count += 1
        try:
            yield
        finally:
            self.session_count -= 1

    def _expect_room(self, count: int, times: int = 1) -> None:
        limit = self._default_session_limit if self._quota.sessions is None else self._quota.sessions
        if limit is not None and count >= times * limit:
            raise ResourceExhausted(
                f"the key may have {limit} sessions at a time",
                reason="KEY_SESSIONS_IN_USE",
                retry_seconds=SESSION_RETRY_SECONDS,
            )

    def check(self) -> None:
        """Raises ResourceExhausted, with when to try again, unless something may begin now."""
        self._drain()
        over = [
            ((self._used[window] - limit) * WINDOWS[window] / limit, window, limit)
            for window, limit in self._limits()
            if self._used[window] >= limit
        ]
        if over:
            wait_seconds, window, limit = max(over)
            raise ResourceExhausted(
                f"the key may use {limit:g} s of audio a {window}, and has",
                reason="KEY_AUDIO_USED",
                retry_seconds=max(LEAST_RETRY_SECONDS, wait_seconds),
            )

    def use(self, audio_seconds: float) -> None:
        """So much sound was heard or made."""
        self._drain()
        for window, _ in self._limits():
            self._used[window] += audio_seconds

    def _limits(self) -> list[tuple[str, float]]:
        limits = {window: getattr(self._quota, f"audio_seconds_per_{window}") for window in WINDOWS}
        return [(window, limit) for window, limit in limits.items() if limit is not None]

    def _drain(self) -> None:
        now = self._clock.now()
        for window, limit in self._limits():
            drained = (now - self._drained_at) * limit / WINDOWS[window]
            self._used[window] = max(0.0, self._used[window] - drained)
        self._drained_at = now


class Accounts:
    """The accounts of the keys that called since the process began; there are no more than there are keys."""

    def __init__(self, clock: Clock, *, default_session_limit: int) -> None:
        self._clock = clock
        self._default_session_limit = default_session_limit
        self._accounts: dict[str, Account] = {}

    def of(self, caller: Caller) -> Account:
        """The caller's account; without keys there are no limits, and each call has one of its own."""
        if caller.key_id is None:
            return Account(self._clock, None)
        account = self._accounts.get(caller.key_id)
        if account is None:
            account = self._accounts[caller.key_id] = Account(self._clock, self._default_session_limit)
        account.follow(caller.quota)
        return account


class HeardAccount:
    """What a session hears, charged to its key.

    With nothing left it takes no more: what the user had said to its end is answered, and then the session ends.
    """

    def __init__(self, account: Account, input_format: types_pb2.AudioFormat) -> None:
        self._account = account
        self._input_format = input_format
        self._refusal: ResourceExhausted | None = None

    def take(self, kind: str, payload: Any) -> bool:
        """Charges a message of the client; returns whether it is to be heard."""
        if kind in ("audio", "text"):
            try:
                self._account.check()
            except ResourceExhausted as refusal:
                self._refusal = refusal
                return False
        match kind:
            case "audio":
                self._account.use(sound_seconds(self._input_format, len(payload.data)))
            case "end_turn" | "update":
                self._account.use(_example_seconds(payload.reply))
        return True

    def refuse(self) -> None:
        """Raises why nothing more was heard, if that was so."""
        if self._refusal is not None:
            self._account.check()  # says when to try again after the replies that were still made
            raise self._refusal


def opening_seconds(opening: orchestrator_pb2.ConverseOpen) -> float:
    """The sound that a session opens with: in its history, and of a voice of its own."""
    sounds = (part.audio for message in opening.history for part in message.parts)
    history_seconds = sum(sound_seconds(sound.format, len(sound.data)) for sound in sounds)
    return history_seconds + _example_seconds(opening)


def _example_seconds(fields: orchestrator_pb2.ConverseOpen | orchestrator_pb2.ReplySettings) -> float:
    audio = fields.voice_example.audio
    return sound_seconds(audio.format, len(audio.data))


def sound_seconds(audio_format: types_pb2.AudioFormat, size_bytes: int) -> float:
    """Length of mono sound, in seconds; 0 where the format is no good, which is refused elsewhere."""
    rate_hz = audio_format.sample_rate_hz
    return size_bytes / SAMPLE_BYTES.get(audio_format.encoding, 1) / rate_hz if rate_hz else 0.0
