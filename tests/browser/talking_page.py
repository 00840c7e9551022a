"""The page in a real browser, with all that goes in and out of it."""

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.async_api import Browser, ConsoleMessage, Page, ViewportSize, WebSocket, expect

RECORDER = Path(__file__).with_name("recorder.js")
DESKTOP, PHONE = ViewportSize(width=1280, height=860), ViewportSize(width=390, height=844)
PATIENCE_MS = 40_000  # the machine may be busy

Pcm = NDArray[np.int16]
Event = dict[str, Any]


@dataclass(frozen=True)
class Played:
    """What was heard of an item: its samples, and where the playback was stopped, if it was."""

    samples: Pcm
    stopped_at: int | None


class TalkingPage:
    """The page, and what its sockets carried: `sent` and `received` events, in order, over all its connections."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.sent: list[Event] = []
        self.received: list[Event] = []
        self.complaints: list[str] = []
        page.on("websocket", self._watch)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._listen)

    def _watch(self, socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: self.sent.append(json.loads(frame)))
        socket.on("framereceived", lambda frame: self.received.append(json.loads(frame)))

    def _listen(self, message: ConsoleMessage) -> None:
        # A server that is gone is a complaint of the browser's, and what some tests are about.
        if message.type in ("error", "warning") and not re.search(r"ERR_|status of|WebSocket connection", message.text):
            self.complaints.append(message.text)

    def of_type(self, kind: str) -> list[Event]:
        """What was sent or received of one type."""
        return [event for event in (*self.sent, *self.received) if event["type"] == kind]

    async def is_connected(self) -> None:
        """Waits until it is."""
        await expect(self.page.locator("#link")).to_have_attribute("data-state", "open")

    async def type(self, text: str) -> None:
        """Types a turn."""
        await self.page.fill("#text", text)
        await self.page.press("#text", "Enter")

    async def turn(self, index: int, phase: str) -> None:
        """Waits until a turn is in this phase; it looks with each picture that is drawn, so that none is missed."""
        await self.page.wait_for_function(
            "([index, phase]) => document.querySelectorAll('article')[index]?.dataset.phase === phase",
            arg=[index, phase],
        )

    async def is_heard(self, count: int) -> None:
        """Waits until so many samples in all have been played."""
        await self.page.wait_for_function(
            "count => recorded.reports.reduce((sum, {samples}) => sum + (samples?.length ?? 0), 0) >= count", arg=count
        )

    def spoken(self, item_id: str) -> Pcm:
        """The sound of an item that the server sent."""
        deltas = [event for event in self.of_type("response.output_audio.delta") if event["item_id"] == item_id]
        return np.frombuffer(b"".join(base64.b64decode(event["delta"]) for event in deltas), "<i2")

    async def played(self, item_id: str) -> Played:
        """What was heard of an item; sees that nothing of it was heard after the stop."""
        samples: list[int] = []
        stopped_at = None
        for report in await self.page.evaluate("recorded.reports"):
            if report["kind"] == "stopped":
                counts = {each["item"]: each["played"] for each in report["items"]}
                stopped_at = counts.get(item_id, stopped_at)
            elif report["kind"] == "played" and report["item"] == item_id:
                assert stopped_at is None, "it was stopped, and still played"
                samples += report["samples"]
        return Played(np.array(samples, np.int16), stopped_at)

    async def rendered(self, *, as_it_ended: bool = False) -> Pcm:
        """The last 32,768 samples that left for the loudspeaker, silence included; `as_it_ended`: when a reply had."""
        at_end = "recorded.reports.find(({kind}) => kind === 'drained').rendered"
        floats = await self.page.evaluate(at_end if as_it_ended else "recorded.rendered()")
        return np.rint(np.array(floats) * 32768).astype(np.int16)

    async def let_pass(self, seconds: float) -> None:
        """Waits until so much more has left for the loudspeaker."""
        await self.page.evaluate("window.passed = recorded.context.currentTime")
        await self.page.wait_for_function("seconds => recorded.context.currentTime > passed + seconds", arg=seconds)


@asynccontextmanager
async def talking_page(
    browser: Browser,
    url: str,
    *,
    size: ViewportSize = DESKTOP,
    dark: bool = False,
    permissions: tuple[str, ...] = (),
    script: str = "",
) -> AsyncIterator[TalkingPage]:
    """The page as somebody has it who was never there; leaving sees that it had nothing to complain of.

    `script` runs in it before its own.
    """
    async with await browser.new_context(
        viewport=size, color_scheme="dark" if dark else "light", permissions=list(permissions)
    ) as context:
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        await context.add_init_script(path=RECORDER)
        await context.add_init_script(script)
        page = TalkingPage(await context.new_page())
        await page.page.goto(url)
        yield page
        assert not page.complaints


def microphone(path: Path) -> tuple[str, ...]:
    """A browser's arguments for a microphone that a file is spoken into, once, from the moment it is opened."""
    return (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}%noloop",
    )
