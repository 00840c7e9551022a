"""The page in Chromium over a gateway and a mesh of fake stages: what is said goes out, what is heard is what came."""

import asyncio
import base64
import json
import re
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import soundfile

from services.runtime.errors import Unavailable
from tests.contract.fake_mesh import Mesh, no_hook
from tests.contract.gateway_server import Gateway, running_gateway
from tests.contract.keyed_mesh import keyed_mesh

pytest.importorskip("playwright.async_api", reason="there is no playwright: make browser")

from playwright.async_api import expect

from tests.browser.conftest import TONE_HZ, Browsers
from tests.browser.talking_page import PHONE, TalkingPage, microphone, talking_page

pytestmark = pytest.mark.asyncio(loop_scope="session")

APPEND = "input_audio_buffer.append"

LONG_STEP_COUNT = 400
"""Of a reply of 16 s, two frames of 20 ms a step: it plays while something else happens."""


@dataclass
class Front:
    """A mesh and the gateway before it."""

    mesh: Mesh
    gateway: Gateway

    @property
    def url(self) -> str:
        return self.gateway.url


@pytest_asyncio.fixture(loop_scope="session")
async def front() -> AsyncIterator[Front]:
    mesh = Mesh()
    async with mesh.running(), running_gateway(mesh.address) as gateway:
        yield Front(mesh, gateway)


async def item_of(page: TalkingPage, index: int) -> str:
    return str(page.of_type("response.output_item.added")[index]["item"]["id"])


async def test_a_typed_turn_is_heard_as_it_was_sent(browsers: Browsers, front: Front) -> None:
    front.mesh.reasoner.step_count = 20
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.type("What is a mesh?")
        await page.turn(0, "done")
        item_id = await item_of(page, 0)
        played = await page.played(item_id)
        sent = page.spoken(item_id)
        assert len(sent) == 2 * 21 * 480
        assert np.array_equal(played.samples, sent)
        # The same by what left for the loudspeaker: silence aside, which came between where the machine was slow.
        rendered = await page.rendered(as_it_ended=True)
        left = rendered[rendered != 0]
        assert len(left) > 10_000
        assert np.array_equal(left, sent[sent != 0][-len(left) :])

        written = "".join(event["delta"] for event in page.of_type("response.output_audio_transcript.delta"))
        assert (await page.page.text_content("article .reply") or "").split() == written.split()
        assert await page.page.text_content("article .user") == "What is a mesh?"


async def test_each_turn_is_a_waterfall_of_its_stages(browsers: Browsers, front: Front) -> None:
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.type("What is a mesh?")
        await page.turn(0, "done")
        rows = await page.page.locator("article .waterfall li:not(.axis)").all_inner_texts()
        stages = [row.split("\n")[0] for row in rows]
        assert stages == ["speech", "encode", "prefill", "first step", "first frame", "codec", "first sample"]
        first = await page.page.inner_text("article .first")
        assert re.fullmatch(r"[\d.,]+ m?s", first)
        facts = await page.page.inner_text("article .facts")
        assert re.search(r"mesh [\d.]+ m?s", facts)
        assert re.search(r"RTF \d+\.\d\d", facts)
        assert "recovered" not in facts


async def test_the_waterfall_is_there_with_the_first_sound(browsers: Browsers, front: Front) -> None:
    going_on = asyncio.Event()

    async def hold(index: int) -> None:
        if index >= 4:
            await going_on.wait()

    front.mesh.codec.hook = hold
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.type("What is a mesh?")
        await expect(page.page.locator("article .waterfall i.work")).not_to_have_count(0)
        facts = page.page.locator("article .facts")
        await expect(facts).to_contain_text(re.compile(r"mesh [\d.]+ m?s"))
        await expect(facts).to_contain_text(re.compile(r"RTF \d+\.\d\d"))
        legend = page.page.locator("article .legend")
        await expect(legend).to_have_text(re.compile("work"))
        assert not page.of_type("response.done")
        going_on.set()
        await page.turn(0, "done")
        await expect(legend).to_have_text(re.compile("work"))


async def test_a_reply_that_went_on_elsewhere_says_so(browsers: Browsers, front: Front) -> None:
    async def lose(index: int) -> None:
        if index == 2:
            front.mesh.speech.hook = no_hook
            raise Unavailable("this replica goes", reason="DRAINING")

    front.mesh.speech.hook = lose
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.type("What is a mesh?")
        await page.turn(0, "done")
        await expect(page.page.locator("article .facts")).to_contain_text("recovered")


