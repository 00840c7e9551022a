"""The miniature's config.json: what the services read from it, and how much it weighs."""

import math

from mini.checkpoint import config
from mini.sizes import CODEBOOKS, CODES
from services.codec.weights import published_tensors as codec_tensors
from services.codec.weights import read_config as read_codec
from services.reasoner.weights import published_tensors as reasoner_tensors
from services.speech.weights import published_tensors as speech_tensors
from services.speech.weights import read_config as read_speech
from services.speech.weights import unscaled_stacks

LIMIT_BYTES = 25 * 10**6
CONFIG = config(vocabulary_size=420)


def test_all_stages_read_it() -> None:
    assert reasoner_tensors(CONFIG)
    assert not unscaled_stacks(CONFIG)
    assert read_speech(CONFIG).code_count == CODES
    assert read_codec(CONFIG).codebook_count == CODEBOOKS


def test_it_is_small_enough_to_ship() -> None:
    shapes = reasoner_tensors(CONFIG) | speech_tensors(CONFIG) | codec_tensors(CONFIG)
    assert 2 * sum(math.prod(shape) for shape in shapes.values()) < LIMIT_BYTES
