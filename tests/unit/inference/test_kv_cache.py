"""The static cache: where positions go, and how far a step looks."""

import pytest
import torch

from services.inference.kv_cache import KvCache, allocate


def cache(positions: int, slots: int = 3) -> KvCache:
    return allocate(
        layers=2,
        slots=slots,
        kv_heads=2,
        positions=positions,
        head_dim=4,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.mark.parametrize("positions", [1, 16, 511, 512, 513, 600, 1024, 2048, 8192])
def test_reach_covers_the_column_and_never_the_dump(positions: int) -> None:
    kept = cache(positions, slots=1)
    for column in {0, 1, positions // 2, positions - 2, positions - 1} & set(range(positions)):
        assert column < kept.reach(column) <= kept.dump == positions


def test_reach_has_few_values() -> None:
    kept = cache(2000, slots=1)
    assert [kept.reach(column) for column in (0, 511, 512, 1023, 1024, 1999)] == [512, 512, 1024, 1024, 2000, 2000]


def test_update_writes_where_it_is_told_and_nowhere_else() -> None:
    kept = cache(8)
    keys, values = torch.randn(2, 3, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([[0, 1], [5, kept.dump], [kept.dump, kept.dump]])
    layer = kept.layers(6)[1]
    layer.keep(torch.cat((keys, values), dim=1), columns[:, None, :, None])
    for found, given, store in ((layer.keys, keys, kept.keys), (layer.values, values, kept.values)):
        expected = torch.zeros(3, 2, 8, 4)
        expected[0, :, :2], expected[1, :, 5] = given[0], given[1, :, 0]
        assert found.equal(expected[:, :, :6])
        assert store[1, :, :, :8].equal(expected)
        assert not store[0].any()


def test_a_slot_is_a_view_of_its_row() -> None:
    kept = cache(8)
    kept.slot(2).keys.fill_(1.0)
    assert kept.keys[:, 2].eq(1).all()
    assert not kept.keys[:, :2].any()
    assert (kept.slot(2).slot_count, kept.slot(2).position_count, kept.slot(2).dump) == (1, 8, 8)
