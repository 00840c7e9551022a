"""The codec as transformers has it: the baseline's, and what ours is tested against."""

import torch
from transformers import MimiConfig, MimiModel

from services.codec.mimi import Mimi
from services.codec.weights import newer_name
from services.inference.device import blank_modules


def plain_codec(mimi: Mimi) -> MimiModel:
    """transformers' codec with our codec's numbers and weights, in float32 where ours is."""
    numbers = mimi.config.model_dump(mode="json", exclude={"rope_parameters", "rope_scaling", "rope_theta"})
    with blank_modules(mimi.device, torch.float32):
        plain: MimiModel = MimiModel(MimiConfig(**numbers, rope_parameters=mimi.config.rope.parameters))
    plain.load_state_dict({newer_name(name): tensor for name, tensor in mimi.state_dict().items()})
    return plain.eval().requires_grad_(False)
