"""Finding what is wrong with a downloaded checkpoint."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.checkpoint_folder import INDEX, NEEDED, CheckpointFolder, check_folder
from client.errors import ClientError
from client.weights import check_weights

ANY_FOLDER = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def safetensors(*names: str) -> bytes:
    """A file of 2 × 3 tensors in bfloat16."""
    header = {
        name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [12 * index, 12 * index + 12]}
        for index, name in enumerate(names)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(12 * len(names))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint of two shards."""
    for name in NEEDED:
        (tmp_path / name).write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(safetensors("x", "y"))
    (tmp_path / "b.safetensors").write_bytes(safetensors("z"))
    index = {"weight_map": {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


def test_a_sound_checkpoint_has_no_problems(folder):
    assert check_folder(folder) == (CheckpointFolder(shard_count=2, tensor_count=3, weight_bytes=36), [])
    assert check_weights(folder).tensor_count == 3


def test_one_file_without_an_index_is_a_checkpoint_too(folder):
    (folder / INDEX).unlink()
    (folder / "a.safetensors").rename(folder / "model.safetensors")
    assert check_folder(folder) == (CheckpointFolder(1, 2, 24), [])


@ANY_FOLDER
@given(st.data())
def test_a_shard_of_any_other_length_is_found(folder, data):
    whole = safetensors("x", "y")
    length = data.draw(st.integers(0, 2 * len(whole)).filter(lambda length: length != len(whole)))
    (folder / "a.safetensors").write_bytes((whole + bytes(len(whole)))[:length])
    _, problems = check_folder(folder)
    assert len(problems) == 1
    assert "a.safetensors" in problems[0]


@ANY_FOLDER
@given(st.binary())
def test_any_bytes_in_any_file_are_found_or_sound(folder, data):
    for name in (*NEEDED, INDEX, "a.safetensors"):
        saved = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        _, problems = check_folder(folder)
        assert problems
        (folder / name).write_bytes(saved)


@pytest.mark.parametrize("name", [*NEEDED, INDEX, "a.safetensors"])
def test_a_file_that_is_missing_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ClientError, match="not a complete checkpoint") as caught:
        check_weights(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 10]}, "has 10 bytes, its type and shape need 12"),
        ({"dtype": "BF16", "shape": [2, 3], "data_offsets": [2, 14]}, "starts at byte 2, expected 0"),
        ({"dtype": "X9", "shape": [2, 3], "data_offsets": [0, 12]}, "cannot be read"),
        ({"dtype": "BF16", "shape": "ab", "data_offsets": [0, 12]}, "cannot be read"),
        ({"dtype": "BF16", "shape": [2, 3]}, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_header_that_contradicts_itself_is_found(folder, entry, said):
    text = json.dumps({"z": entry}).encode()
    (folder / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    _, problems = check_folder(folder)
    assert len(problems) == 1
    assert said in problems[0]


def test_a_tensor_that_is_not_where_the_index_says_is_found(folder):
    index = {"weight_map": {"x": "a.safetensors", "z": "a.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    _, problems = check_folder(folder)
    assert problems == [f"a.safetensors lacks 1 of the tensors that {INDEX} puts there, first z"]


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "a.bin", 7])
def test_an_index_stays_in_its_folder(folder, shard):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": shard}}))
    _, problems = check_folder(folder)
    assert "not a safetensors file of this folder" in problems[0]
