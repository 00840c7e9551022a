"""Reading a model from a checkpoint directory: JSON and safetensors, nothing that runs code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

MODEL_TYPE = "chroma"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

LISTED_PER_KIND = 20
FLOATING = {"F64", "F32", "F16", "BF16"}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_OF = re.compile(r"(?P<stem>.+)-(?P<index>\d+)-of-(?P<count>\d+)\.safetensors")


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message lists everything that is wrong with it."""


class Checkpoint(Protocol):
    """A model's config, its tokenizer files and its weights."""

    config: dict[str, Any]
    folder: Path
    """Holds config.json, the tokenizer, the chat template and the preprocessor's settings."""

    def fill(
        self,
        module: nn.Module,
        names: Mapping[str, Sequence[str]],
        *,
        own: Sequence[str],
        foreign: Sequence[str] = (),
        unused: Sequence[str] = (),
    ) -> None:
        """Copy stored weights into a module, one tensor at a time, in the module's dtypes and on its device.

        `names` has every state_dict name of the module with the names it may be stored under: the published one first,
        the first one found wins. `own` are the prefixes that the caller answers for: a stored name under one of them
        which is neither in `names` nor under an `unused` prefix is an error, and so is one under no prefix at all.
        `foreign` are the prefixes of the other stages. Raises CheckpointError with all that is missing, unexpected or
        of another shape.
        """


def section(config: Mapping[str, Any], *path: str) -> Any:
    """What config.json has under `path`; raises CheckpointError naming the first part that is not there."""
    value: Any = config
    for depth, key in enumerate(path, start=1):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{CONFIG}: {'.'.join(path[: depth - 1])} is {value!r}, expected an object")
        if key not in value:
            raise CheckpointError(f"{CONFIG}: {'.'.join(path[:depth])} is missing")
        value = value[key]
    return value


@contextmanager
def config_numbers(where: str) -> Iterator[None]:
    """Within it, a number of config.json that is missing or can't be is a CheckpointError that says where."""
    try:
        yield
    except KeyError as missing:
        raise CheckpointError(f"{CONFIG}: {where}: {missing.args[0]} is missing") from missing
    except ValidationError as error:
        # A default that follows from what is wrong is not wrong itself.
        wrong = (entry for entry in error.errors() if entry["type"] != "default_factory_not_called")
        complaints = "; ".join(map(_complaint, wrong))
        raise CheckpointError(f"{CONFIG}: {where}: {complaints}") from error
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{CONFIG}: {where}: {error}") from error


def _complaint(entry: Mapping[str, Any]) -> str:
    """What pydantic has against a number, in this project's words."""
    message = entry["msg"].removeprefix("Value error, ")
    if not entry["loc"]:  # a rule about several numbers
        return message
    name = ".".join(map(str, entry["loc"]))
    if entry["type"] == "missing":
        return f"{name} is missing"
    wanted = message.split(", unable")[0].replace("Input should be", "expected")
    return f"{name} is {entry['input']!r}; {wanted}"


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, which must be that of this model."""
    config = read_json_object(folder / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{folder / CONFIG}: model_type is {config.get('model_type')!r}, expected {MODEL_TYPE!r}")
    return config


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: there is no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def targets(module: nn.Module, names: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
    """The tensors to be filled, by their name in the module; that `names` has them all is the caller's duty."""
    state: dict[str, torch.Tensor] = module.state_dict()
    if differing := sorted(set(state) ^ set(names)):
        raise ValueError(f"these are either not in the module or without a checkpoint name: {', '.join(differing)}")
    if unnamed := sorted(name for name, candidates in names.items() if not candidates):
        raise ValueError(f"no checkpoint name is given for {', '.join(unnamed)}")
    if unreal := sorted(name for name, tensor in state.items() if tensor.is_meta):
        raise ValueError(f"these have no memory to be filled (device meta): {', '.join(unreal)}")
    return state


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what its shard's header says of it."""

    shard: Path
    shape: tuple[int, ...]
    data_type: str