async def test_the_words_come_with_their_sound(browsers: Browsers, front: Front) -> None:
    front.mesh.reasoner.step_count = LONG_STEP_COUNT
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.type("Tell me a long story.")
        await page.is_heard(24_000)
        shown, played = await page.page.evaluate(
            """() => [
                document.querySelector("article .reply").textContent.trim().split(" ").length,
                recorded.reports.reduce((sum, {samples}) => sum + (samples?.length ?? 0), 0),
            ]"""
        )
        written = len(page.of_type("response.output_audio_transcript.delta"))
        # Two frames a word; what plays may be a report ahead of what is shown.
        assert played / 960 - 2 <= shown <= played / 960 + 1
        assert shown < written
        await page.page.press("body", "Escape")
        await page.turn(0, "interrupted")


@pytest.mark.parametrize("way", ["escape", "button", "typing"])
async def test_a_reply_stops_at_once_and_the_mesh_learns_what_was_heard(
    browsers: Browsers, front: Front, way: str
) -> None:
    front.mesh.reasoner.step_count = LONG_STEP_COUNT
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.type("Tell me a long story.")
        await page.is_heard(12_000)
        match way:
            case "escape":
                await page.page.press("body", "Escape")
            case "button":
                await page.page.click("#stop")
            case "typing":
                front.mesh.reasoner.step_count = 4
                await page.type("Enough!")
                await page.turn(1, "done")
        await page.turn(0, "interrupted")
        item_id = await item_of(page, 0)
        if way != "typing":
            await page.let_pass(1.4)  # more than is looked at
            assert not (await page.rendered()).any()
        played = await page.played(item_id)
        assert played.stopped_at == len(played.samples)
        sent = page.spoken(item_id)
        assert len(played.samples) < len(sent)
        assert np.array_equal(played.samples, sent[: len(played.samples)])
        (truncate,) = page.of_type("conversation.item.truncate")
        assert truncate["item_id"] == item_id
        assert truncate["audio_end_ms"] == len(played.samples) * 1000 // 24_000
        assert len(page.of_type("response.cancel")) == 1
        assert not page.of_type("error")


