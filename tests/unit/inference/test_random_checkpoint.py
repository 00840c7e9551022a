import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from services.inference.checkpoint import CheckpointError
from services.inference.checkpoint_spec import open_checkpoint
from services.inference.random_checkpoint import SHAPES, RandomCheckpoint, known_shapes, normal

CPU = torch.device("cpu")
SHAPE_NAMES = ["chroma-4b", "small", "tiny"]
# One of each kind, as the published layout has them.
KINDS = {
    "thinker.model.embed_tokens.weight": (50, 32),
    "thinker.model.layers.1.self_attn.q_proj.weight": (32, 32),
    "thinker.model.layers.1.self_attn.q_proj.bias": (32,),
    "thinker.audio_tower.conv1.weight": (32, 12, 3),
    "backbone.model.norm.weight": (32,),
    "decoder.audio_embedding.embed_audio_tokens.weight": (90, 32),
    "decoder.codebook_head.weight": (7, 24, 2051),
    "codec_model.upsample.conv.weight": (32, 1, 4),
    "codec_model.decoder_transformer.layers.0.mlp_layer_scale.scale": (32,),
    "codec_model.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum": (64, 16),
    "codec_model.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.cluster_usage": (64,),
    "codec_model.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.initialized": (1,),
}


def holder(tensors: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in tensors.values())


