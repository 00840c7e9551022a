"""`python -P tests/gpu/machine.py cuda`: what a machine has, and whether that will do; exit status 1 if it will not.

Imports all that is run later, so that the first to run has not to wait for it.
"""

import importlib
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
PROGRAMS = ("client.cli", "client.bench.command", "services.bench.__main__", "services.colocated.__main__")
NAMES = ("torch", "triton", "numpy", "transformers", "tokenizers", "huggingface_hub", "grpcio", "protobuf")


def main(device: str) -> None:
    """Says what there is."""
    say(f"Python {sys.version.split()[0]} at {sys.executable}")
    for name in NAMES:
        try:
            held = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            say(f"{name}: not here")
        else:
            say(f"{name} {held.version} in {held.locate_file('')}")
    for line in (HERE / "machine.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if not requirement.specifier.contains(version := metadata.version(requirement.name), prereleases=True):
                sys.exit(f"{requirement} is needed, but {version} is here")
    for name in PROGRAMS:
        began = time.perf_counter()
        importlib.import_module(name)
        say(f"import {name}: {time.perf_counter() - began:.1f} s")
    if device == "cuda":
        show_card()


def show_card() -> None:
    """Says what the card does at best: the ceilings that floors are worked out from."""
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no CUDA device")
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    say(f"{card.name}, {card.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}")
    say(f"memory {total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of it free")
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source))
    say(f"copy within the card: {2 * source.nbytes / seconds / 1e12:.2f} TB/s, read and written")
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = median_seconds(lambda: left @ right)
    say(f"product of bfloat16 matrices: {2 * 8192**3 / seconds / 1e12:.0f} TFLOP/s")


def median_seconds(work: Callable[[], object]) -> float:
    """The median time of some work on the card, in seconds."""
    import torch

    times = []
    for _ in range(13):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) / 1000)
    return sorted(times[3:])[5]


def say(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main(sys.argv[1])
