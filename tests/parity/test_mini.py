"""What is trained is what is shipped: the training's modules agree with the oracle on the exported checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Case, Oracle
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel

from mini.checkpoint import write
from mini.codec import rounded
from mini.domain import Exchange, vocabulary
from mini.reasoner import Conversation, Reasoner
from mini.sizes import CODEBOOKS, CODEC, CODES, HIDDEN
from mini.speech import Speech, Task, Utterance, speak
from mini.tokenizer import build

STEP_COUNTS = {word: 1 + len(word) // 4 for word in vocabulary()}
TOKENIZER = build(STEP_COUNTS)
EXCHANGE = Exchange("sum", "what is two plus two", "two plus two is four")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights, kept as training keeps them."""
    folder = tmp_path_factory.mktemp("state")
    torch.manual_seed(0)
    (folder / "step_counts.json").write_text(json.dumps(STEP_COUNTS))
    for name, module in (("reasoner", Reasoner(TOKENIZER)), ("speech_joined", Speech(TOKENIZER.get_vocab_size()))):
        torch.save({"module": as_shipped(module).state_dict()}, folder / f"{name}.pt")
    codec = MimiModel(MimiConfig(**CODEC))
    parts = codec.quantizer
    quantizers = (parts.semantic_residual_vector_quantizer, parts.acoustic_residual_vector_quantizer)
    for layer in (layer for quantizer in quantizers for layer in quantizer.layers):
        layer.codebook.embed_sum.normal_()
        layer.codebook.cluster_usage.fill_(1.0)
    rounded(codec).save_pretrained(folder / "codec")
    return folder


@pytest.fixture(scope="module")
def oracle(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder = tmp_path_factory.mktemp("exported") / "checkpoint"
    assert write(state, folder) < 25 * 10**6
    return Oracle(folder)


def as_shipped(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.bfloat16().float())
    return module


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_reasoner_reads_the_same(state: Path, oracle: Oracle) -> None:
    clip = np.random.default_rng(0).normal(0, 0.1, 37000).astype(np.float32)
    content = [{"type": "audio", "audio": ""}]
    case = Case([{"role": "user", "content": content}], [clip], "hello", np.zeros(1920, np.float32), 2)
    _, steps = oracle._reason(case)
    model = Reasoner(TOKENIZER)
    model.load_state_dict(torch.load(state / "reasoner.pt", weights_only=True)["module"])
    read = model.eval()([Conversation(EXCHANGE, (clip,))])
    first = read.states[read.predicting][0]
    torch.testing.assert_close(first, steps[0][1], rtol=1e-4, atol=1e-4)
    assert int(model.lm_head(first).argmax()) == steps[0][0]


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_speech_stage_speaks_the_same(state: Path, oracle: Oracle) -> None:
    model = Speech(TOKENIZER.get_vocab_size())
    model.load_state_dict(torch.load(state / "speech_joined.pt", weights_only=True)["module"])
    prompt, target = utterance("hello how can i help you", 1), utterance(EXCHANGE.answer, 2)
    hidden = torch.randn(len(target.token_ids), HIDDEN, generator=torch.Generator().manual_seed(3))
    task = Task(prompt, target, hidden)
    made = speak(model.eval(), [task])[0]
    steps = list(zip(target.token_ids.tolist(), hidden, strict=True))
    said = oracle._speak(prompt.token_ids[:-1].tolist(), prompt.codes, steps, len(made))
    torch.testing.assert_close(made, said)

    fed = Task(prompt, Utterance("", "", target.token_ids, made), hidden)
    for level, predicted in enumerate(model([fed], [made])):
        found = predicted.logits[: len(made), :CODES].argmax(dim=1)
        assert (found == made[:, level]).float().mean() > 0.9, "what training predicts is what is spoken"


def utterance(sentence: str, seed: int) -> Utterance:
    ids: Tensor = torch.tensor([*TOKENIZER.encode(sentence).ids, 2])
    chance = torch.Generator().manual_seed(seed)
    return Utterance("ash", sentence, ids, torch.randint(1, CODES, (2 * len(ids) + 2, CODEBOOKS), generator=chance))
