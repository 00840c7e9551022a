"""What a process answers over plain HTTP, beside its metrics, to who asks how it is without TLS or a certificate."""

import asyncio
from collections.abc import Callable
from concurrent.futures import TimeoutError as TooLate
from http import HTTPStatus

# The kubelet waits for one second where it is not told otherwise.
ANSWER_SECONDS = 0.9


class Probe:
    """/health: the event loop turns; /ready: `is_serving` besides, as gRPC's health says it.

    To be made on the loop, and asked on another thread.
    """

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_serving = is_serving

    def __call__(self, path: str) -> HTTPStatus | None:
        """The status that a request is answered with; None for a path that is not a probe's."""
        if path not in ("/health", "/ready"):
            return None
        asked = asyncio.run_coroutine_threadsafe(self._ask(), self._loop)
        try:
            is_serving = asked.result(ANSWER_SECONDS)
        except TooLate:
            return HTTPStatus.SERVICE_UNAVAILABLE
        return HTTPStatus.OK if is_serving or path == "/health" else HTTPStatus.SERVICE_UNAVAILABLE

    async def _ask(self) -> bool:
        return self._is_serving()
