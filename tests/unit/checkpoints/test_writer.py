import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

from services.checkpoints.__main__ import app
from services.checkpoints.writer import Plan, plan, write
from services.codec.weights import load as load_codec
from services.inference.checkpoint import INDEX, Checkpoint, CheckpointError
from services.inference.checkpoint_spec import open_checkpoint
from services.inference.random_checkpoint import SHAPES, RandomCheckpoint
from services.reasoner.weights import load as load_reasoner
from services.speech.weights import load as load_speech

CPU = torch.device("cpu")
SHARD_BYTES = 1_500_000  # several shards, and one tensor that is greater


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "new" / "tiny"
    write(RandomCheckpoint("tiny", 3), out, shard_bytes=SHARD_BYTES)
    return out


def tensors_of(planned: Plan) -> dict[str, tuple[int, ...]]:
    return {name: shape for shard in planned.shards for name, shape in shard.items()}


def count(tensors: dict[str, tuple[int, ...]], prefix: str) -> int:
    return sum(math.prod(shape) for name, shape in tensors.items() if name.startswith(prefix))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_published_shape_has_the_published_parameters() -> None:
    """Shapes only: nothing of this size is allocated. The counts are those of model.md A.4 and A.5."""
    planned = plan(RandomCheckpoint("chroma-4b"), shard_bytes=5 * 10**9)
    tensors = tensors_of(planned)
    embedding = count(tensors, "decoder.audio_embedding.")
    counts = {
        "thinker": count(tensors, "thinker."),
        "thinker table": count(tensors, "thinker.model.embed_tokens."),
        "thinker head": count(tensors, "thinker.lm_head."),
        "thinker layers": count(tensors, "thinker.model.layers."),
        "audio tower": count(tensors, "thinker.audio_tower."),
        "backbone": count(tensors, "backbone."),
        "codebook 0 head": count(tensors, "backbone.codebook0_head."),
        "audio embedding": embedding,
        "decoder": count(tensors, "decoder.") - embedding,
        "decoder model": count(tensors, "decoder.model."),
        "projection": count(tensors, "decoder.projection."),
        "codebook heads": count(tensors, "decoder.codebook_head."),
        "codec": count(tensors, "codec_model."),
        "codec decoder": count(tensors, "codec_model.decoder."),
        "codec decoder transformer": count(tensors, "codec_model.decoder_transformer."),
        "codec encoder": count(tensors, "codec_model.encoder."),
        "codec encoder transformer": count(tensors, "codec_model.encoder_transformer."),
        "codec quantizer": count(tensors, "codec_model.quantizer."),
    }
    assert counts == {
        "thinker": 4_703_464_448 - 668_684_288,  # without the vision tower
        "thinker table": 311_164_928,
        "thinker head": 311_164_928,
        "thinker layers": 2_774_771_712,
        "audio tower": 637_676_544,
        "backbone": 977_346_560,
        "codebook 0 head": 4_200_448,
        "audio embedding": 33_603_584,
        "decoder": 127_956_992,
        "decoder model": 111_158_272,
        "projection": 2_097_152,
        "codebook heads": 14_701_568,
        "codec": 83_519_305,
        "codec decoder": 14_724_641,
        "codec decoder transformer": 25_190_400,
        "codec encoder": 12_628_256,
        "codec encoder transformer": 25_190_400,
        "codec quantizer": 4_734_984,
    }
    assert sum(math.prod(shape) for shape in tensors.values()) == 5_925_890_889 - 668_684_288
    assert len(tensors) == 1_906 - 518
    # bfloat16 for the first, float32 for the rest: 12.96 GB.
    assert planned.total_bytes == 2 * counts["thinker"] + 4 * (5_925_890_889 - 4_703_464_448)


