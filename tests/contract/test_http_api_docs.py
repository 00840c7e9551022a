"""The examples of docs/http-api.md run as they are written."""

import asyncio
import re
import sys
from pathlib import Path

import soundfile

from tests.contract.gateway_server import Gateway

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {"python": (sys.executable, "-c"), "": ("bash", "-euo", "pipefail", "-c")}


async def test_the_examples_run(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "client").symlink_to(ROOT / "client")
    examples = EXAMPLE.findall((ROOT / "docs" / "http-api.md").read_text())
    assert {language for language, _ in examples} == set(PROGRAMS)
    told = []
    for language, text in examples:
        process = await asyncio.create_subprocess_exec(
            *PROGRAMS[language], text.replace("http://127.0.0.1:8080", gateway.url),
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0, text
        assert b'"error"' not in said, said
        told.append(said.decode())
    assert soundfile.info(tmp_path / "reply.wav").samplerate == 24_000
    typed, voice = told[1:]
    assert '"transcript":' in typed
    assert typed.rstrip().endswith("data: [DONE]")
    assert voice.rstrip().endswith('"deleted":true}')
