"""How codes are drawn: the reference's rules, and noise that hangs on seed, frame and codebook alone."""

import math

import pytest
import torch
from torch import Tensor

from services.inference.sampling import Draw, GumbelNoise, draw

LOGITS = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, 0.5, -3.0, 1.5])


def how(
    rows: int, *, temperature: float = 1.0, top_k: int = 0, seed: int | Tensor = 0, count: int = len(LOGITS)
) -> Draw:
    """The same way for all rows, on `count` logits."""
    seeds = seed if isinstance(seed, Tensor) else torch.full((rows,), seed)
    return way(torch.full((rows,), temperature), torch.full((rows,), top_k), seeds, count)


def way(temperature: Tensor, top_k: Tensor, seed: Tensor, count: int) -> Draw:
    """Each row its own way, with no more of the `count` logits ranked than the drawing rows need."""
    needed = torch.where(top_k > 0, top_k, count).clamp(max=count).where(temperature > 0, 0)
    return Draw(temperature, top_k, seed, int(needed.max()))


def draw_of(logits: Tensor, settings: Draw, frame: Tensor, codebook: int) -> Tensor:
    """One codebook's codes, with the noise that is its own."""
    noise = GumbelNoise(codebook + 1, logits.shape[-1])(settings, frame)
    return draw(logits, settings, None if noise is None else noise[:, codebook])


def noise_of(seed: Tensor, frame: Tensor, codebook: int, code_count: int) -> Tensor:
    """One codebook's noise: [B, codes]."""
    noise = GumbelNoise(codebook + 1, code_count)(how(len(seed), seed=seed), frame)
    assert noise is not None
    return noise[:, codebook]


def draw_many(count: int, *, temperature: float = 1.0, top_k: int = 0, logits: Tensor = LOGITS) -> Tensor:
    """`count` draws: ten frames of each of many seeds."""
    rows = torch.arange(count)
    settings = how(count, temperature=temperature, top_k=top_k, seed=rows // 10, count=len(logits))
    return draw_of(logits.expand(count, -1), settings, rows % 10, codebook=3)


def chi_square(observed: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * observed.sum()
    return float(((observed - expected) ** 2 / expected).sum())


def chi_square_limit(degrees: int) -> float:
    """Exceeded once in 10,000 fair samples (Wilson and Hilferty); the seeds are fixed, so this is no lottery."""
    return degrees * (1 - 2 / (9 * degrees) + 3.719 * math.sqrt(2 / (9 * degrees))) ** 3


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [3.0, 3.0, 3.0, 3.0], [-2.0, -5.0, -1.0, -1.0]])
    for seed in (0, 1, -7):
        settings = how(3, temperature=0.0, top_k=2, seed=seed, count=4)
        drawn = draw_of(logits, settings, torch.arange(3), codebook=0)
        assert drawn.tolist() == [1, 0, 2]
        # The same where a neighbour draws, so that there is noise.
        ranking = Draw(settings.temperature, settings.top_k, settings.seed, 4)
        assert draw_of(logits, ranking, torch.arange(3), codebook=0).tolist() == [1, 0, 2]


def test_there_is_noise_exactly_where_something_is_drawn() -> None:
    frame = torch.zeros(2, dtype=torch.int64)
    assert GumbelNoise(8, 8)(how(2, temperature=0.0), frame) is None
    noise = GumbelNoise(8, 5)(how(2), frame)
    assert noise is not None
    assert (noise.shape, noise.dtype) == ((2, 8, 5), torch.float32)


def test_greedy_and_drawing_rows_share_a_batch() -> None:
    settings = way(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0, 1, 5]), torch.tensor([1, 2, 3]), len(LOGITS))
    assert settings.ranked == 1
    assert draw_of(LOGITS.expand(3, -1), settings, torch.zeros(3, dtype=torch.int64), codebook=0).tolist() == [3, 3, 3]


@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 8])
def test_top_k_draws_among_the_largest_and_all_of_them(top_k: int) -> None:
    drawn = set(draw_many(20_000, temperature=2.0, top_k=top_k).tolist())
    ranked = LOGITS.sort(descending=True).values
    assert drawn == set((ranked[top_k - 1] <= LOGITS).nonzero().flatten().tolist())


def test_top_k_keeps_ties() -> None:
    assert set(draw_many(5_000, top_k=5).tolist()) == {0, 3, 4, 5, 7}
    assert set(draw_many(5_000, top_k=4).tolist()) == {0, 3, 4, 5, 7}
    assert set(draw_many(5_000, top_k=2, logits=torch.zeros(6)).tolist()) == set(range(6))


@pytest.mark.parametrize("top_k", [0, 8, 9, 2051])
def test_top_k_of_all_or_more_leaves_nothing_out(top_k: int) -> None:
    assert draw_many(2_000, top_k=top_k).equal(draw_many(2_000, top_k=0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 4])
def test_draws_follow_the_softmax(temperature: float, top_k: int) -> None:
    kept = LOGITS if top_k == 0 else torch.where(LOGITS.sort(descending=True).values[top_k - 1] <= LOGITS, LOGITS, -1e9)
    probabilities = (kept / temperature).softmax(-1)
    observed = torch.bincount(draw_many(40_000, temperature=temperature, top_k=top_k), minlength=len(LOGITS))
    possible = probabilities > 0
    assert not observed[~possible].any()
    limit = chi_square_limit(int(possible.sum()) - 1)
    assert chi_square(observed[possible].float(), probabilities[possible]) < limit


