"""Checkpoints made of random numbers: the published layout in any size, without a download.

Element i of the tensor called `name` is a pure function of (seed, name, i), made of integer arithmetic and one float32
multiplication, so that it has the same bits on every device, card and library version. That is why no
`torch.Generator` is used here: on a GPU its numbers depend on how many multiprocessors the card has.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from services.inference.checkpoint import CheckpointError, read_config, section, targets

RANDOM = "random:"
SHAPES = Path(__file__).parent / "shapes"
SPEC = re.compile(r"random:(?P<shape>[^:]+)(?::(?P<seed>\d{1,18}))?")

# SplitMix64's constants, as the signed integers that torch computes with.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST_FACTOR = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND_FACTOR = 0x94D049BB133111EB - (1 << 64)
# The sum of four 16-bit uniform integers: near enough to a normal distribution, and exact in float32.
SUM_MEAN = 4 * (2**16 - 1) / 2
SUM_STD = math.sqrt(4 * (2**32 - 1) / 12)

UPSAMPLING = re.compile(r"\.(upsample|decoder\.layers\.\d+)\.conv\.weight")
SPREAD = 0.1
"""Of what would be constant in an untrained model, so that exchanging two such tensors changes the output."""


QUERY_GAIN = 2.0
"""Lets a position attend to a few others rather than to the mean of all, which is soon the same for every reply."""
WAVEFORM_RMS = 0.1
"""How loud speech is; inside the codec signals are about 1, so that different sounds get different codes."""


@dataclass(frozen=True)
class Law:
    """How the numbers of one tensor are distributed."""

    std: float
    mean: float = 0.0


class RandomCheckpoint:
    """Random weights for one of the shapes in this package: `random:<shape>[:<seed>]`."""

    def __init__(self, shape: str, seed: int = 0) -> None:
        if shape not in known_shapes():
            raise CheckpointError(f"random:{shape}: unknown shape; there are {', '.join(known_shapes())}")
        self.seed = seed
        self.folder = SHAPES / shape
        self.config = read_config(self.folder)

    @classmethod
    def parse(cls, spec: str) -> RandomCheckpoint:
        """From `random:<shape>[:<seed>]`; the seed is 0 if none is given."""
        match = SPEC.fullmatch(spec)
        if not match:
            raise CheckpointError(
                f"{spec}: expected random:<shape>[:<seed>] with a whole number as seed and as shape one of "
                + ", ".join(known_shapes())
            )
        return cls(match["shape"], int(match["seed"] or 0))

    def fill(
        self,
        module: nn.Module,
        names: Mapping[str, Sequence[str]],
        *,
        own: Sequence[str],  # noqa: ARG002 - nothing is stored, so nothing can be unexpected
        foreign: Sequence[str] = (),  # noqa: ARG002
        unused: Sequence[str] = (),  # noqa: ARG002
    ) -> None:
        """Make a module's weights, on its device, each for the first of its checkpoint names."""
        state = targets(module, names)
        for name, candidates in names.items():
            self._make(candidates[0], state[name])

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """One tensor on the CPU, in the dtype that it is stored in."""
        made = torch.empty(tuple(shape), dtype=self.storage_dtype(name))
        self._make(name, made)
        return made

    def storage_dtype(self, name: str) -> torch.dtype:
        """What config.json says: the `dtype` of the name's own section if it has one, else of the whole."""
        prefix = name.partition(".")[0].removesuffix("_model")
        part = self.config.get(f"{prefix}_config", {})
        dtype = getattr(torch, part.get("dtype") or section(self.config, "dtype"))
        assert isinstance(dtype, torch.dtype)
        return dtype

    def law(self, name: str, shape: Sequence[int]) -> Law:
        """The distribution for a tensor, from the end of its name and its shape.

        Matrices keep the variance of what they are multiplied with, so that signals neither fade nor grow.
        """
        end = name.rsplit(".", 2)[-2:]
        if end[-1] == "initialized":
            return Law(0.0, mean=1.0)
        if end[-1] == "cluster_usage":
            return Law(SPREAD, mean=1.0)
        if end[-1] == "embed_sum":
            return Law(1.0)
        if end[-1] == "scale":
            initial = section(self.config, "codec_config", "layer_scale_initial_scale")
            return Law(SPREAD * initial, mean=initial)
        if end[-1] == "bias":
            return Law(0.02)
        if len(shape) == 1:
            return Law(SPREAD, mean=1.0)  # a norm
        if end[0] == "embed_audio_tokens":
            # A frame is the sum of one row per codebook: as loud as a text embedding.
            return Law(1 / math.sqrt(section(self.config, "audio_num_codebooks")))
        if end[0] in ("embed_tokens", "audio_bos_eos_token"):
            return Law(1.0)
        if end[0] == "codebook_head":
            return Law(1 / math.sqrt(shape[1]))  # one [in, out] matrix per codebook
        return self._matrix(name, shape)

    def _matrix(self, name: str, shape: Sequence[int]) -> Law:
        if len(shape) == 2:
            gain = QUERY_GAIN if name.endswith(".q_proj.weight") else 1.0
            return Law(gain / math.sqrt(shape[1]))
        outputs, inputs, kernel = shape
        if UPSAMPLING.search(name) and kernel % 2 == 0:
            # Transposed: [in, out, kernel] with kernel = 2 × stride, so that two taps reach each output sample. The
            # depthwise one has a single channel in its second dimension and in each group.
            channels = 1 if inputs == 1 else outputs
            return Law(1 / math.sqrt(2 * channels))
        waveform_channels = section(self.config, "codec_config", "audio_channels")
        gain = 1.0
        if inputs == waveform_channels:
            gain = 1 / WAVEFORM_RMS
        elif outputs == waveform_channels:
            gain = WAVEFORM_RMS
        return Law(gain / math.sqrt(inputs * kernel))

    def _make(self, name: str, out: torch.Tensor) -> None:
        """Fill a tensor in place, by way of the dtype that it would be stored in."""
        law = self.law(name, out.shape)
        key = int.from_bytes(hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=8).digest(), "little")
        stored = self.storage_dtype(name)
        block = 1 << (16 if out.device.type == "cpu" else 24)  # fits the cache; keeps the card busy
        with torch.no_grad():
            flat = out.view(-1)
            for start in range(0, flat.numel(), block):
                part = flat[start : start + block]
                numbers = normal(key, start, part.numel(), std=law.std, device=out.device)
                part.copy_(numbers.add_(law.mean).to(stored))


