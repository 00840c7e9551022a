"""Fitting the codec's codebooks to latents that it already has: no straight-through estimate, no collapse."""

from typing import Any

import torch
from torch import Tensor
from transformers import MimiModel

from mini.sizes import CODES

SEMANTIC_DIMENSIONS = 4
_ROUNDS = 10


@torch.no_grad()
def fit(codec: MimiModel, latents: Tensor) -> list[float]:
    """Splits the latents [n, latent] between the two quantisers and fits their codebooks to them.

    The first quantiser gets the dimensions with the most variance, the second all others: neither sees the other's
    choice. Code 0 of the first codebook stays unused, so that only the end frame is all zero.
    Returns the share of the variance that is left after each codebook of the second.
    """
    semantic: Any = codec.quantizer.semantic_residual_vector_quantizer
    acoustic: Any = codec.quantizer.acoustic_residual_vector_quantizer
    _, _, axes = torch.linalg.svd(latents - latents.mean(dim=0), full_matrices=False)
    inward, outward = acoustic.input_proj.weight[:, :, 0].clone(), acoustic.output_proj.weight[:, :, 0].clone()
    left = []
    for quantizer, own in ((semantic, axes[:SEMANTIC_DIMENSIONS]), (acoustic, axes[SEMANTIC_DIMENSIONS:])):
        projection = own.T @ own
        quantizer.input_proj.weight.copy_((projection @ inward)[:, :, None])
        quantizer.output_proj.weight.copy_((outward @ projection)[:, :, None])
        rest = latents @ projection
        total = rest.var(dim=0).sum()
        for layer in quantizer.layers:
            unused = 1 if quantizer is semantic else 0
            centres = _means(rest, CODES - unused)
            chosen = torch.cdist(rest, centres).argmin(dim=1)
            rest = rest - centres[chosen]
            if unused:
                centres = torch.cat((_outlying(latents @ projection)[None], centres))
            layer.codebook.embed_sum.copy_(centres)
            layer.codebook.cluster_usage.fill_(1.0)
            layer.codebook._embed = None
            left.append(float(rest.var(dim=0).sum() / total))
    return left


def _outlying(points: Tensor) -> Tensor:
    """A point further out than all others."""
    centre = points.mean(dim=0)
    furthest = points[(points - centre).norm(dim=1).argmax()]
    return centre + 1.5 * (furthest - centre)


def _means(points: Tensor, count: int) -> Tensor:
    centres = points[torch.randperm(len(points))[:count]].clone()
    for _ in range(_ROUNDS):
        chosen = torch.cdist(points, centres).argmin(dim=1)
        sizes = torch.bincount(chosen, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, chosen, points)
        spare = points[torch.randint(0, len(points), (count,))]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], spare)
    return centres
