"""How codes are drawn where a request does not say."""

from dataclasses import dataclass, replace
from pathlib import Path

from services.inference.checkpoint import CheckpointError, read_json_object

GENERATION_CONFIG = "generation_config.json"
MAXIMUM_TEMPERATURE = 2.0


@dataclass(frozen=True)
class SamplingDefaults:
    """Temperature, 0 ..= MAXIMUM_TEMPERATURE where 0 is greedy, and top_k, 0 ..= codebook size where 0 is all."""

    temperature: float = 0.7
    top_k: int = 50


def read_sampling_defaults(folder: Path, code_count: int) -> SamplingDefaults:
    """What a checkpoint's generation_config.json says of `temperature`, `top_k` and `do_sample`; the rest is ours.

    A checkpoint need not have one. Raises CheckpointError for values that no request could have.
    """
    path = folder / GENERATION_CONFIG
    defaults = replace(SamplingDefaults(), top_k=min(SamplingDefaults.top_k, code_count))
    if not path.exists():
        return defaults
    found = read_json_object(path)
    temperature, top_k = found.get("temperature", defaults.temperature), found.get("top_k", defaults.top_k)
    if found.get("do_sample") is False:
        temperature = 0.0
    if not isinstance(temperature, int | float) or not 0 <= temperature <= MAXIMUM_TEMPERATURE:
        raise CheckpointError(f"{path}: temperature must be 0 to {MAXIMUM_TEMPERATURE:g}, got {temperature!r}")
    if not isinstance(top_k, int) or not 0 <= top_k <= code_count:
        raise CheckpointError(f"{path}: top_k must be 0 to {code_count}, got {top_k!r}")
    return SamplingDefaults(float(temperature), top_k)
