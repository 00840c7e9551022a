"""Laws of what a key may use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.quotas import WINDOWS, Account, Accounts, sound_seconds
from services.runtime.api_keys import Caller, Quota
from services.runtime.audio import types_pb2
from services.runtime.errors import ResourceExhausted

S16, MULAW = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_MULAW


class Clock:
    """The time as it is set."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def wait(self, event: object, seconds: float) -> None:
        raise NotImplementedError


def account(clock: Clock, **quota: float) -> Account:
    made = Account(clock, None)
    made.follow(Quota(**quota))  # type: ignore[arg-type]
    return made


def retry_seconds(tried: Account) -> float:
    """When to try again; 0 where something may begin now."""
    try:
        tried.check()
    except ResourceExhausted as refusal:
        return refusal.retry_seconds or 0.0
    return 0.0


# Steps of a key's life: time that passes, and sound that it would then use at once.
LIFE = st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 300)), max_size=40)
LIMITS = st.fixed_dictionaries({}, optional={f"audio_seconds_per_{window}": st.floats(0.5, 5000) for window in WINDOWS})


@given(life=LIFE, limits=LIMITS)
def test_in_no_time_more_is_used_than_the_limits_and_what_had_begun(
    life: list[tuple[float, float]], limits: dict[str, float]
) -> None:
    clock = Clock()
    tried, used = account(clock, **limits), 0.0
    for passed, sound in life:
        clock.time += passed
        if not retry_seconds(tried):
            tried.use(sound)
            used += sound
    most = max((sound for _, sound in life), default=0.0)
    for window, seconds in WINDOWS.items():
        if (limit := limits.get(f"audio_seconds_per_{window}")) is not None:
            assert used <= limit + clock.time * limit / seconds + most + 1e-6


@given(life=LIFE, limits=LIMITS)
def test_who_comes_back_when_told_is_let_in_and_who_comes_much_sooner_is_not(
    life: list[tuple[float, float]], limits: dict[str, float]
) -> None:
    clock = Clock()
    tried = account(clock, **limits)
    for passed, sound in life:
        clock.time += passed
        tried.use(sound)
        wait = retry_seconds(tried)
        if wait > 1.001:
            clock.time += wait * 0.99 - 0.01 if wait > 2 else 0.0
            assert retry_seconds(tried) > 0
            clock.time += wait * 0.01 + 0.011 if wait > 2 else wait + 0.001
        else:
            clock.time += wait + 0.001
        assert retry_seconds(tried) == 0


def test_sessions_are_given_back_however_they_end() -> None:
    tried = account(Clock(), sessions=1)
    for _ in range(3):
        with pytest.raises(KeyError), tried.session():
            raise KeyError
    with tried.session(), pytest.raises(ResourceExhausted), tried.session():
        pass
    assert tried.session_count == 0


def test_a_key_has_one_account_whose_limits_follow_its_entry() -> None:
    clock = Clock()
    accounts = Accounts(clock, default_session_limit=2)
    tight, wide = (Caller("a", Quota(audio_seconds_per_hour=limit)) for limit in (10, 20))
    first = accounts.of(tight)
    first.use(15)
    assert accounts.of(tight) is first
    assert retry_seconds(first) == pytest.approx(5 * 360)
    assert retry_seconds(accounts.of(wide)) == 0
    assert retry_seconds(accounts.of(Caller("b", Quota(audio_seconds_per_hour=1)))) == 0


def test_without_keys_nothing_is_counted() -> None:
    accounts = Accounts(Clock(), default_session_limit=1)
    with accounts.of(Caller()).session(), accounts.of(Caller()).session():
        accounts.of(Caller()).use(1e9)
        accounts.of(Caller()).check()


@pytest.mark.parametrize(("encoding", "rate_hz", "seconds"), [(S16, 16_000, 1), (MULAW, 8_000, 4), (S16, 0, 0)])
def test_length_of_sound(encoding: types_pb2.AudioEncoding, rate_hz: int, seconds: float) -> None:
    assert sound_seconds(types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate_hz), 32_000) == seconds
