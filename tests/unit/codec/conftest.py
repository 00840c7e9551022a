"""Codecs to test with: the golden one and small random ones of any shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MimiConfig, MimiModel

from services.codec import weights
from services.codec.model import Codec, build_mimi
from services.inference.checkpoint import StoredCheckpoint

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny"

SMALL = {
    "sampling_rate": 2400,
    "upsampling_ratios": [3, 2],
    "hidden_size": 16,
    "num_filters": 4,
    "codebook_size": 32,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "sliding_window": 9,
    "upsample_groups": 16,
}


@pytest.fixture(scope="session")
def golden() -> StoredCheckpoint:
    """The golden checkpoint, in the published layout."""
    return StoredCheckpoint(GOLDEN / "checkpoint")


@pytest.fixture(scope="session")
def golden_codec(golden: StoredCheckpoint) -> Codec:
    """The codec of the golden checkpoint."""
    return weights.load(golden, torch.device("cpu"))


@pytest.fixture(scope="session")
def make_mimi() -> Callable[..., MimiModel]:
    """Makes a small Mimi with random weights whose attention matters: `make_mimi(seed, **settings)`."""

    def make(seed: int = 0, **settings: Any) -> MimiModel:
        mimi = build_mimi(MimiConfig(**(SMALL | settings)), torch.device("cpu"))
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
