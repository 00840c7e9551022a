"""Products: functional.linear's, and rows that hang on nothing but themselves."""

import copy

import pytest
import torch
from torch.nn import functional

from services.inference.product import Linear, laid_out_bytes

SHAPES = [(24, 100), (256, 256), (256, 384), (768, 256), (256, 2051), (640, 130)]


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(inputs: int, outputs: int, *, biased: bool = False) -> Linear:
    layer = Linear(inputs, outputs, bias=biased)
    with torch.no_grad():
        layer.weight.copy_(numbers(1, outputs, inputs))
        if biased:
            layer.bias.copy_(numbers(2, outputs))
    return layer.requires_grad_(False)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_product(inputs: int, outputs: int, biased: bool) -> None:
    x, layer = numbers(0, 2, 3, inputs), layer_of(inputs, outputs, biased=biased)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_is_the_same_bits_at_any_place_among_any_number(inputs: int, outputs: int) -> None:
    product, row = layer_of(inputs, outputs), numbers(2, inputs)
    found = set()
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 30, 64):
        for place in {0, count // 2, count - 1}:
            x = numbers(count + place, count, inputs)
            x[place] = row
            found.add(product(x)[place].numpy().tobytes())
    assert len(found) == 1


def test_a_weight_that_was_filled_again_counts() -> None:
    layer, x = layer_of(256, 384), numbers(0, 4, 256)
    for seed in range(2):
        with torch.no_grad():
            layer.weight.copy_(numbers(seed, 384, 256))
        torch.testing.assert_close(layer(x), functional.linear(x, layer.weight), rtol=1e-4, atol=1e-4)


def test_a_weight_in_the_place_of_one_that_is_gone_counts() -> None:
    """As after a conversion: the allocator likes to give the same memory again."""
    layer, x = layer_of(256, 400), numbers(0, 4, 256)
    for seed in range(30):
        layer.weight = torch.nn.Parameter(numbers(seed, 400, 256), requires_grad=False)
        torch.testing.assert_close(layer(x), functional.linear(x, layer.weight), rtol=1e-4, atol=1e-4)


def test_a_copy_is_a_layer_of_its_own() -> None:
    layer, x = layer_of(256, 384), numbers(0, 4, 256)
    first = layer(x)
    copied = copy.deepcopy(layer)
    assert copied(x).equal(first)
    with torch.no_grad():
        copied.weight.zero_()
    assert not copied(x).any()
    assert layer(x).equal(first)


def test_what_is_laid_out_is_counted_on_a_cpu_in_float32_alone() -> None:
    layer = Linear(256, 384)
    assert laid_out_bytes(layer, torch.device("cpu"), torch.float32) >= 256 * 384 * 4
    assert laid_out_bytes(layer, torch.device("cpu"), torch.bfloat16) == 0
    assert laid_out_bytes(layer, torch.device("cuda"), torch.float32) == 0
