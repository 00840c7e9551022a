"""The floor has every product of a frame, each as often and as wide as the frame has it, and no other."""

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from services.bench.engines import ModelSettings, StageEngines, build
from services.bench.floor import Floor, Product, codec_frame, linear, reasoner_step, speech_frame
from tests.unit.bench.conftest import SHAPE, WALL

EMBEDDINGS = ("text_embedding.", "code_embedding.", "embed_tokens.")
SLOTS = 3


@pytest.fixture
def engines(model: ModelSettings) -> StageEngines:
    return build(model, 1)


def matrices(module: nn.Module, *left_out: str) -> list[Tensor]:
    """What a module multiplies with; the depth decoder's heads one by one."""
    found = []
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and not name.startswith(left_out):
            found += list(parameter) if name.endswith("codebook_head") else [parameter]
    return found


def uses(products: Iterable[Product]) -> Counter[int]:
    return Counter(weight.data_ptr() for product in products for weight in product.weights)


def element_count(products: Iterable[Product]) -> int:
    return sum({weight.data_ptr(): weight.numel() for product in products for weight in product.weights}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "graph"])
@pytest.mark.parametrize("has_step", [False, True])
def test_a_speech_frame_touches_all_of_both_stacks(engines: StageEngines, has_step: bool, dtype: torch.dtype) -> None:
    """Once, but for what makes the keys and values of the two positions that a graph runs before the third."""
    model = engines.speech.model.to(dtype)
    products = speech_frame(model, SLOTS, has_step=has_step)
    expected = matrices(model, *EMBEDDINGS)
    assert element_count(products) == sum(weight.numel() for weight in expected)
    runs = len(model.depth_decoder.codebook_head)
    layers = model.backbone.stack.layers
    runs_before = int(has_step and dtype is torch.float64)
    needed_before = [*matrices(layers[:-1]), *matrices(layers[-1].self_attn, "o_proj")]
    counts = Counter(
        {weight.data_ptr(): 1 for weight in matrices(model.backbone.stack)}
        | {weight.data_ptr(): 1 + runs_before for weight in needed_before}
        | {model.backbone.codebook0_head.weight.data_ptr(): 1}
        | {weight.data_ptr(): runs for weight in matrices(model.depth_decoder.stack)}
        | {model.depth_decoder.projection.weight.data_ptr(): runs}
        | {head.data_ptr(): 1 for head in model.depth_decoder.codebook_head}
    )
    assert uses(products) == counts


def test_a_reasoner_step_touches_all_of_the_language_model_once(engines: StageEngines) -> None:
    model = engines.reasoner.model
    products = reasoner_step(model, SLOTS)
    expected = matrices(model, *EMBEDDINGS, "audio_encoder.")
    assert uses(products) == Counter(weight.data_ptr() for weight in expected)
    assert element_count(products) == sum(weight.numel() for weight in expected)


def test_a_codec_frame_touches_all_of_the_decoder_once(engines: StageEngines) -> None:
    codec = engines.codec.codec
    products = codec_frame(codec.mimi, SLOTS)
    mimi = codec.mimi
    expected = [*matrices(mimi.upsample), *matrices(mimi.decoder_transformer), *matrices(mimi.decoder)]
    assert uses(products) == Counter(weight.data_ptr() for weight in expected)
    assert element_count(products) == sum(weight.numel() for weight in expected)
    assert products[-1].run().shape == (SLOTS, 1, codec.samples_per_frame)


def test_every_product_runs_a_row_for_each_slot(engines: StageEngines) -> None:
    products = [
        *speech_frame(engines.speech.model, SLOTS, has_step=True),
        *reasoner_step(engines.reasoner.model, SLOTS),
        *codec_frame(engines.codec.codec.mimi, SLOTS),
    ]
    with torch.inference_mode():
        assert {product.run().shape[0] for product in products} == {SLOTS}


@pytest.mark.parametrize("together", [False, True], ids=["apart", "one behind the other"])
def test_layers_of_one_input_are_one_product(together: bool) -> None:
    layers = [nn.Linear(5, width) for width in (4, 2, 3)]
    if together:
        rows, biases = torch.randn(9, 5), torch.randn(9)
        for layer, weight, bias in zip(layers, rows.split((4, 2, 3)), biases.split((4, 2, 3)), strict=True):
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    with torch.inference_mode():
        product = linear(layers, 2, 1)
        (inputs, *_) = product.run.args
        torch.testing.assert_close(product.run(), torch.cat([layer(inputs) for layer in layers], dim=-1))


def test_a_floor_has_a_time_for_each_part(engines: StageEngines) -> None:
    cost = Floor(engines, SLOTS, WALL).measure(SHAPE)
    assert min(cost.speech_frame_seconds, cost.reasoner_step_seconds, cost.codec_frame_seconds) > 0
