"""GEO: properties that hold for any weights, and equality with a triple loop in float64."""

import math

import pytest
import torch
from torch import Tensor

from models.mamba.attention import Attention

CHANNELS, HEADS = 24, 4


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(3)
    return Attention(CHANNELS, HEADS)


def rows(number: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, number, CHANNELS, generator=torch.Generator().manual_seed(seed))


def triple_loop(attention: Attention, x: Tensor, keys: Tensor) -> Tensor:
    """GEO's attention term, one number at a time."""
    layers = {n: getattr(attention, n).double() for n in ("query", "key", "value", "output")}
    q, k, v = layers["query"](x.double()), layers["key"](keys.double()), layers["value"](keys.double())
    width = CHANNELS // HEADS
    out = torch.zeros_like(q)
    for h in range(HEADS):
        for n in range(len(q)):
            logits = []
            for m in range(len(k)):
                products = [float(q[n, h * width + d] * k[m, h * width + d]) for d in range(width)]
                logits.append(math.fsum(products) / math.sqrt(width))
            top = max(logits)
            weights = [math.exp(a - top) for a in logits]
            for d in range(width):
                mean = math.fsum(w * float(v[m, h * width + d]) for m, w in enumerate(weights)) / math.fsum(weights)
                out[n, h * width + d] = mean
    return layers["output"](out)


def test_equals_a_triple_loop_in_float64(attention):
    x, keys = rows(5), rows(7, seed=1)
    got = attention(x, keys)[0].detach()
    with torch.no_grad():
        torch.testing.assert_close(got.double(), triple_loop(attention, x[0], keys[0]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_order_of_keys_does_not_matter_and_order_of_queries_carries_over(attention):
    x, keys = rows(6), rows(9, seed=1)
    out = attention(x, keys)
    torch.testing.assert_close(attention(x, keys[:, torch.randperm(9)]), out)
    order = torch.randperm(6)
    torch.testing.assert_close(attention(x[:, order], keys), out[:, order])


@torch.inference_mode()
def test_one_key_gives_its_value_to_every_query_and_equal_keys_act_as_one(attention):
    x, key = rows(6), rows(1, seed=1)
    out = attention(x, key)
    torch.testing.assert_close(out, attention.output(attention.value(key)).expand_as(out))
    torch.testing.assert_close(attention(x, key.expand(1, 8, -1)), out)


@torch.inference_mode()
def test_duplicating_all_keys_changes_nothing(attention):
    x, keys = rows(6), rows(9, seed=1)
    torch.testing.assert_close(attention(x, torch.cat([keys, keys], dim=1)), attention(x, keys))


def test_gradient_of_the_key_bias_is_zero_because_softmax_ignores_shifts(attention):
    attention(rows(6), rows(9, seed=1)).square().sum().backward()
    assert float(attention.key.bias.grad.abs().max()) < 1e-5 < float(attention.query.bias.grad.abs().max())


@torch.inference_mode()
def test_zero_output_projection_makes_geo_the_identity(attention):
    attention.output.weight.zero_()
    attention.output.bias.zero_()
    x = rows(6)
    assert torch.equal(x + attention(x, rows(9, seed=1)), x)


@torch.inference_mode()
def test_invalid_keys_are_ignored(attention):
    x, keys = rows(6, batch=2), rows(9, batch=2, seed=1)
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[0, :4], valid[1, 2:] = True, True
    out = attention(x, keys, valid)
    torch.testing.assert_close(out[:1], attention(x[:1], keys[:1, :4]))
    torch.testing.assert_close(out[1:], attention(x[1:], keys[1:, 2:]))


@torch.inference_mode()
def test_stream_without_valid_keys_gets_zeros_and_its_neighbor_is_untouched(attention):
    x, keys = rows(6, batch=2), rows(9, batch=2, seed=1)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1] = False
    out = attention(x, keys, valid)
    torch.testing.assert_close(out[:1], attention(x[:1], keys[:1]))
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert torch.equal(attention(x, keys[:, :0]), torch.zeros_like(x))


@torch.inference_mode()
def test_projected_rows_give_the_same_as_raw_rows_and_may_be_stored_in_half_precision(attention):
    x, keys = rows(6), rows(9, seed=1)
    key, value = attention.project(keys)
    out = attention(x, keys)
    torch.testing.assert_close(attention.attend(attention.query(x), key, value), out)
    half = attention.attend(attention.query(x), key.half(), value.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, out, atol=2e-3, rtol=0)