async def test_speech_is_heard_answered_and_stops_the_reply(browsers: Browsers, front: Front, said_twice: Path) -> None:
    front.mesh.reasoner.step_count = LONG_STEP_COUNT
    async with talking_page(await browsers.get(*microphone(said_twice)), front.url) as page:
        await page.is_connected()
        await page.page.click("#talk")
        await page.turn(0, "interrupted")
        front.mesh.reasoner.step_count = 4
        await page.turn(1, "done")
        first, second = await item_of(page, 0), await item_of(page, 1)
        cut = await page.played(first)
        assert cut.stopped_at == len(cut.samples) > 0
        assert np.array_equal(cut.samples, page.spoken(first)[: len(cut.samples)])
        (truncate,) = page.of_type("conversation.item.truncate")
        assert (truncate["item_id"], truncate["audio_end_ms"]) == (first, len(cut.samples) * 1000 // 24_000)
        assert np.array_equal((await page.played(second)).samples, page.spoken(second))
        assert len(page.of_type("input_audio_buffer.speech_started")) == 2
        packets = page.of_type("input_audio_buffer.append")
        assert {len(event["audio"]) for event in packets} == {480 * 2 * 4 // 3}
        assert not page.of_type("response.cancel")  # the mesh has stopped it by itself
        assert not page.of_type("error")


async def test_space_talks_as_long_as_it_is_held(browsers: Browsers, front: Front, said_once: Path) -> None:
    async with talking_page(await browsers.get(*microphone(said_once)), front.url) as page:
        await page.is_connected()
        await page.page.check("[value=push-to-talk]", force=True)
        await page.page.locator("#talk").focus()
        await page.page.keyboard.down("Space")
        await expect(page.page.locator("#doing")).to_have_text("Listening")
        await expect(page.page.locator("article .user path")).to_have_attribute("d", re.compile("M117 "))
        await page.page.keyboard.up("Space")
        await page.turn(0, "done")
        kinds = [event["type"] for event in page.sent if event["type"] != "input_audio_buffer.append"]
        assert kinds[-2:] == ["input_audio_buffer.commit", "response.create"]
        sent_count = len(page.of_type("input_audio_buffer.append"))
        seconds = float((await page.page.inner_text("article .user")).split()[0])
        assert seconds == pytest.approx(sent_count * 0.02, abs=0.06)
        item_id = await item_of(page, 0)
        assert np.array_equal((await page.played(item_id)).samples, page.spoken(item_id))
        assert not page.of_type("error")


async def test_without_a_microphone_it_says_so_and_goes_on(browsers: Browsers, front: Front) -> None:
    async with talking_page(await browsers.get(), front.url, permissions=("microphone",)) as page:
        await page.is_connected()
        await page.page.click("#talk")
        await expect(page.page.locator("#notice")).to_contain_text("There is no microphone")
        await expect(page.page.locator("#alarm")).to_contain_text("There is no microphone")
        await page.type("Then I write.")
        await page.turn(0, "done")


async def test_without_permission_it_says_so(browsers: Browsers, front: Front) -> None:
    async with talking_page(await browsers.get("--use-fake-device-for-media-stream"), front.url) as page:
        await page.is_connected()
        await page.page.click("#talk")
        await expect(page.page.locator("#notice")).to_contain_text("may not use the microphone")
        await expect(page.page.locator("#notice-act")).to_have_text("Try again")


@asynccontextmanager
async def gateway_process(orchestrator_address: str, port: int) -> AsyncIterator[tuple[int, Process]]:
    """A gateway in a process of its own, and its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.gateway", "--orchestrator-address", orchestrator_address),
        *("--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        listening = json.loads(await process.stdout.readline())
        yield int(listening["address"].rpartition(":")[2]), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_server_that_is_gone_is_seen_and_found_again(browsers: Browsers) -> None:
    mesh = Mesh()
    mesh.reasoner.step_count = LONG_STEP_COUNT
    async with mesh.running(), AsyncExitStack() as stack:
        port, process = await stack.enter_async_context(gateway_process(mesh.address, 0))
        browser = await browsers.get()
        page = await stack.enter_async_context(talking_page(browser, f"http://127.0.0.1:{port}"))
        await page.is_connected()
        await page.type("Tell me a long story.")
        await page.is_heard(6_000)
        process.kill()
        await page.turn(0, "failed")
        link, notice = page.page.locator("#link"), page.page.locator("#notice")
        await expect(link).to_have_attribute("data-state", "waiting")
        await expect(link).to_contain_text("Reconnecting")
        await expect(notice).to_be_visible()
        await process.wait()
        mesh.reasoner.step_count = 4
        await stack.enter_async_context(gateway_process(mesh.address, port))
        await page.is_connected()
        await expect(notice).to_be_hidden()
        await expect(page.page.locator(".divide")).to_be_visible()
        await page.type("Again!")
        await page.turn(1, "done")


async def test_a_key_is_asked_for_and_kept_in_the_tab(browsers: Browsers, tmp_path: Path) -> None:
    async with (
        keyed_mesh(tmp_path) as mesh,
        running_gateway(mesh.address) as gateway,
        talking_page(await browsers.get(), gateway.url) as page,
    ):
        key = page.page.locator("#key")
        await expect(key).to_be_focused()
        await key.fill("cm-wrong")
        await key.press("Enter")
        await expect(page.page.locator("#key-refused")).to_contain_text("refused")
        await key.fill(mesh.keys.secrets["alice"])
        await key.press("Enter")
        await page.is_connected()
        await expect(page.page.locator("#voice option")).not_to_have_count(0)
        assert await page.page.evaluate("localStorage.length + document.cookie.length") == 0
        await page.page.reload()
        await page.is_connected()
        await expect(page.page.locator("#key-dialog")).to_be_hidden()


async def test_a_voice_is_added_and_answers(browsers: Browsers, front: Front, tmp_path: Path) -> None:
    example = tmp_path / "example.wav"
    soundfile.write(example, np.random.default_rng(0).normal(0, 0.1, 24_000), 24_000)
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.page.click("#voice-button")
        await page.page.fill("#voice-name", "my-own")
        await page.page.set_input_files("#voice-file", tmp_path / "example.wav")
        await page.page.fill("#voice-transcript", "This is my own voice.")
        await page.page.click("#voice-dialog [type=submit]")
        await expect(page.page.locator("#voice")).to_have_value("my-own")
        await page.type("Who are you?")
        await page.turn(0, "done")
        assert front.mesh.speech.heard[-1].open.voice_prompt.transcript == "This is my own voice."
        # The same name again is refused, and it says why.
        await page.page.click("#voice-button")
        await page.page.fill("#voice-name", "my-own")
        await page.page.set_input_files("#voice-file", example)
        await page.page.fill("#voice-transcript", "Another one.")
        await page.page.click("#voice-dialog [type=submit]")
        await expect(page.page.locator("#voice-refused")).to_contain_text("not added")


async def test_it_fits_a_phone(browsers: Browsers, front: Front) -> None:
    async with talking_page(await browsers.get(), front.url, size=PHONE) as page:
        await page.is_connected()
        await page.type("What is a mesh, and " + "why" * 40 + "?")
        await page.turn(0, "done")
        assert await page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_muted_it_sends_silence_to_the_end_of_the_turn_and_then_nothing(
    browsers: Browsers, front: Front, said_once: Path
) -> None:
    async with talking_page(await browsers.get(*microphone(said_once)), front.url) as page:
        await page.is_connected()
        talk = page.page.locator("#talk")
        await page.page.press("body", "m")
        await expect(talk).to_have_attribute("aria-pressed", "true")
        await page.turn(0, "saying")
        await page.page.press("body", "m")
        await expect(talk).to_have_attribute("aria-pressed", "false")
        await page.turn(0, "done")
        packets = [np.frombuffer(base64.b64decode(event["audio"]), "<i2") for event in page.of_type(APPEND)]
        assert not np.concatenate(packets[-75:]).any()
        assert np.concatenate(packets[:-75]).any()


async def test_a_full_mesh_says_so(browsers: Browsers) -> None:
    mesh = Mesh()
    async with (
        mesh.running(session_limit=1),
        running_gateway(mesh.address) as gateway,
        talking_page(await browsers.get(), gateway.url) as page,
    ):
        await page.is_connected()
        async with mesh.converse():
            await page.type("Is anybody there?")
            await page.turn(0, "failed")
            assert await page.page.inner_text("article .note")
        await mesh.until_quiet()
        await page.type("And now?")
        await page.turn(1, "done")


OTHER_RATE = """
const native = AudioContext.prototype.createMediaStreamSource;
AudioContext.prototype.createMediaStreamSource = function (stream) {
    if (this.sampleRate !== 48000) throw new DOMException("another rate", "NotSupportedError");
    return native.call(this, stream);
};
window.AudioContext = class extends AudioContext {
    constructor(options) { super(options ?? { sampleRate: 48000 }); }
};
"""
"""As in a browser that takes a microphone at its own rate only."""


@pytest.mark.parametrize("script", ["", OTHER_RATE], ids=["at 24 kHz", "at another rate"])
async def test_what_is_said_goes_out_at_its_pitch(
    browsers: Browsers, front: Front, said_tone: Path, script: str
) -> None:
    async with talking_page(await browsers.get(*microphone(said_tone)), front.url, script=script) as page:
        await page.is_connected()
        await page.page.check("[value=push-to-talk]", force=True)
        await page.page.locator("#talk").focus()
        await page.page.keyboard.down("Space")
        await expect(page.page.locator("article .user path")).to_have_attribute("d", re.compile("M157 "))
        await page.page.keyboard.up("Space")
        packets = [np.frombuffer(base64.b64decode(event["audio"]), "<i2") for event in page.of_type(APPEND)]
        loudest = max(np.lib.stride_tricks.sliding_window_view(packets, 8, axis=0), key=lambda window: window.std())
        spectrum = np.abs(np.fft.rfft(np.concatenate(loudest.T) * np.hanning(8 * 480)))
        assert np.argmax(spectrum) * 24_000 / (8 * 480) == pytest.approx(TONE_HZ, abs=10)


async def test_whatever_the_packets_each_sample_is_played_once(browsers: Browsers, front: Front) -> None:
    """Packets of any length at any pace, under-runs among them, and a stop at any time."""
    async with talking_page(await browsers.get(), front.url) as page:
        await page.is_connected()
        await page.page.click("#talk")  # sound is for who has clicked
        runs = await page.page.evaluate(
            """async () => {
                const { Speaker } = await import("/page/speaker.js");
                const run = async (isStopped) => {
                    const speaker = new Speaker();
                    const pushed = [], played = [];
                    const drained = new Promise((resolve) => (speaker.ondrained = resolve));
                    speaker.onplayed = ({ samples }) => played.push(...samples);
                    await speaker.open();
                    for (let packet = 0; packet < 25; packet += 1) {
                        const length = Math.random() ** 3 * 3000 + 1;
                        const samples = Int16Array.from({ length }, () => Math.random() * 65535);
                        pushed.push(...samples);
                        speaker.push("item", samples);
                        await new Promise((resolve) => setTimeout(resolve, Math.random() ** 2 * 60));
                    }
                    if (!isStopped) {
                        speaker.end("item");
                        await drained;
                        return { pushed, played, stopped: null };
                    }
                    const stopped = await speaker.stop();
                    await new Promise((resolve) => setTimeout(resolve, 100));
                    return { pushed, played, stopped };
                };
                return Promise.all([run(false), run(false), run(false), run(true), run(true), run(true)]);
            }"""
        )
        for run in runs:
            assert run["played"] == run["pushed"][: len(run["played"])]
            if run["stopped"] is None:
                assert len(run["played"]) == len(run["pushed"])
            else:
                assert run["stopped"] == [{"item": "item", "played": len(run["played"])}]
