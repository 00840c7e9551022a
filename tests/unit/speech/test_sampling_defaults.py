"""What generation_config.json says of sampling, and what it cannot say."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.inference.checkpoint import CheckpointError
from services.speech.sampling_defaults import GENERATION_CONFIG, SamplingDefaults, read_sampling_defaults


def read(folder: Path, code_count: int = 2051, **said: Any) -> SamplingDefaults:
    (folder / GENERATION_CONFIG).write_text(json.dumps(said))
    return read_sampling_defaults(folder, code_count)


def test_a_checkpoint_need_not_say_anything(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path, 2051) == read(tmp_path, eos_token_id=0) == SamplingDefaults(0.7, 50)
    assert read_sampling_defaults(tmp_path, 33).top_k == 33


def test_what_it_says_holds(tmp_path: Path) -> None:
    assert read(tmp_path, do_sample=True, temperature=1, top_k=0) == SamplingDefaults(1.0, 0)
    assert read(tmp_path, top_k=7) == SamplingDefaults(0.7, 7)
    assert read(tmp_path, do_sample=False, temperature=0.9) == SamplingDefaults(0.0, 50)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"temperature": -0.1}, "temperature must be 0 to 2, got -0.1"),
        ({"temperature": "hot"}, "temperature must be 0 to 2, got 'hot'"),
        ({"temperature": None}, "temperature must be 0 to 2, got None"),
        ({"top_k": 2052}, "top_k must be 0 to 2051, got 2052"),
        ({"top_k": 1.5}, "top_k must be 0 to 2051, got 1.5"),
    ],
)
def test_what_no_request_could_have_is_refused_at_the_start(tmp_path: Path, said: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read(tmp_path, **said)
    (tmp_path / GENERATION_CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        read_sampling_defaults(tmp_path, 2051)
