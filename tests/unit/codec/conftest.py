"""Codecs to test with: the golden one and small random ones of any shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.codec import weights
from services.codec.config import mimi_config
from services.codec.mimi import Mimi, build_mimi
from services.codec.model import Codec
from services.inference.checkpoint import StoredCheckpoint
from tests.unit.codec.mimi_shapes import SMALL

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny"


@pytest.fixture(scope="session")
def golden() -> StoredCheckpoint:
    """The golden checkpoint, in the published layout."""
    return StoredCheckpoint(GOLDEN / "checkpoint")


@pytest.fixture(scope="session")
def golden_codec(golden: StoredCheckpoint) -> Codec:
    """The codec of the golden checkpoint."""
    return weights.load(golden, torch.device("cpu"))


@pytest.fixture(scope="session")
def make_mimi() -> Callable[..., Mimi]:
    """Makes a small Mimi with random weights whose attention matters: `make_mimi(seed, **settings)`."""

    def make(seed: int = 0, **settings: Any) -> Mimi:
        mimi = build_mimi(mimi_config(SMALL | settings), torch.device("cpu"))
        numbers = torch.Generator().manual_seed(seed)
        for name, tensor in mimi.state_dict().items():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.0, generator=numbers)
            elif name.endswith("embed_sum"):
                tensor.normal_(generator=numbers)
            else:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=numbers)
        return mimi

    return make


@pytest.fixture(scope="session")
def random_codes() -> Callable[..., torch.Tensor]:
    """Makes codes [frames, codebooks] of a codec or Mimi: `random_codes(codec, frames, seed)`."""

    def make(codec: Codec, frames: int, seed: int = 0) -> torch.Tensor:
        numbers = torch.Generator().manual_seed(seed)
        return torch.randint(0, codec.codebook_size, (frames, codec.codebook_count), generator=numbers)

    return make
