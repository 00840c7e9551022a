"""The page's files over a real HTTP server: what they are, that they load nothing from elsewhere, that they ship."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from services.gateway.page.page import FILES
from tests.contract.gateway_server import running_gateway

NAMES = sorted(path.name for path in FILES.iterdir())
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture
async def browser() -> AsyncIterator[httpx2.AsyncClient]:
    async with running_gateway("127.0.0.1:1") as gateway, httpx2.AsyncClient(base_url=gateway.url) as browser:
        yield browser


async def test_every_file_has_its_type_and_is_asked_for_again_at_little_cost(browser: httpx2.AsyncClient) -> None:
    for path in ("/", *(f"/page/{name}" for name in NAMES)):
        answer = await browser.get(path)
        assert answer.status_code == 200, path
        kind = TYPES[Path(path).suffix or ".html"]
        assert answer.headers["content-type"].partition(";")[0].replace("application/j", "text/j") == kind
        assert answer.headers["cache-control"] == "no-cache"
        again = await browser.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await browser.head(path)).headers["etag"] == answer.headers["etag"]


async def test_scripts_are_this_origin_s_alone(browser: httpx2.AsyncClient) -> None:
    for path in ("/", "/page/main.js"):
        headers = (await browser.get(path)).headers
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/page/", "/page/%2e%2e%2fpage.py", "/page/none.js", "/page/page.py"])
async def test_nothing_else_is_served(browser: httpx2.AsyncClient, path: str) -> None:
    answer = await browser.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_only_its_neighbours(name: str) -> None:
    text = (FILES / name).read_text()
    named = {Path(found).name for found in re.findall(r"""["'](?:page|\.)/([\w.-]+)["']""", text)}
    named |= set(re.findall(r'new URL\("([\w-]+\.js)"', text))
    assert named <= set(NAMES)
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)\w+\.\w+", text)
