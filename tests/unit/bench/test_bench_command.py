"""`python -m services.bench`."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch
from typer.testing import CliRunner

from services.bench.__main__ import app

SMALL = [
    "--frames",
    "200",
    "--steps",
    "100",
    "--rounds",
    "1",
    "--slots",
    "2",
    "--voice-seconds",
    "0.4",
    "--user-seconds",
    "0.3",
]
PROMISED = {
    "floor_frame_seconds",
    "engine_frame_seconds",
    "engine_floor_ratio",
    "baseline_frame_seconds",
    "engine_baseline_ratio",
    "direct_frame_seconds",
    "direct_first_audio_seconds",
    "invariance_cost_ratio",
}


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_run_prints_one_object(tmp_path: Path) -> None:
    profile = tmp_path / "profile.txt"
    options = [
        "--checkpoint",
        "random:tiny",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--clock",
        "cpu",
        "--profile",
        str(profile),
        *SMALL,
    ]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report) == {"checkpoint", "device", "dtype", "threads", "clock", "shape", "tables", "values"}
    assert (report["checkpoint"], report["device"], report["dtype"]) == ("random:tiny", "cpu", "float32")
    assert (report["threads"], report["clock"]) == (1, "cpu")
    assert report["shape"]["frame_count"] == 200
    assert report["shape"]["slot_count"] == 2
    assert report["values"].keys() >= PROMISED
    assert all(math.isfinite(value) and value > 0 for value in report["values"].values())
    for table in report["tables"]:
        assert table.keys() == {"title", "columns", "rows"}
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert "aten::" in profile.read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--checkpoint", "random:huge"], "random:huge: unknown shape"),
        (["--checkpoint", "/no/where"], "/no/where: no such directory"),
        (["--checkpoint", "random:tiny", "--frames", "10", "--steps", "6"], "10 frames take at most 5, got 6"),
        (["--checkpoint", "random:tiny", "--profile", "/no/where/file"], "there is no directory /no/where"),
        (["--checkpoint", "random:tiny", "--voice-seconds", "200"], "the voice prompt is too long"),
        (["--checkpoint", "random:tiny", "--user-seconds", "200"], "the conversation is too long"),
        pytest.param(
            ["--checkpoint", "random:tiny", "--device", "cuda"],
            "no CUDA device is available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_bad_input_is_one_sentence(options: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert not result.stdout
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