@pytest.mark.parametrize("apart", ["frame", "codebook", "seed"])
def test_neighbouring_draws_are_independent(apart: str) -> None:
    rows = torch.arange(40_000)
    near, far = (
        draw_of(
            LOGITS.expand(len(rows), -1),
            how(len(rows), seed=rows * 2 + step * (apart == "seed")),
            torch.full_like(rows, 5 + step * (apart == "frame")),
            codebook=2 + step * (apart == "codebook"),
        )
        for step in (0, 1)
    )
    count = len(LOGITS)
    probabilities = LOGITS.softmax(-1)
    observed = torch.bincount(near * count + far, minlength=count * count).float()
    joint = (probabilities[:, None] * probabilities[None]).flatten()
    assert chi_square(observed, joint) < chi_square_limit(count * count - 1)


def test_noise_is_standard_gumbel() -> None:
    noise = noise_of(torch.arange(500), torch.arange(500), 0, 200)
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_noise_does_not_depend_on_the_batch() -> None:
    seeds, frames = torch.tensor([3, -1, 2**62, 0, 5]), torch.tensor([0, 9, 4, 4, 1000])
    together = noise_of(seeds, frames, 6, 100)
    for row in range(5):
        assert noise_of(seeds[row : row + 1], frames[row : row + 1], 6, 100)[0].equal(together[row])
    assert noise_of(seeds.flip(0), frames.flip(0), 6, 100).equal(together.flip(0))


def test_noise_does_not_depend_on_how_the_rows_are_drawn() -> None:
    """A replay has other neighbours, and so other numbers of logits to rank: its noise is the same."""
    seeds, frames = torch.tensor([3, -1, 5]), torch.tensor([0, 9, 1000])
    first, second = (
        GumbelNoise(8, 50)(Draw(torch.full((3,), 0.5), torch.tensor([1, 2, 3]) * ranked, seeds, ranked), frames)
        for ranked in (1, 40)
    )
    assert first is not None
    assert second is not None
    assert first.equal(second)


def test_a_codes_noise_does_not_depend_on_how_many_codes_there_are() -> None:
    seeds, frames = torch.arange(3), torch.arange(3)
    assert noise_of(seeds, frames, 1, 2048)[:, :50].equal(noise_of(seeds, frames, 1, 50))


def test_a_codebooks_noise_does_not_depend_on_how_many_codebooks_or_codes_there_are() -> None:
    seeds, frames = torch.tensor([3, -1, 2**62]), torch.arange(3)
    most = GumbelNoise(8, 2048)(how(3, seed=seeds), frames)
    assert most is not None
    for codebook_count, code_count in ((1, 2048), (3, 50), (8, 1), (8, 2047)):
        fewer = GumbelNoise(codebook_count, code_count)(how(3, seed=seeds), frames)
        assert fewer is not None
        assert fewer.equal(most[:, :codebook_count, :code_count])


@pytest.mark.parametrize("ranked", [50, 51, 64, 300])
def test_ranking_more_than_is_needed_changes_no_draw(ranked: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 300, generator=generator).mul_(4).round_()  # with many ties
    top_k, rows = torch.randint(1, 51, (400,), generator=generator), torch.arange(400)
    top_k[0] = 50
    temperature = torch.rand(400, generator=generator) * (rows % 5 > 0)
    exact = way(temperature, top_k, rows, 300)
    assert exact.ranked == int(top_k[temperature > 0].max()) <= 50
    more = Draw(temperature, top_k, rows, ranked)
    assert draw_of(logits, more, rows, codebook=2).equal(draw_of(logits, exact, rows, codebook=2))


@pytest.mark.parametrize("bit", [*range(0, 64, 7), 31, 32, 62, 63])
def test_every_bit_of_the_seed_counts(bit: int) -> None:
    changed = (1 << bit) - (1 << 64 if bit == 63 else 0)
    frame = torch.zeros(1, dtype=torch.int64)
    one = noise_of(torch.tensor([0x0123456789ABCDEF]), frame, 0, 64)
    other = noise_of(torch.tensor([0x0123456789ABCDEF ^ changed]), frame, 0, 64)
    assert (one != other).float().mean() > 0.9


def test_halves_of_the_seed_are_not_interchangeable() -> None:
    frame = torch.zeros(1, dtype=torch.int64)
    one, other = (noise_of(torch.tensor([seed]), frame, 0, 64) for seed in (5 << 32 | 9, 9 << 32 | 5))
    assert not one.equal(other)


def test_one_rows_draw_does_not_depend_on_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 300, generator=generator)
    settings = way(torch.rand(6, generator=generator), torch.tensor([0, 1, 5, 50, 300, 7]), torch.arange(6), 300)
    frames = torch.arange(6) * 3
    together = draw_of(logits, settings, frames, codebook=4)
    for row in range(6):
        part = slice(row, row + 1)
        alone = way(settings.temperature[part], settings.top_k[part], settings.seed[part], 300)
        assert draw_of(logits[part], alone, frames[part], codebook=4).tolist() == [int(together[row])]


def test_a_temperature_close_to_zero_is_almost_greedy() -> None:
    assert set(draw_many(1_000, temperature=1e-9).tolist()) == {3}
