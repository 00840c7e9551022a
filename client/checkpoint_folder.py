"""Whether a checkpoint's files are all there and whole, without reading the weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
MAXIMUM_HEADER_BYTES = 100 * 10**6
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


class Unsound(Exception):
    """What is wrong with one file."""


@dataclass(frozen=True)
class CheckpointFolder:
    """What a sound checkpoint holds."""

    shard_count: int
    tensor_count: int
    weight_bytes: int


def check_folder(folder: Path) -> tuple[CheckpointFolder, list[str]]:
    """What the folder holds and everything that is wrong with it, a sentence each; no sentence means sound."""
    problems: list[str] = []
    for name in NEEDED:
        try:
            read_object(folder / name)
        except Unsound as problem:
            problems.append(str(problem))
    try:
        tensors_of_shards = read_index(folder)
    except Unsound as problem:
        return CheckpointFolder(0, 0, 0), [*problems, str(problem)]
    tensor_count = weight_bytes = 0
    for shard, expected in sorted(tensors_of_shards.items()):
        try:
            found = read_safetensors_header(folder / shard)
        except Unsound as problem:
            problems.append(str(problem))
            continue
        missing = sorted((expected or set()) - found.keys())
        if missing:
            problems.append(f"{shard} lacks {len(missing)} of the tensors that {INDEX} puts there, first {missing[0]}")
        tensor_count += len(found)
        weight_bytes += sum(found.values())
    return CheckpointFolder(len(tensors_of_shards), tensor_count, weight_bytes), problems


def read_index(folder: Path) -> dict[str, set[str] | None]:
    """The tensors that each shard must hold; None where no index says it, in a checkpoint of one file."""
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise Unsound(f"there is neither {INDEX} nor {SINGLE}")
        return {SINGLE: None}
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Unsound(f"{INDEX} has no weight_map")
    shards: dict[str, set[str] | None] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise Unsound(f"{INDEX} puts {tensor} into {shard!r}, which is not a safetensors file of this folder")
        tensors = shards.setdefault(shard, set())
        assert tensors is not None
        tensors.add(tensor)
    return shards


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Unsound(f"{path.name} is missing") from None
    except (ValueError, RecursionError) as error:
        raise Unsound(f"{path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Unsound(f"{path.name} does not hold a JSON object")
    return value


def read_safetensors_header(path: Path) -> dict[str, int]:
    """Bytes of each tensor of a safetensors file, whose header must describe the file exactly."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or header_bytes > min(size - 8, MAXIMUM_HEADER_BYTES):
                raise Unsound(f"{path.name} is cut short or not a safetensors file: {size} bytes")
            header = json.loads(file.read(header_bytes))
    except FileNotFoundError:
        raise Unsound(f"{path.name} is missing") from None
    except (ValueError, RecursionError):
        raise Unsound(f"{path.name} has a damaged header") from None
    if not isinstance(header, dict):
        raise Unsound(f"{path.name} has a damaged header")
    header.pop("__metadata__", None)
    spans = sorted(read_span(path.name, name, entry) for name, entry in header.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise Unsound(f"{path.name}: {name} starts at byte {start}, expected {end}")
        end = stop
    expected = 8 + header_bytes + end
    if size != expected:
        what = "is cut short" if size < expected else "has bytes that belong to no tensor"
        raise Unsound(f"{path.name} {what}: {size} bytes, expected {expected}")
    return {name: stop - start for start, stop, name in spans}


def read_span(file_name: str, name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor's bytes start and stop, which its type and shape must agree with."""
    try:
        start, stop = (int(offset) for offset in entry["data_offsets"])
        length = math.prod(int(size) for size in entry["shape"]) * ELEMENT_BYTES[entry["dtype"]]
    except (TypeError, KeyError, ValueError):
        raise Unsound(f"{file_name}: {name} is described in a way that cannot be read") from None
    if stop - start != length:
        raise Unsound(f"{file_name}: {name} has {stop - start} bytes, its type and shape need {length}")
    return start, stop, name