def test_tensors_of_the_published_shape_are_those_of_the_fact_sheet() -> None:
    """A sample of every family of model.md A.6."""
    tensors = tensors_of(plan(RandomCheckpoint("chroma-4b"), shard_bytes=5 * 10**9))
    sample = {
        "thinker.model.embed_tokens.weight": (151936, 2048),
        "thinker.model.layers.35.self_attn.q_proj.bias": (2048,),
        "thinker.model.layers.35.self_attn.k_proj.weight": (256, 2048),
        "thinker.model.layers.35.mlp.down_proj.weight": (2048, 11008),
        "thinker.audio_tower.conv1.weight": (1280, 128, 3),
        "thinker.audio_tower.proj.weight": (2048, 1280),
        "thinker.audio_tower.audio_bos_eos_token.weight": (2, 2048),
        "thinker.audio_tower.layers.31.self_attn.out_proj.bias": (1280,),
        "backbone.codebook0_head.weight": (2051, 2048),
        "backbone.model.layers.15.self_attn.k_proj.weight": (512, 2048),
        "decoder.audio_embedding.embed_audio_tokens.weight": (16408, 2048),
        "decoder.projection.weight": (1024, 2048),
        "decoder.codebook_head.weight": (7, 1024, 2051),
        "decoder.model.layers.3.mlp.gate_proj.weight": (8192, 1024),
        "codec_model.quantizer.acoustic_residual_vector_quantizer.layers.6.codebook.embed_sum": (2048, 256),
        "codec_model.quantizer.semantic_residual_vector_quantizer.input_proj.weight": (256, 512, 1),
        "codec_model.decoder_transformer.layers.7.self_attn_layer_scale.scale": (512,),
        "codec_model.upsample.conv.weight": (512, 1, 4),
        "codec_model.downsample.conv.weight": (512, 512, 4),
        "codec_model.decoder.layers.2.conv.weight": (1024, 512, 16),
        "codec_model.decoder.layers.14.conv.weight": (1, 64, 3),
        "codec_model.encoder.layers.0.conv.weight": (64, 1, 7),
    }
    assert {name: tensors.get(name) for name in sample} == sample
    assert "thinker.audio_tower.layers.0.self_attn.k_proj.bias" not in tensors
    assert "backbone.audio_embedding.embed_audio_tokens.weight" not in tensors


def test_shards_keep_their_size() -> None:
    checkpoint = RandomCheckpoint("tiny")
    whole, cut = plan(checkpoint, shard_bytes=5 * 10**9), plan(checkpoint, shard_bytes=SHARD_BYTES)
    assert len(whole.shards) == 1
    assert tensors_of(cut) == tensors_of(whole)
    assert cut.total_bytes == whole.total_bytes < 6_000_000
    sizes = [
        sum(math.prod(shape) * checkpoint.storage_dtype(name).itemsize for name, shape in shard.items())
        for shard in cut.shards
    ]
    assert all(size <= SHARD_BYTES or len(shard) == 1 for size, shard in zip(sizes, cut.shards, strict=True))
    assert any(size > SHARD_BYTES for size in sizes)
    assert all(a + b > SHARD_BYTES for a, b in itertools.pairwise(sizes))


def test_a_written_checkpoint_is_in_the_published_layout(written: Path) -> None:
    index = json.loads((written / INDEX).read_text())
    planned = plan(RandomCheckpoint("tiny"), shard_bytes=SHARD_BYTES)
    shards = [f"model-{i:05d}-of-{len(planned.shards):05d}.safetensors" for i in range(1, len(planned.shards) + 1)]
    beside = {file.name for file in (SHAPES / "tiny").iterdir()}
    assert {file.name for file in written.iterdir()} == beside | set(shards) | {INDEX}
    assert all((written / name).read_bytes() == (SHAPES / "tiny" / name).read_bytes() for name in beside)
    assert index["metadata"] == {"total_size": planned.total_bytes}
    assert set(index["weight_map"]) == set(tensors_of(planned))
    for shard in shards:
        with safe_open(written / shard, framework="pt") as file:
            assert set(file.keys()) == {name for name, where in index["weight_map"].items() if where == shard}
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                stored = "BF16" if name.startswith("thinker.") else "F32"
                assert file.get_slice(name).get_dtype() == stored
    assert len({file.stat().st_mode for file in written.iterdir()}) == 1


