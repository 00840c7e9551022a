import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from services.inference.checkpoint import Checkpoint, CheckpointError, section
from services.inference.checkpoint_spec import open_checkpoint

INDEX = "model.safetensors.index.json"
CONFIG = {"model_type": "chroma", "backbone_config": {"hidden_size": 4}}
TENSORS = {
    "mine.up.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "mine.up.bias": torch.tensor([1.5, -2.0, 0.1], dtype=torch.bfloat16),
    "mine.spare.weight": torch.ones(2),
    "theirs.weight": torch.zeros(5),
}
NAMES = {"up.weight": ["mine.up.weight"], "up.bias": ["mine.up.bias"]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 3)


def folder_of(path: Path, shards: Mapping[str, Mapping[str, torch.Tensor]], config: object = CONFIG) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, tensors in shards.items():
        save_file(dict(tensors), path / name)
    return path


def write_index(path: Path, weight_map: object) -> None:
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def some(*names: str) -> dict[str, torch.Tensor]:
    return {name: TENSORS[name] for name in names}


def fill(
    checkpoint: Checkpoint,
    names: Mapping[str, Sequence[str]] = NAMES,
    own: Sequence[str] = ("mine.",),
    foreign: Sequence[str] = ("theirs.",),
    unused: Sequence[str] = ("mine.spare.",),
) -> Model:
    model = Model()
    checkpoint.fill(model, names, own=own, foreign=foreign, unused=unused)
    return model


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        fill(open_checkpoint(str(path)))
    return str(caught.value)


def assert_filled(model: Model) -> None:
    assert torch.equal(model.up.weight, TENSORS["mine.up.weight"])
    assert torch.equal(model.up.bias, TENSORS["mine.up.bias"].float())


def test_one_file_is_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": TENSORS})))
    assert checkpoint.config == CONFIG
    assert checkpoint.folder == tmp_path
    assert_filled(fill(checkpoint))


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    first, second = some("mine.up.weight"), some("mine.up.bias", "mine.spare.weight", "theirs.weight")
    folder_of(tmp_path, {"one.safetensors": first, "two.safetensors": second})
    write_index(tmp_path, dict.fromkeys(first, "one.safetensors") | dict.fromkeys(second, "two.safetensors"))
    (tmp_path / "stale.safetensors").write_bytes(b"not in the index, so not looked at")
    assert_filled(fill(open_checkpoint(str(tmp_path))))


def test_shards_are_read_without_an_index(tmp_path: Path) -> None:
    folder_of(
        tmp_path,
        {
            "model-00001-of-00002.safetensors": some("mine.up.weight"),
            "model-00002-of-00002.safetensors": some("mine.up.bias", "theirs.weight"),
        },
    )
    assert_filled(fill(open_checkpoint(str(tmp_path))))


