"""That random weights make a model which behaves like one: signals of a sane size, outputs that follow the inputs.

Built of the library's own modules, so that what is measured are the weights and not this project's networks.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel, MimiModel, Qwen2Config, Qwen2Model

from services.bench.plain_codec import plain_codec
from services.codec.weights import load
from services.inference.random_checkpoint import RandomCheckpoint

SPECS = ["random:tiny", "random:tiny:1", "random:small"]


@pytest.fixture(params=SPECS)
def checkpoint(request: pytest.FixtureRequest) -> RandomCheckpoint:
    return RandomCheckpoint.parse(request.param)


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.inference_mode():
        yield


def mimi_of(checkpoint: RandomCheckpoint) -> MimiModel:
    return plain_codec(load(checkpoint, torch.device("cpu")).mimi)


def stack_of(checkpoint: RandomCheckpoint, prefix: str, model: nn.Module) -> nn.Module:
    if prefix != "thinker.model.":
        model.embed_tokens = nn.Identity()
    checkpoint.fill(model, {name: [prefix + name] for name in model.state_dict()}, own=())
    return model.eval()


def llama(section: dict[str, Any]) -> LlamaModel:
    ours = {"model_type", "audio_num_codebooks", "audio_embedding_dim"}
    return LlamaModel(LlamaConfig(**{key: value for key, value in section.items() if key not in ours}))


def rms(signal: Tensor) -> float:
    return signal.square().mean().sqrt().item()


def tone(hertz: float, seconds: float = 1.0) -> Tensor:
    time = torch.arange(int(24_000 * seconds)) / 24_000
    return 0.1 * torch.sin(2 * torch.pi * hertz * time * (1 + 0.2 * time))


def test_decoded_codes_can_be_heard_and_are_not_clipped(checkpoint: RandomCheckpoint) -> None:
    mimi = mimi_of(checkpoint)
    codes = torch.randint(0, 2048, (1, 8, 40), generator=torch.Generator().manual_seed(0))
    audio = mimi.decode(codes).audio_values[0, 0]
    assert len(audio) == 40 * 1920
    assert 0.05 < rms(audio) < 0.3
    assert audio.abs().max() < 1
    assert abs(audio.mean()) < 0.1
    for codebook in range(8):
        changed = codes.clone()
        changed[0, codebook] = (changed[0, codebook] + 1) % 2048
        assert rms(mimi.decode(changed).audio_values[0, 0] - audio) > 0.01


def test_different_sounds_have_different_codes(checkpoint: RandomCheckpoint) -> None:
    mimi = mimi_of(checkpoint)
    low, high = (mimi.encode(tone(hertz)[None, None], num_quantizers=8).audio_codes[0] for hertz in (150.0, 900.0))
    assert (low != high).float().mean() > 0.9
    for codes in (low, high):
        assert all(len(set(codebook.tolist())) >= 3 for codebook in codes)


def reasoner_tokens(checkpoint: RandomCheckpoint, seed: int, steps: int) -> tuple[list[int], Tensor, Tensor]:
    """Greedy tokens after a random prompt; the states that led to them; the embedding table."""
    text = checkpoint.config["thinker_config"]["text_config"]
    vocabulary, hidden = text["vocab_size"], text["hidden_size"]
    section = {key: value for key, value in text.items() if key != "model_type"}
    section["rope_parameters"] = {"rope_type": "default", "rope_theta": text["rope_parameters"]["rope_theta"]}
    model = stack_of(checkpoint, "thinker.model.", Qwen2Model(Qwen2Config(**section)))
    head = checkpoint.tensor("thinker.lm_head.weight", (vocabulary, hidden)).float()
    ids = torch.randint(0, vocabulary, (1, 30), generator=torch.Generator().manual_seed(seed))
    cache, tokens, states = DynamicCache(), [], []
    for _ in range(steps):
        states.append(model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0, -1])
        ids = (head @ states[-1]).argmax()[None, None]
        tokens.append(int(ids))
    return tokens, torch.stack(states), model.get_input_embeddings().weight


def test_a_reply_is_neither_constant_nor_the_same_for_every_prompt(checkpoint: RandomCheckpoint) -> None:
    replies = []
    for seed in range(3):
        tokens, states, _ = reasoner_tokens(checkpoint, seed, steps=60)
        assert len(set(tokens)) > 20
        assert checkpoint.config["im_end_token_id"] not in tokens[:10]
        assert 0.8 < rms(states) < 1.2
        replies.append(tuple(tokens))
    assert len({reply[:10] for reply in replies}) == 3


def test_speech_follows_the_text_and_does_not_end_at_once(checkpoint: RandomCheckpoint) -> None:
    spoken = [frames(checkpoint, seed, count=20) for seed in range(2)]
    for utterance in spoken:
        assert all(any(frame[:7]) for frame in utterance)
        assert len(set(utterance)) > 15
        assert all(len({frame[codebook] for frame in utterance}) > 8 for codebook in range(8))
    assert sum(a == b for a, b in zip(*spoken, strict=True)) < 3


def frames(checkpoint: RandomCheckpoint, seed: int, count: int) -> list[tuple[int, ...]]:
    """Greedy frames for a reply to a random prompt: a step's state and token enter before every second frame."""
    config = checkpoint.config
    hidden, depth_hidden = config["backbone_config"]["hidden_size"], config["decoder_config"]["hidden_size"]
    rows = config["backbone_config"]["vocab_size"]
    backbone = stack_of(checkpoint, "backbone.model.", llama(config["backbone_config"]))
    depth = stack_of(checkpoint, "decoder.model.", llama(config["decoder_config"]))
    first_head = checkpoint.tensor("backbone.codebook0_head.weight", (rows, hidden))
    codes = checkpoint.tensor("decoder.audio_embedding.embed_audio_tokens.weight", (8 * rows, hidden)).view(8, rows, -1)
    projection = checkpoint.tensor("decoder.projection.weight", (depth_hidden, hidden))
    heads = checkpoint.tensor("decoder.codebook_head.weight", (7, depth_hidden, rows))
    tokens, states, table = reasoner_tokens(checkpoint, seed, steps=count)

    cache, spoken = DynamicCache(), []
    inputs = [table[config["text_start_token_id"]], table[config["text_end_token_id"]], torch.zeros(hidden)]
    for index in range(count):
        if index % 2 == 0:
            inputs += [states[index // 2], table[tokens[index // 2]]]
        output = backbone(inputs_embeds=torch.stack(inputs)[None], past_key_values=cache, use_cache=True)
        state = output.last_hidden_state[0, -1]
        frame = [int((first_head @ state)[:2048].argmax())]
        sequence = [state, codes[0, frame[0]]]
        for codebook in range(1, 8):
            inside = depth(inputs_embeds=(torch.stack(sequence) @ projection.T)[None], use_cache=False)
            frame.append(int((inside.last_hidden_state[0, -1] @ heads[codebook - 1])[:2048].argmax()))
            sequence.append(codes[codebook, frame[-1]])
        spoken.append(tuple(frame))
        inputs = [sum((codes[k, code] for k, code in enumerate(frame)), torch.zeros(hidden))]
    return spoken