def test_every_tensor_on_disk_is_the_one_in_memory(written: Path) -> None:
    tensors = tensors_of(plan(RandomCheckpoint("tiny"), shard_bytes=SHARD_BYTES))
    modules = []
    for checkpoint in (open_checkpoint(str(written)), open_checkpoint("random:tiny:3")):
        module = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in tensors.values())
        names = {str(i): [name] for i, name in enumerate(tensors)}
        checkpoint.fill(module, names, own=("thinker.", "backbone.", "decoder.", "codec_model."))
        modules.append(module)
    assert all(torch.equal(a, b) for a, b in zip(*modules, strict=True))
    assert all(bool(parameter.isfinite().all()) for parameter in modules[0])


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(lambda checkpoint: load_reasoner(checkpoint, CPU, torch.float32), id="reasoner"),
        pytest.param(lambda checkpoint: load_reasoner(checkpoint, CPU, torch.bfloat16), id="reasoner-bfloat16"),
        pytest.param(lambda checkpoint: load_speech(checkpoint, CPU, torch.float32), id="speech"),
        pytest.param(lambda checkpoint: load_speech(checkpoint, CPU, torch.bfloat16), id="speech-bfloat16"),
        pytest.param(lambda checkpoint: load_codec(checkpoint, CPU).mimi, id="codec"),
    ],
)
def test_every_stage_loads_the_same_from_disk_and_memory(
    written: Path, load: Callable[[Checkpoint], nn.Module]
) -> None:
    stored = load(open_checkpoint(str(written))).state_dict()
    made = load(open_checkpoint("random:tiny:3")).state_dict()
    assert stored.keys() == made.keys()
    assert all(torch.equal(stored[name], made[name]) for name in made)


def test_the_same_spec_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write(RandomCheckpoint("tiny", 3), tmp_path / "again", shard_bytes=SHARD_BYTES)
    write(RandomCheckpoint("tiny", 4), tmp_path / "other", shard_bytes=SHARD_BYTES)
    assert digests(tmp_path / "again") == digests(written)
    assert digests(tmp_path / "other") != digests(written)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    told: list[int] = []
    planned = write(RandomCheckpoint("tiny"), tmp_path / "out", shard_bytes=SHARD_BYTES, progress=told.append)
    assert sum(told) == planned.total_bytes


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write(RandomCheckpoint("tiny"), out, shard_bytes=5 * 10**9)
    assert (out / "config.json").is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "full"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="already there and not an empty directory"):
        write(RandomCheckpoint("tiny"), out, shard_bytes=5 * 10**9)
    assert (out if kind == "file" else out / "mine").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(RandomCheckpoint("tiny"), tmp_path / "out", shard_bytes=5 * 10**9, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("services.checkpoints.writer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"needs 5,\d\d\d,\d\d\d bytes, and the disk has 1,000 left"):
        write(RandomCheckpoint("tiny"), tmp_path / "out", shard_bytes=5 * 10**9)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_says_so(written: Path, tmp_path: Path) -> None:
    arguments = ["random:tiny:3", "--out", str(tmp_path / "out"), "--shard-bytes", str(SHARD_BYTES)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (
        result.stdout
        == f"{tmp_path / 'out'}: 5,783,988 bytes of weights in {len(list(written.glob('model-*')))} files\n"
    )
    assert digests(tmp_path / "out") == digests(written)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("random:huge", "random:huge: unknown shape; there are chroma-4b, small, tiny"),
        ("tiny", "tiny: only random:<shape>[:<seed>] can be written"),
    ],
)
def test_the_command_refuses_what_it_cannot_write(tmp_path: Path, spec: str, told: str) -> None:
    result = CliRunner().invoke(app, [spec, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr == told + "\n"
    assert list(tmp_path.iterdir()) == []