def filled(spec: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    module = holder(KINDS, dtype)
    open_checkpoint(spec).fill(module, {str(i): [name, "another"] for i, name in enumerate(KINDS)}, own=())
    return dict(zip(KINDS, module.state_dict().values(), strict=True))


def test_the_numbers_never_change() -> None:
    """Other machines hold checkpoints that were made of them; computed with Python's integers, apart from the code."""
    key, mask = 0xFEDCBA9876543210, (1 << 64) - 1
    expected = []
    for element in (0, 1, 2, 10**12):
        z = (key + (element + 1) * 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        z ^= z >> 31
        total = sum(z >> shift & 0xFFFF for shift in (0, 16, 32, 48))
        factor = torch.tensor(3.0 / math.sqrt(4 * (2**32 - 1) / 12))
        expected.append(torch.tensor(float(total - 131070)) * factor)
    made = [normal(key, start, 1, std=3.0, device=CPU) for start in (0, 1, 2, 10**12)]
    assert torch.equal(torch.cat(made), torch.stack(expected))


def test_the_numbers_are_those_of_a_normal_distribution() -> None:
    numbers = normal(17, 0, 1 << 18, std=2.0, device=CPU)
    assert abs(numbers.mean()) < 0.02
    assert numbers.std() == pytest.approx(2.0, rel=0.01)
    assert numbers.abs().max() < 2 * 3.47
    assert abs((numbers[1:] * numbers[:-1]).mean()) < 0.03


def test_numbers_do_not_depend_on_how_they_are_cut() -> None:
    whole = normal(99, 0, 1000, std=1.0, device=CPU)
    parts = [normal(99, start, 250, std=1.0, device=CPU) for start in range(0, 1000, 250)]
    assert torch.equal(torch.cat(parts), whole)
    large = RandomCheckpoint("tiny").tensor("backbone.codebook0_head.weight", (2051, 64))  # more than one block
    rows = RandomCheckpoint("tiny").tensor("backbone.codebook0_head.weight", (3, 64))
    assert torch.equal(large[:3], rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_bits() -> None:
    gpu = torch.device("cuda")
    for start in (0, 123_456_789_012):
        made = normal(1 << 63 | 5, start, 1 << 20, std=0.0123, device=gpu)
        assert torch.equal(made.cpu(), normal(1 << 63 | 5, start, 1 << 20, std=0.0123, device=CPU))
    for dtype in (torch.float32, torch.bfloat16):
        module = holder(KINDS, dtype).to(gpu)
        RandomCheckpoint("tiny").fill(module, {str(i): [name] for i, name in enumerate(KINDS)}, own=())
        for made, expected in zip(module.state_dict().values(), filled("random:tiny", dtype).values(), strict=True):
            assert torch.equal(made.cpu(), expected)


def test_same_seed_same_weights() -> None:
    first, second = filled("random:tiny:7"), filled("random:tiny:7")
    assert all(torch.equal(first[name], second[name]) for name in KINDS)
    default, zero = filled("random:tiny"), filled("random:tiny:0")
    assert all(torch.equal(default[name], zero[name]) for name in KINDS)


def test_another_seed_or_name_gives_other_weights() -> None:
    first, second = filled("random:tiny:7"), filled("random:tiny:8")
    assert [name for name in KINDS if torch.equal(first[name], second[name])] == [
        "codec_model.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.initialized"
    ]
    checkpoint = RandomCheckpoint("tiny")
    shape = (32, 32)
    layers = [checkpoint.tensor(f"backbone.model.layers.{i}.self_attn.k_proj.weight", shape) for i in range(2)]
    correlation = torch.corrcoef(torch.stack([layer.flatten() for layer in layers]))[0, 1]
    assert abs(correlation) < 0.1


def test_the_first_name_is_the_one_that_counts() -> None:
    made = filled("random:tiny")
    for name, shape in KINDS.items():
        assert torch.equal(made[name], RandomCheckpoint("tiny").tensor(name, shape).float())


def test_weights_are_rounded_as_if_they_had_been_stored() -> None:
    checkpoint = RandomCheckpoint("tiny")
    dtypes = {name.partition(".")[0]: checkpoint.storage_dtype(name) for name in KINDS}
    assert dtypes == {
        "thinker": torch.bfloat16,
        "backbone": torch.float32,
        "decoder": torch.float32,
        "codec_model": torch.float32,
    }
    for dtype in (torch.float32, torch.bfloat16):
        for name, made in filled("random:tiny", dtype).items():
            stored = checkpoint.tensor(name, KINDS[name])
            assert stored.dtype == checkpoint.storage_dtype(name)
            assert torch.equal(made, stored.to(dtype))


@pytest.mark.parametrize(
    ("name", "shape", "mean", "std"),
    [
        ("thinker.lm_head.weight", (300, 64), 0, 1 / 8),
        ("backbone.model.layers.0.mlp.down_proj.weight", (64, 256), 0, 1 / 16),
        ("thinker.audio_tower.layers.0.self_attn.q_proj.weight", (64, 64), 0, 2 / 8),
        ("backbone.model.layers.0.self_attn.o_proj.weight", (64, 64), 0, 1 / 8),
        ("thinker.model.embed_tokens.weight", (100, 64), 0, 1),
        ("decoder.audio_embedding.embed_audio_tokens.weight", (100, 64), 0, 1 / math.sqrt(8)),
        ("decoder.codebook_head.weight", (7, 16, 100), 0, 1 / 4),
        ("codec_model.decoder.layers.0.conv.weight", (64, 32, 7), 0, 1 / math.sqrt(32 * 7)),
        ("codec_model.decoder.layers.2.conv.weight", (64, 32, 16), 0, 1 / math.sqrt(2 * 64)),  # transposed
        ("codec_model.encoder.layers.12.conv.weight", (64, 32, 16), 0, 1 / math.sqrt(32 * 16)),
        ("codec_model.upsample.conv.weight", (512, 1, 4), 0, 1 / math.sqrt(2)),
        ("codec_model.downsample.conv.weight", (32, 32, 4), 0, 1 / math.sqrt(32 * 4)),
        ("codec_model.encoder.layers.0.conv.weight", (512, 1, 7), 0, 10 / math.sqrt(7)),
        ("codec_model.decoder.layers.14.conv.weight", (1, 512, 3), 0, 0.1 / math.sqrt(512 * 3)),
        ("codec_model.quantizer.x.output_proj.weight", (64, 16, 1), 0, 1 / 4),
        ("backbone.model.norm.weight", (2000,), 1, 0.1),
        ("thinker.audio_tower.ln_post.weight", (2000,), 1, 0.1),
        ("thinker.audio_tower.ln_post.bias", (2000,), 0, 0.02),
        ("codec_model.encoder_transformer.layers.0.mlp_layer_scale.scale", (2000,), 0.01, 0.001),
        ("codec_model.quantizer.x.layers.0.codebook.embed_sum", (100, 64), 0, 1),
        ("codec_model.quantizer.x.layers.0.codebook.cluster_usage", (2000,), 1, 0.1),
        ("codec_model.quantizer.x.layers.0.codebook.initialized", (1,), 1, 0),
    ],
)
def test_each_kind_of_tensor_has_its_scale(name: str, shape: Sequence[int], mean: float, std: float) -> None:
    made = RandomCheckpoint("tiny").tensor(name, shape).float()
    assert made.mean().item() == pytest.approx(mean, abs=0.1 * std + 1e-6)
    assert made.std(correction=0).item() == pytest.approx(std, rel=0.05)


def test_the_shapes_are_known() -> None:
    assert known_shapes() == SHAPE_NAMES
    assert open_checkpoint("random:small").folder == SHAPES / "small"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("random:huge", "random:huge: unknown shape; there are chroma-4b, small, tiny"),
        ("random:../shapes/tiny", "unknown shape"),
        ("random:", "expected random:<shape>"),
        ("random:tiny:", "whole number"),
        ("random:tiny:x", "whole number"),
        ("random:tiny:-1", "whole number"),
        ("random:tiny:1:2", "whole number"),
    ],
)
def test_another_spec_is_refused(spec: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(spec)


def test_a_name_map_that_is_not_the_modules_is_our_bug() -> None:
    with pytest.raises(ValueError, match="weight"):
        RandomCheckpoint("tiny").fill(nn.Linear(2, 2), {"bias": ["backbone.bias"]}, own=())


# Files beside the weights


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_token_ids_of_config_and_tokenizer_agree(shape: str) -> None:
    config = json.loads((SHAPES / shape / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(SHAPES / shape)
    thinker = config["thinker_config"]
    ids = {
        "<|im_end|>": config["im_end_token_id"],
        "<|text_start|>": config["text_start_token_id"],
        "<|text_end|>": config["text_end_token_id"],
        "<|endoftext|>": thinker["pad_token_id"],
        "<|AUDIO|>": thinker["audio_token_index"],
        "<|audio_bos|>": thinker["audio_start_token_id"],
        "<|audio_eos|>": thinker["audio_end_token_id"],
        "<|vision_bos|>": thinker["vision_start_token_id"],
        "<|vision_eos|>": thinker["vision_end_token_id"],
        "<|IMAGE|>": thinker["image_token_index"],
        "<|VIDEO|>": thinker["video_token_index"],
    }
    for token, index in ids.items():
        assert tokenizer.convert_tokens_to_ids(token) == index
        assert tokenizer(f"a{token}b")["input_ids"][1] == index
    assert max(tokenizer.get_vocab().values()) < thinker["text_config"]["vocab_size"]
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token == "<|im_end|>"


def test_special_tokens_of_the_published_shape_have_the_published_ids() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHAPES / "chroma-4b")
    published = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|AUDIO|>": 151646,
        "<|audio_bos|>": 151647,
        "<|audio_eos|>": 151648,
        "<|vision_bos|>": 151652,
        "<|vision_eos|>": 151653,
        "<|IMAGE|>": 151655,
        "<|VIDEO|>": 151656,
        "<|text_start|>": 151665,
        "<|text_end|>": 151666,
    }
    assert tokenizer.convert_tokens_to_ids(list(published)) == list(published.values())
    assert sorted(tokenizer.all_special_ids) == sorted(published.values())


@pytest.mark.parametrize("shape", SHAPE_NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "Hello, how are you today?",
        "  two  spaces,\n\nlines\r\n and\ttabs \n",
        "it's WE'LL 12345 naïve Straße 東京 🙂 \u200d\x00",
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>hm<|im_end|>\n",
        "",
    ],
)
def test_text_comes_back_from_its_tokens(shape: str, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHAPES / shape)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_every_id_of_the_embedding_table_can_be_decoded(shape: str) -> None:
    config = json.loads((SHAPES / shape / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(SHAPES / shape)
    size = config["thinker_config"]["text_config"]["vocab_size"]
    used = set(tokenizer.get_vocab().values())
    assert all(tokenizer.decode([index]) for index in used)
    unused = [index for index in range(size) if index not in used]
    assert tokenizer.decode(unused) == ""
    assert bool(unused) == (shape == "chroma-4b")


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_the_chat_template_is_the_models(shape: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHAPES / shape)
    audio = {"role": "user", "content": [{"type": "audio", "audio": "x.wav"}, {"type": "text", "text": " Please. "}]}
    rendered = tokenizer.apply_chat_template([audio], tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|> Please. <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Hello\n"},
        {"role": "assistant", "content": "Hi"},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello\n<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n"
    )


def test_the_chat_template_is_one() -> None:
    assert len({(SHAPES / shape / "chat_template.jinja").read_text() for shape in SHAPE_NAMES}) == 1


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_a_shape_has_the_published_files(shape: str) -> None:
    names = {file.name for file in Path(SHAPES / shape).iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
