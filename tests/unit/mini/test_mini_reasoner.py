"""What the reasoner learns from a batch is what it learns from its conversations one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import mini
from mini.domain import follow_ups, single_exchanges
from mini.hearing import HOP_SAMPLES, Hearing, alike_in_length
from mini.reasoner import Conversation, Reasoner, loss

TOKENIZER = Path(mini.__file__).parent / "checkpoint" / "tokenizer.json"
SECOND = 16000


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without bfloat16: what a batch adds up to in another order shows in the last bits alone."""
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)


@pytest.mark.parametrize("together", [1, 2, 3, 10])
def test_batches_hold_each_place_once_and_rise_in_length(together: int) -> None:
    lengths = [5, 1, 4, 4, 9, 2, 7]
    batches = alike_in_length(lengths, together)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert [lengths[index] for batch in batches for index in batch] == sorted(lengths)
    assert all(1 <= len(batch) <= together for batch in batches)


def test_a_clip_is_heard_as_it_is_alone() -> None:
    torch.manual_seed(0)
    hearing = Hearing().eval()
    chance = np.random.default_rng(0)
    lengths = [3 * SECOND, 1000, 2 * SECOND, HOP_SAMPLES, 5 * SECOND + 77, *chance.integers(500, 60000, 15)]
    clips = [chance.standard_normal(length).astype(np.float32) for length in lengths]
    with torch.no_grad():
        heard = hearing(hearing.features(clips))
        alone = [hearing(hearing.features([clip])) for clip in clips]
    assert heard.counts == [count for each in alone for count in each.counts]
    torch.testing.assert_close(heard.embeddings, torch.cat([each.embeddings for each in alone]), rtol=1e-4, atol=1e-5)


def test_a_batch_is_learnt_from_as_its_conversations_are() -> None:
    torch.manual_seed(0)
    model = Reasoner(Tokenizer.from_file(str(TOKENIZER)))
    chance = np.random.default_rng(1)
    conversations = []
    for exchange in [*single_exchanges()[::45], *follow_ups()[::300]]:
        turns = 2 if exchange.before else 1
        said = tuple(
            chance.standard_normal(chance.integers(SECOND, 4 * SECOND)).astype(np.float32) for _ in range(turns)
        )
        conversations.append(Conversation(exchange, said))
    conversations.append(Conversation(single_exchanges()[0], (None,)))
    _, whole = loss(model, conversations)
    each = [loss(model, [conversation])[1] for conversation in conversations]
    tokens = [len(model.encode(conversation.exchange.answer)) + 1 for conversation in conversations]
    clips = [sum(clip is not None for clip in conversation.said) for conversation in conversations]
    assert whole["answer"] == pytest.approx(np.average([it["answer"] for it in each], weights=tokens), rel=1e-5)
    assert whole["spelling"] == pytest.approx(np.average([it["spelling"] for it in each], weights=clips), rel=1e-4)
