"""What the page looks like, for eyes (build/browser/*.png) and for those who do without them (axe)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.fake_mesh import Mesh
from tests.contract.gateway_server import Gateway, running_gateway

pytest.importorskip("playwright.async_api", reason="there is no playwright: make browser")

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.browser.conftest import Browsers
from tests.browser.talking_page import DESKTOP, PHONE, TalkingPage, microphone, talking_page

pytestmark = pytest.mark.asyncio(loop_scope="session")

PICTURES = Path(__file__).parents[2] / "build" / "browser"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest_asyncio.fixture(loop_scope="session")
async def gateway() -> AsyncIterator[Gateway]:
    mesh = Mesh()
    mesh.reasoner.step_count = 30
    async with mesh.running(), running_gateway(mesh.address) as gateway:
        yield gateway


async def look(page: TalkingPage, name: str) -> None:
    """Takes pictures, and has the page checked."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for width, size in (("desktop", DESKTOP), ("phone", PHONE)):
        await page.page.set_viewport_size(size)
        for colours in ("light", "dark"):
            await page.page.emulate_media(color_scheme=colours)
            await page.page.screenshot(path=PICTURES / f"{name}-{width}-{colours}.png")
            assert await page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            found = await Axe().run(page.page, options={"runOnly": {"type": "tag", "values": TAGS}})
            assert len(found.response["passes"]) > 20
            assert not found.response["violations"], found.generate_report()


async def test_it_is_pleasant(browsers: Browsers, gateway: Gateway, said_once: Path) -> None:
    async with talking_page(await browsers.get(*microphone(said_once)), gateway.url) as page:
        await page.is_connected()
        await look(page, "empty")
        await page.type("What is a mesh, and why would anybody want one?")
        await page.turn(0, "done")
        await page.page.click("#talk")
        await page.turn(1, "done")
        await look(page, "talked")
        await page.page.click("#voice-button")
        await look(page, "voice")


async def test_the_colours_can_be_chosen_and_stay(browsers: Browsers, gateway: Gateway) -> None:
    async with talking_page(await browsers.get(), gateway.url) as page:
        paper = "getComputedStyle(document.documentElement).backgroundColor"
        light = await page.page.evaluate(paper)
        await page.page.click("#theme-button")
        dark = await page.page.evaluate(paper)
        assert dark != light
        await page.page.reload()
        assert await page.page.evaluate(paper) == dark
        await expect(page.page.locator("#theme-button")).to_have_attribute("aria-pressed", "true")


async def test_all_of_it_is_reached_by_the_keyboard(browsers: Browsers, gateway: Gateway) -> None:
    async with talking_page(await browsers.get(), gateway.url) as page:
        await page.is_connected()
        await expect(page.page.locator("#voice")).to_be_enabled()
        reached = []
        for _ in range(8):
            await page.page.keyboard.press("Tab")
            name, outline = await page.page.evaluate(
                """() => {
                    const {activeElement: focused} = document;
                    const seen = focused.type === "radio" ? focused.nextElementSibling : focused;
                    return [focused.id || focused.value || focused.textContent, getComputedStyle(seen).outlineStyle];
                }"""
            )
            reached.append(name)
            assert outline == "solid", name
        assert reached == ["key-button", "theme-button", "talk", "text", "Send", "hands-free", "voice", "voice-button"]
