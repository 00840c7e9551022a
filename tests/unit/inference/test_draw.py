"""Draws in compiled code: the very codes that torch draws from the same logits, seeds and frames."""

import numpy as np
import pytest
import torch

from services.inference.cpu.draw import draw, row_hash
from services.inference.sampling import Draw, GumbelNoise, ranked_count
from services.inference.sampling import draw as draw_with_torch

ROWS = 200


def logits_of(seed: int, code_count: int, *, ties: bool) -> torch.Tensor:
    logits = 4 * torch.randn(ROWS, code_count, generator=torch.Generator().manual_seed(seed))
    return logits.round() if ties else logits


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("code_count", [1, 15, 64, 300, 2048, 2051])
@pytest.mark.parametrize("top_k", [0, 1, 2, 17, 50, 64, 300, 2048])
def test_codes_are_those_of_torch(code_count: int, top_k: int, ties: bool) -> None:
    logits, chance = logits_of(top_k, code_count, ties=ties), np.random.default_rng(top_k)
    temperature = chance.uniform(0, 2, ROWS).astype(np.float32) * (np.arange(ROWS) % 4 > 0)
    seeds, frames = chance.integers(-(2**63), 2**63 - 1, ROWS), chance.integers(0, 2000, ROWS)
    noise = GumbelNoise(3, code_count)
    top = min(top_k, code_count)
    how = Draw(
        torch.from_numpy(temperature), torch.full((ROWS,), top), torch.from_numpy(seeds), ranked_count(top, code_count)
    )
    of_torch = noise(how, torch.from_numpy(frames))
    assert of_torch is not None
    flat, places = logits.numpy().reshape(-1), noise.places.numpy().reshape(-1)
    for codebook in range(3):
        expected = draw_with_torch(logits, how, of_torch[:, codebook]).tolist()
        found = [
            draw(
                flat, row * code_count, code_count, temperature[row], top, row_hash(seeds[row], frames[row]), places,
                codebook * code_count,
            )
            for row in range(ROWS)
        ]  # fmt: skip
        assert found == expected


@pytest.mark.parametrize("code_count", [7, 64, 2051])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("top_k", [0, 1, 50])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_code_is_one_of_all_whatever_the_logits_are(
    code_count: int, value: float, top_k: int, temperature: float
) -> None:
    places = GumbelNoise(1, code_count).places.numpy().reshape(-1)
    for some in (slice(None), slice(None, None, 2), slice(0, 1)):
        logits = np.ones(code_count, np.float32)
        logits[some] = value
        code = draw(logits, 0, code_count, np.float32(temperature), top_k, row_hash(1, 1), places, 0)
        assert 0 <= code < code_count
