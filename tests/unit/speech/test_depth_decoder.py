"""The depth decoder: an explicit causal forward of the same frame, and only codes that have a sound."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from services.inference.sampling import Draw, GumbelNoise
from services.inference.transformer import transformer_config
from services.speech.depth_decoder import DepthDecoder, DepthDecoderConfig, DepthPositions
from services.speech.model import SpeechModel

INPUT, CODES, LOGITS, CODEBOOKS = 40, 60, 63, 8
POSITIONS: dict[DepthPositions, list[int]] = {"reference": [0, 0, 1, 2, 3, 4, 5, 6], "training": list(range(8))}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 0.001953125,
    "high_freq_factor": 0.0078125,
    "original_max_position_embeddings": 16,
}


@dataclass(frozen=True)
class Pair:
    """Our depth decoder and transformers' stack with the same weights, and the table of code embeddings."""

    ours: DepthDecoder
    stack: LlamaModel
    code_embedding: nn.Embedding
    positions: list[int]

    def decode(self, hidden: Tensor, first_codes: Tensor, how: Draw | None = None) -> Tensor:
        cache = self.ours.cache(len(hidden))
        how = how or greedy(len(hidden))
        return self.ours.decode(hidden, first_codes, self.code_embedding, CODES, how, noise_of(how), cache)

    def explicit_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Logits of codebooks 1.. in one forward over a whole frame: hidden [S, input], codes [S, 8] → [S, 7, logits].

        The mask is given: left to itself, transformers takes repeated positions for sequences packed side by side.
        """
        spoken = self.code_embedding(codes[:, :-1] + torch.arange(CODEBOOKS - 1) * LOGITS)
        inputs = self.ours.projection(torch.cat((hidden[:, None], spoken), dim=1))
        causal = torch.full((CODEBOOKS, CODEBOOKS), -torch.inf).triu(1)[None, None]
        states = self.stack(
            inputs_embeds=inputs,
            position_ids=torch.tensor([self.positions]),
            attention_mask=causal,
            use_cache=False,
        ).last_hidden_state
        return torch.einsum("sch,chl->scl", states[:, 1:], self.ours.codebook_head)


def greedy(rows: int) -> Draw:
    zeros = torch.zeros(rows, dtype=torch.int64)
    return Draw(torch.zeros(rows), zeros, zeros, 0)


def noise_of(how: Draw, frame: int = 0) -> Tensor | None:
    return GumbelNoise(CODEBOOKS, CODES)(how, torch.full_like(how.seed, frame))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def pair(positions: DepthPositions, heads: int, kv_heads: int, head_dim: int, layers: int) -> Pair:
    section = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": 64,
        "max_position_embeddings": 33,
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA3,
    }
    config = transformer_config(section, qkv_bias=False, default_theta=5e5)
    ours = DepthDecoder(DepthDecoderConfig(config, INPUT, CODEBOOKS, LOGITS), positions)
    code_embedding = nn.Embedding(CODEBOOKS * LOGITS, INPUT)
    generator = torch.Generator().manual_seed(heads * 10 + layers)
    for parameter in (*ours.parameters(), *code_embedding.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    stack = LlamaModel(LlamaConfig(**section, vocab_size=8, attn_implementation="sdpa"))
    missing = stack.load_state_dict(ours.stack.state_dict(), strict=False)
    assert missing.missing_keys == ["embed_tokens.weight"]
    assert not missing.unexpected_keys
    return Pair(ours.eval(), stack.eval(), code_embedding, POSITIONS[positions])


def frames(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, INPUT, generator=generator), torch.randint(CODES, (count,), generator=generator)


@pytest.mark.parametrize("positions", ["reference", "training"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "layers"), [(2, 1, 16, 2), (4, 2, 8, 4), (2, 2, 12, 1), (8, 2, 128, 2)]
)
def test_greedy_codes_are_those_of_an_explicit_causal_forward(
    positions: DepthPositions, heads: int, kv_heads: int, head_dim: int, layers: int
) -> None:
    made = pair(positions, heads, kv_heads, head_dim, layers)
    hidden, first = frames(40)
    codes = made.decode(hidden, first)
    logits = made.explicit_logits(hidden, codes)[:, :, :CODES]
    assert codes[:, 0].equal(first)
    assert codes[:, 1:].equal(logits.argmax(-1))


def test_the_two_ways_of_positions_differ() -> None:
    hidden, first = frames(40)
    reference, training = (pair(positions, 4, 2, 8, 2).decode(hidden, first) for positions in POSITIONS)
    assert not reference.equal(training)


def test_a_frame_is_the_same_in_any_row_and_after_any_other_frame() -> None:
    made = pair("reference", 4, 2, 8, 2)
    hidden, first = frames(12)
    alone, cache = made.decode(hidden, first), made.ours.cache(12)
    for shift in range(3):
        order = torch.arange(12).roll(shift)
        codes = made.ours.decode(hidden[order], first[order], made.code_embedding, CODES, greedy(12), None, cache)
        assert codes.equal(alone[order])


def test_codes_without_a_sound_are_never_drawn() -> None:
    made = pair("reference", 4, 2, 8, 2)
    hidden, first = frames(200)
    head = made.ours.codebook_head
    head[:, :, CODES:] = 1e4 * torch.randn(head[:, :, CODES:].shape, generator=torch.Generator().manual_seed(1))
    sampled = Draw(torch.full((200,), 2.0), torch.zeros(200, dtype=torch.int64), torch.arange(200), CODES)
    for how in (greedy(200), sampled):
        codes = made.decode(hidden, first, how)
        assert int(codes.max()) < CODES
    # Without the rule most of these frames would have one.
    tempted = made.explicit_logits(hidden, codes).argmax(-1) >= CODES
    assert tempted.float().mean() > 0.5


def test_codebook_0_is_never_drawn_without_a_sound(speech_model: SpeechModel) -> None:
    config = speech_model.config
    hidden = torch.randn(100, config.backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    assert config.logit_count > config.code_count
    logits = speech_model.backbone.first_logits(hidden, config.code_count)
    assert logits.shape == (100, config.code_count)
    assert logits.dtype == torch.float32


def test_sampled_codes_hang_on_their_own_row_alone() -> None:
    made = pair("reference", 4, 2, 8, 2)
    hidden, first = frames(6)
    seeds = torch.tensor([1, 2, 3, 4, 5, 2**62])
    how = Draw(torch.full((6,), 0.9), torch.full((6,), 20), seeds, 20)
    together = made.decode(hidden, first, how)
    swapped = torch.tensor([3, 1, 5, 0, 4, 2])
    moved = Draw(how.temperature, how.top_k, seeds[swapped], 20)
    assert made.decode(hidden[swapped], first[swapped], moved).equal(together[swapped])
    other = made.ours.decode(hidden, first, made.code_embedding, CODES, how, noise_of(how, frame=1), made.ours.cache(6))
    assert not other.equal(together)
