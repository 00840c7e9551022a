"""The reasoner's states before each token of an answer, as the speech stage gets them."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mini.domain import follow_ups, single_exchanges
from mini.hearing import disturbed
from mini.reasoner import Asked, Conversation, Reasoner
from mini.recordings import step_counts
from mini.tokenizer import build

States = dict[str, list[Tensor]]
"""Of each answer, some of the ways it comes about: states [tokens, hidden], one before each of its tokens."""

_KEPT = "answers_states.pt"
_HEARD_OF_EACH, _FOLLOW_UPS, _AT_ONCE = 3, 400, 20


def states_of_answers(folder: Path) -> States:
    """The states that the trained reasoner comes to, kept once they are worked out."""
    path = folder / _KEPT
    if path.exists():
        kept: States = torch.load(path, weights_only=True)
        return kept
    model = Reasoner(build(step_counts(folder)))
    model.load_state_dict(torch.load(folder / "reasoner.pt", weights_only=True)["module"])
    chance = np.random.default_rng(10)
    asked = Asked(folder / "questions")
    following = follow_ups()
    chosen = [following[index] for index in chance.choice(len(following), _FOLLOW_UPS, replace=False)]
    conversations = []
    for exchange in [*single_exchanges() * _HEARD_OF_EACH, *chosen]:
        parts = [part for part in (exchange.before, exchange) if part]
        said = tuple(disturbed(asked.clip(part.question, chance), chance) for part in parts)
        conversations.append(Conversation(exchange, said))
    states = _read(model.eval(), conversations)
    torch.save(states, path)
    return states


@torch.no_grad()
def _read(model: Reasoner, conversations: list[Conversation]) -> States:
    found: States = defaultdict(list)
    for first in range(0, len(conversations), _AT_ONCE):
        some = conversations[first : first + _AT_ONCE]
        read = model(some)
        for row, conversation in enumerate(some):
            found[conversation.exchange.answer].append(read.states[row, read.predicting[row]].clone())
    return dict(found)