def known_shapes() -> list[str]:
    """The names that `random:` takes."""
    return sorted(folder.name for folder in SHAPES.iterdir() if folder.is_dir())


def normal(key: int, start: int, count: int, *, std: float, device: torch.device) -> torch.Tensor:
    """Elements [start, start + count) of the endless float32 sequence of a 64-bit key; |x| < 3.47 std."""
    bits = torch.arange(start + 1, start + 1 + count, dtype=torch.int64, device=device)
    bits.mul_(STEP).add_(signed(key))
    bits.bitwise_xor_(shifted(bits, 30)).mul_(FIRST_FACTOR)
    bits.bitwise_xor_(shifted(bits, 27)).mul_(SECOND_FACTOR)
    bits.bitwise_xor_(shifted(bits, 31))
    total = bits & 0xFFFF
    for shift in (16, 32, 48):
        total.add_((bits >> shift).bitwise_and_(0xFFFF))
    # The factor is rounded to float32 here, so that no device multiplies by another one.
    factor = torch.tensor(std / SUM_STD, dtype=torch.float32).item()
    return total.float().sub_(SUM_MEAN).mul_(factor)


def shifted(bits: torch.Tensor, count: int) -> torch.Tensor:
    """A logical right shift; torch's own repeats the sign bit."""
    return (bits >> count).bitwise_and_((1 << (64 - count)) - 1)


def signed(value: int) -> int:
    """An unsigned 64-bit integer as the signed one with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
