"""The depth decoder: the codes of a frame after the first, one codebook at a time."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from services.inference.kv_cache import KvCache
from services.inference.sampling import Draw, draw
from services.inference.transformer import Places, Transformer, TransformerConfig

DepthPositions = Literal["reference", "training"]


@dataclass(frozen=True)
class DepthDecoderConfig:
    """The depth decoder's numbers. input_size: width of the backbone's states and of the code embeddings."""

    stack: TransformerConfig
    input_size: int
    codebook_count: int
    logit_count: int


class DepthDecoder(nn.Module):
    """Reads the backbone's state and the codes so far, gives the next code.

    `positions`: which rotations the inputs [state, code 0, …] get. "reference" is 0,0,1,…,6, which both official
    runtimes use and the published voices were heard with; "training" is 0,1,…,7 (model.md B.5).
    """

    def __init__(self, config: DepthDecoderConfig, positions: DepthPositions) -> None:
        super().__init__()
        self.config = config
        self.stack = Transformer(config.stack)
        self.projection = nn.Linear(config.input_size, config.stack.hidden_size, bias=False)
        self.codebook_head = nn.Parameter(
            torch.empty(config.codebook_count - 1, config.stack.hidden_size, config.logit_count)
        )
        # Input i is rotated by position i less this, but not below 0.
        self.offset = 1 if positions == "reference" else 0

    def cache(self, slots: int) -> "DepthCache":
        """Room for one frame of every slot; it is overwritten frame by frame."""
        runs, column = [], 0
        for run in range(self.config.codebook_count - 1):
            width = 2 if run == 0 else 1
            columns = torch.arange(column, column + width, device=self.codebook_head.device).expand(slots, width)
            column += width
            runs.append(self.stack.places(columns, column, (columns - self.offset).clamp(min=0)))
        return DepthCache(self.stack.cache(slots=slots, positions=self.config.codebook_count), tuple(runs))

    def decode(
        self,
        hidden: Tensor,
        first_codes: Tensor,
        code_embedding: nn.Embedding,
        code_count: int,
        how: Draw,
        noise: Tensor | None,
        cache: "DepthCache",
    ) -> Tensor:
        """The frame's codes: hidden [S, input], first_codes [S] → [S, codebooks] int64.

        code_embedding: the table shared with the backbone, a block of logit_count rows for each codebook. Only codes
        below code_count are drawn, with noise [n, codebooks, code_count].
        """
        codes = [first_codes]
        inputs = torch.stack((hidden, code_embedding(first_codes)), dim=1)
        for codebook, places in enumerate(cache.runs, start=1):
            states = self.stack(self.projection(inputs), places, cache.kv)
            logits = states[:, -1] @ self.codebook_head[codebook - 1]
            ours = None if noise is None else noise[:, codebook]
            codes.append(draw(logits[:, :code_count].float(), how, ours))
            inputs = code_embedding(codes[-1] + codebook * self.config.logit_count)[:, None]
        return torch.stack(codes, dim=1)


@dataclass(frozen=True)
class DepthCache:
    """Keys and values of the frame that is being decoded, and where each run of the stack stands: always alike."""

    kv: KvCache
    runs: tuple[Places, ...]
    _views: "dict[int, DepthCache]" = field(default_factory=dict, repr=False, compare=False)

    def rows(self, count: int) -> "DepthCache":
        """A view of the first slots, made once."""
        if count not in self._views:
            self._views[count] = DepthCache(self.kv.rows(count), tuple(places.rows(count) for places in self.runs))
        return self._views[count]