def test_links_out_of_the_directory_are_followed(tmp_path: Path) -> None:
    """A hub's cache is made of them: snapshots/<revision>/model.safetensors → ../../blobs/<hash>."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "revision"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file(TENSORS, blobs / "0a1b")
    (blobs / "2c3d").write_text(json.dumps(CONFIG))
    (blobs / "4e5f").write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "part.safetensors")}))
    for name, blob in {"part.safetensors": "0a1b", "config.json": "2c3d", INDEX: "4e5f"}.items():
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    assert_filled(fill(open_checkpoint(str(snapshot))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_take_the_modules_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": TENSORS})))
    model = Model().to(dtype)
    before = model.up.weight
    checkpoint.fill(model, NAMES, own=["mine."], foreign=["theirs."], unused=["mine.spare."])
    assert model.up.weight is before
    assert torch.equal(model.up.weight, TENSORS["mine.up.weight"].to(dtype))
    assert torch.equal(model.up.bias, TENSORS["mine.up.bias"].to(dtype))


def test_the_first_candidate_that_is_stored_wins(tmp_path: Path) -> None:
    copies = {"tied.bias": torch.zeros(3), "other.bias": torch.ones(3)}
    checkpoint = open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": TENSORS | copies})))
    names = {**NAMES, "up.bias": ["absent.bias", "tied.bias", "other.bias"]}
    model = fill(checkpoint, names, unused=["mine.spare.", "mine.up.bias"])
    assert torch.equal(model.up.bias, torch.zeros(3))


def test_only_the_tensors_asked_for_come_off_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Watched:
        def __init__(self, *args: object, **keywords: object) -> None:
            self.opened = safe_open(*args, **keywords)

        def __enter__(self) -> "Watched":
            self.file = self.opened.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.opened.__exit__(*error)

        def keys(self) -> list[str]:
            return self.file.keys()

        def get_slice(self, name: str) -> object:
            return self.file.get_slice(name)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.file.get_tensor(name)

    from safetensors import safe_open

    monkeypatch.setattr("services.inference.checkpoint.safe_open", Watched)
    fill(open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": TENSORS}))))
    assert sorted(read) == ["mine.up.bias", "mine.up.weight"]


def test_all_that_does_not_fit_is_told_at_once_and_nothing_is_copied(tmp_path: Path) -> None:
    stored = {
        "mine.up.weight": torch.zeros(4, 3),
        "mine.extra": torch.zeros(1),
        "mine.spare.weight": torch.zeros(1),
        "theirs.weight": torch.zeros(1),
        "nobodys.weight": torch.zeros(1),
    }
    checkpoint = open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": stored})))
    model = Model()
    before = model.up.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.fill(
            model,
            {"up.weight": ["mine.up.weight"], "up.bias": ["mine.up.bias", "mine.up.b"]},
            own=["mine."],
            foreign=["theirs."],
            unused=["mine.spare."],
        )
    assert str(caught.value).splitlines()[1:] == [
        "  missing: mine.up.bias or mine.up.b",
        "  unexpected: mine.extra",
        "  unexpected: nobodys.weight",
        "  wrong shape: mine.up.weight is [4, 3], expected [3, 4]",
    ]
    assert torch.equal(model.up.weight, before)


def test_a_second_copy_of_another_shape_is_refused(tmp_path: Path) -> None:
    stored = TENSORS | {"tied.bias": torch.zeros(7)}
    checkpoint = open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": stored})))
    with pytest.raises(CheckpointError, match=r"wrong shape: tied\.bias is \[7\], expected \[3\]"):
        fill(checkpoint, {**NAMES, "up.bias": ["mine.up.bias", "tied.bias"]})


def test_quantised_integers_are_not_taken_for_weights(tmp_path: Path) -> None:
    stored = TENSORS | {"mine.up.bias": torch.zeros(3, dtype=torch.int8)}
    folder_of(tmp_path, {"model.safetensors": stored})
    assert "wrong type: mine.up.bias is I8, expected floating point" in error_of(tmp_path)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    stored = TENSORS | {f"mine.extra.{i:02}": torch.zeros(1) for i in range(50)}
    lines = error_of(folder_of(tmp_path, {"model.safetensors": stored})).splitlines()
    assert lines[1] == "  unexpected: mine.extra.00"
    assert lines[-1] == "  unexpected: … and 30 more"
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ({"up.weight": ["mine.up.weight"]}, "up.bias"),
        ({**NAMES, "down.weight": ["mine.down.weight"]}, "down.weight"),
        ({**NAMES, "up.bias": []}, "up.bias"),
    ],
)
def test_a_name_map_that_is_not_the_modules_is_our_bug(
    tmp_path: Path, names: Mapping[str, Sequence[str]], named: str
) -> None:
    checkpoint = open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": TENSORS})))
    with pytest.raises(ValueError, match=named):
        fill(checkpoint, names)


def test_a_module_without_memory_is_our_bug(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(folder_of(tmp_path, {"model.safetensors": TENSORS})))
    with torch.device("meta"):
        model = Model()
    with pytest.raises(ValueError, match=r"up\.weight"):
        checkpoint.fill(model, NAMES, own=["mine."], foreign=["theirs."], unused=["mine.spare."])


def test_no_such_directory(tmp_path: Path) -> None:
    assert "no such directory" in error_of(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "not a directory" in error_of(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no config.json"),
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "model_type is None, expected 'chroma'"),
        ('{"model_type": "llama"}', "model_type is 'llama', expected 'chroma'"),
        ("\udcff", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_config_is_required(tmp_path: Path, text: str | None, told: str) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert told in error_of(tmp_path)


@pytest.mark.parametrize(
    "weight_map",
    [None, {}, [], "model.safetensors", {"a": 3}, {"a": None}, {"a": "weights.bin"}],
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, weight_map: object) -> None:
    folder_of(tmp_path, {"model.safetensors": TENSORS})
    write_index(tmp_path, weight_map)
    assert INDEX in error_of(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../out.safetensors", "/etc/out.safetensors", "a/../../out.safetensors", "..\\out.safetensors", "a\0.safetensors"],
)
def test_an_index_cannot_lead_out_of_the_directory(tmp_path: Path, shard: str) -> None:
    folder = folder_of(tmp_path / "checkpoint", {"model.safetensors": TENSORS})
    save_file(TENSORS, tmp_path / "out.safetensors")
    write_index(folder, dict.fromkeys(TENSORS, shard))
    assert "is not the plain name of a .safetensors file" in error_of(folder)


def test_every_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, {"b.safetensors": some("mine.up.bias")})
    write_index(tmp_path, {"mine.up.bias": "b.safetensors", "x": "a.safetensors", "y": "c.safetensors"})
    message = error_of(tmp_path)
    assert "missing file: a.safetensors" in message
    assert "missing file: c.safetensors" in message
    assert "b.safetensors" not in message


def test_a_numbered_shard_that_is_not_there_is_named_without_an_index(tmp_path: Path) -> None:
    folder_of(tmp_path, {"model-00001-of-00002.safetensors": TENSORS})
    assert "missing file: model-00002-of-00002.safetensors" in error_of(tmp_path)


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    folder_of(tmp_path, {})
    (tmp_path / "model-00001-of-00001.safetensors").symlink_to("../blobs/gone")
    assert "missing file: model-00001-of-00001.safetensors" in error_of(tmp_path)


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.safetensors": some("mine.up.weight"), "b.safetensors": some("mine.up.bias")})
    write_index(
        tmp_path,
        {"mine.up.weight": "b.safetensors", "mine.up.bias": "b.safetensors", "mine.gone": "a.safetensors"},
    )
    message = error_of(tmp_path)
    assert "mine.up.weight (b.safetensors)" in message
    assert "mine.gone (a.safetensors)" in message
    assert "mine.up.bias" not in message


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.safetensors": some("mine.up.weight"), "b.safetensors": TENSORS})
    assert "in two files: mine.up.weight (a.safetensors, b.safetensors)" in error_of(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    folder_of(tmp_path, {"model.safetensors": TENSORS})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "not readable as safetensors: model.safetensors" in error_of(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04 this is not safetensors",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 66) + b'{"mine.up.bias":{"dtype":"F32","shape":[9],"data_offsets":[0,12]}}' + bytes(12),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    folder_of(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(data)
    assert "not readable as safetensors: model.safetensors" in error_of(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = folder_of(tmp_path / "checkpoint", {})
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    (folder / "configuration_chroma.py").write_text("import pathlib; pathlib.Path('exploded').touch()")
    message = error_of(folder)
    if name != "model.safetensors":
        assert "never unpickled: convert to safetensors" in message
    assert not (tmp_path / "exploded").exists()


def test_pickled_weights_beside_safetensors_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, {"model.safetensors": TENSORS})
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert_filled(fill(open_checkpoint(str(tmp_path))))
    assert not (tmp_path / "exploded").exists()


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    assert "there are no .safetensors files" in error_of(folder_of(tmp_path, {}))


def test_a_section_that_is_missing_is_named() -> None:
    assert section(CONFIG, "backbone_config", "hidden_size") == 4
    with pytest.raises(CheckpointError, match=r"^config\.json: backbone_config\.layers is missing$"):
        section(CONFIG, "backbone_config", "layers")
    with pytest.raises(CheckpointError, match=r"^config\.json: codec_config is missing$"):
        section(CONFIG, "codec_config", "hidden_size")
    with pytest.raises(CheckpointError, match=r"backbone_config\.hidden_size is 4, expected an object"):
        section(CONFIG, "backbone_config", "hidden_size", "more")
