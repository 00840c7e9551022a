"""Random checkpoints on disk, for other implementations of the model to read."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from services.codec.weights import published_tensors as codec_tensors
from services.inference.checkpoint import INDEX, CheckpointError
from services.inference.random_checkpoint import RandomCheckpoint
from services.reasoner.weights import published_tensors as reasoner_tensors
from services.speech.weights import published_tensors as speech_tensors

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a checkpoint's files will hold: names and shapes, shard by shard."""

    shards: list[dict[str, Shape]]
    total_bytes: int

    def file_name(self, index: int) -> str:
        """The name of one shard's file, counting from 0."""
        return f"model-{index + 1:05d}-of-{len(self.shards):05d}.safetensors"


def plan(checkpoint: RandomCheckpoint, *, shard_bytes: int) -> Plan:
    """Cut the tensors of all stages, by name, into shards of at most `shard_bytes` (or of one greater tensor)."""
    config = checkpoint.config
    tensors = reasoner_tensors(config) | speech_tensors(config) | codec_tensors(config)
    shards: list[dict[str, Shape]] = []
    total = room = 0
    for name, shape in sorted(tensors.items()):
        size = math.prod(shape) * checkpoint.storage_dtype(name).itemsize
        if not shards or size > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = shape
        room -= size
        total += size
    return Plan(shards, total)


def write(
    checkpoint: RandomCheckpoint,
    out: Path,
    *,
    shard_bytes: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Plan:
    """Write a checkpoint directory that appears complete or not at all; holds one shard in memory.

    The same checkpoint gives the same bytes in every file. `progress` is told the bytes of each tensor that was made.
    Raises CheckpointError when `out` exists and is not an empty directory, or its disk is too small.
    """
    planned = plan(checkpoint, shard_bytes=shard_bytes)
    with new_folder(out.resolve(), total_bytes=planned.total_bytes) as folder:
        copy_files(checkpoint.folder.iterdir(), folder)
        write_index(folder / INDEX, planned)
        for index, shard in enumerate(planned.shards):
            tensors = {}
            for name, shape in shard.items():
                tensors[name] = checkpoint.tensor(name, shape)
                progress(tensors[name].nbytes)
            path = folder / planned.file_name(index)
            save_file(tensors, path, metadata={"format": "pt"})
            shutil.copymode(folder / INDEX, path)  # safetensors makes files that only their owner can read
    return planned


def write_index(path: Path, planned: Plan) -> None:
    """Which file holds which tensor."""
    weight_map = {name: planned.file_name(index) for index, shard in enumerate(planned.shards) for name in shard}
    write_json(path, {"metadata": {"total_size": planned.total_bytes}, "weight_map": weight_map})


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """JSON as people read it, with the keys in order."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_files(files: Iterable[Path], folder: Path) -> None:
    """Config and tokenizer, as they are."""
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


@contextmanager
def new_folder(out: Path, *, total_bytes: int) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end of the block, or is removed if the block fails."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: already there and not an empty directory")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < total_bytes:
            raise CheckpointError(f"{out}: needs {total_bytes:,} bytes, and the disk has {free:,} left")
        yield partial
        partial.replace(out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