class StoredCheckpoint:
    """A directory with config.json and safetensors files; opening it reads headers only."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            kind = "not a directory" if folder.exists() else "no such directory"
            raise CheckpointError(f"{folder}: {kind}; a checkpoint is a directory or random:<shape>[:<seed>]")
        self.folder = folder
        self.config = read_config(folder)
        if (folder / INDEX).is_file():
            weight_map = read_weight_map(folder / INDEX)
            self.tensors = read_headers(folder / name for name in sorted(set(weight_map.values())))
            self._check_index(weight_map)
        else:
            self.tensors = read_headers(find_shards(folder))

    def fill(
        self,
        module: nn.Module,
        names: Mapping[str, Sequence[str]],
        *,
        own: Sequence[str],
        foreign: Sequence[str] = (),
        unused: Sequence[str] = (),
    ) -> None:
        """Copy the stored weights into a module, as `Checkpoint.fill` says."""
        state = targets(module, names)
        wrong = self._misfits(state, names)
        known = {candidate for candidates in names.values() for candidate in candidates}
        for stored in self.tensors:
            expected = stored in known or stored.startswith(tuple(unused))
            if not expected and (stored.startswith(tuple(own)) or not stored.startswith(tuple(foreign))):
                wrong.append(("unexpected", stored))
        if wrong:
            raise CheckpointError(f"{self.folder}: the weights do not fit the model\n{listing(wrong)}")

        by_shard: dict[Path, list[tuple[str, str]]] = {}
        for name, candidates in names.items():
            stored = next(candidate for candidate in candidates if candidate in self.tensors)
            by_shard.setdefault(self.tensors[stored].shard, []).append((name, stored))
        for shard, pairs in by_shard.items():
            try:
                # The file is mapped, not read: only the bytes of the tensors asked for come off the disk.
                with safe_open(shard, framework="pt", device="cpu") as file, torch.no_grad():
                    for name, stored in pairs:
                        state[name].copy_(file.get_tensor(stored))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{shard}: not readable as safetensors: {error}") from None

    def _misfits(self, state: Mapping[str, torch.Tensor], names: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
        wrong: list[tuple[str, str]] = []
        for name, candidates in names.items():
            expected = tuple(state[name].shape)
            found = [candidate for candidate in candidates if candidate in self.tensors]
            if not found:
                wrong.append(("missing", " or ".join(candidates)))
            for stored in found:
                tensor = self.tensors[stored]
                if tensor.shape != expected:
                    wrong.append(("wrong shape", f"{stored} is {list(tensor.shape)}, expected {list(expected)}"))
                if tensor.data_type not in FLOATING:
                    wrong.append(("wrong type", f"{stored} is {tensor.data_type}, expected floating point"))
        return wrong

    def _check_index(self, weight_map: Mapping[str, str]) -> None:
        wrong = [
            ("not in the file that the index names", f"{name} ({shard})")
            for name, shard in weight_map.items()
            if name not in self.tensors or self.tensors[name].shard.name != shard
        ]
        if wrong:
            raise CheckpointError(f"{self.folder / INDEX}: index and files disagree\n{listing(wrong)}")


def read_weight_map(path: Path) -> dict[str, str]:
    """The index's tensor name → file name; a file name that could lead out of the directory is refused."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is missing or empty")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", shard):
            raise CheckpointError(f"{path}: {shard!r} is not the plain name of a .safetensors file beside it")
    return weight_map


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a directory without an index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        if any(next(folder.glob(pattern), None) for pattern in PICKLED):
            raise CheckpointError(f"{folder}: only pickled weights; they are never unpickled: convert to safetensors")
        raise CheckpointError(f"{folder}: there are no .safetensors files")
    for match in filter(None, (SHARD_OF.fullmatch(shard.name) for shard in shards)):
        width = len(match["index"])
        numbers = range(1, int(match["count"]) + 1)
        siblings = [folder / f"{match['stem']}-{i:0{width}}-of-{match['count']}.safetensors" for i in numbers]
        require_files(siblings)
    return shards


def require_files(shards: Iterable[Path]) -> None:
    """Raise one error that names every file that is not there."""
    absent = [shard for shard in shards if not shard.is_file()]
    if absent:
        missing = listing(("missing file", shard.name) for shard in absent)
        raise CheckpointError(f"{absent[0].parent}: the checkpoint is not complete\n{missing}")


def read_headers(shards: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of these files; a tensor that two of them hold is refused."""
    shards = list(shards)
    require_files(shards)
    tensors: dict[str, StoredTensor] = {}
    wrong: list[tuple[str, str]] = []
    for shard in shards:
        try:
            with safe_open(shard, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    header = file.get_slice(name)
                    if name in tensors:
                        wrong.append(("in two files", f"{name} ({tensors[name].shard.name}, {shard.name})"))
                    tensors[name] = StoredTensor(shard, tuple(header.get_shape()), header.get_dtype())
        except (SafetensorError, OSError) as error:
            wrong.append(("not readable as safetensors", f"{shard.name}: {error}"))
    if wrong:
        raise CheckpointError(f"{shards[0].parent}: the weights are damaged\n{listing(wrong)}")
    return tensors


def listing(wrong: Iterable[tuple[str, str]]) -> str:
    """One line for each (kind, what), sorted, with only the first of each kind spelled out."""
    by_kind: dict[str, list[str]] = {}
    for kind, what in wrong:
        by_kind.setdefault(kind, []).append(what)
    lines = []
    for kind, found in sorted(by_kind.items()):
        found.sort()
        lines += [f"  {kind}: {what}" for what in found[:LISTED_PER_KIND]]
        if len(found) > LISTED_PER_KIND:
            lines.append(f"  {kind}: … and {len(found) - LISTED_PER_KIND} more")
    return "\n".join(lines)
