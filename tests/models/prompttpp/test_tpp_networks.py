"""All networks: causal, blind to padding and neighbors, and the same step by step as over whole sequences."""

import math

import pytest
import torch
from tpp_models import BACKBONES, events, small

from connectors.errors import ConfigError
from models.prompttpp.attnhp import AttentionLayer
from models.prompttpp.config import TppConfig
from models.prompttpp.process import PointProcess
from models.prompttpp.prompts import PromptPools
from models.prompttpp.rates import encode_time

LAG = torch.tensor([0.0, 0.1, 1.0, 7.0], dtype=torch.float64)


def stepped(model: PointProcess, time: torch.Tensor, kind: torch.Tensor, window: int) -> torch.Tensor:
    """Return the rates after each event, event by event."""
    key = model.start(len(time), window)
    rates = []
    for place in range(time.shape[1]):
        model.step(key, time[:, place], kind[:, place])
        rates.append(model.rates(key, LAG.expand(len(time), -1)))
    return torch.stack(rates, dim=1)


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_later_events_other_rows_and_padding_change_nothing(backbone: str) -> None:
    model = small(backbone)
    time, kind = events(3, 9, 3)
    lag = LAG.expand(3, 9, -1)
    whole = model.run(time, kind, lag).rate_BLGK
    prefix = model.run(time[:, :5], kind[:, :5], lag[:, :5]).rate_BLGK
    torch.testing.assert_close(prefix, whole[:, :5], rtol=1e-5, atol=1e-6)
    alone = model.run(time[1:2], kind[1:2], lag[1:2]).rate_BLGK
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-5, atol=1e-6)
    changed = kind.clone()
    changed[:, 5:], later = model.config.types, time.clone()
    later[:, 5:] = time[:, 4:5]
    torch.testing.assert_close(model.run(later, changed, lag).rate_BLGK[:, :5], whole[:, :5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [20, 4])
@pytest.mark.parametrize("changes", [{}, {"query_events": 3}, {"pool": 0}], ids=["mean", "forgetting", "no prompts"])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_streaming_equals_whole_sequences(backbone: str, changes: dict[str, int], window: int) -> None:
    model = small(backbone, **changes)
    time, kind = events(4, 11, 3)
    whole = model.run(time, kind, LAG.expand(4, 11, -1), window=window).rate_BLGK
    torch.testing.assert_close(stepped(model, time, kind, window), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_that_is_used_learns(backbone: str) -> None:
    model = small(backbone)
    time, kind = events(4, 8, 3)
    run = model.run(time, kind, LAG.expand(4, 8, -1))
    (run.rate_BLGK.square().sum() + run.cosine_BL.sum()).backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not still


@pytest.mark.parametrize("backbone", ["s2p2", "nhp"])
@torch.no_grad()
def test_prompts_change_the_rate_head_of_their_readers_and_begin_without_a_change(backbone: str) -> None:
    model, without = small(backbone, prompt_head=True, query_events=2), small(backbone, query_events=2)
    assert model.prompts is not None and model.prompts.value.shape == (1, 5, 2 + 3, 8)
    assert not model.prompts.value[:, :, 2:].any() and model.prompts.value[:, :, :2].all()
    state, value = without.state_dict(), model.prompts.value.detach()
    model.load_state_dict(state | {"prompts.value": value, "prompts.reads": model.prompts.reads})
    without.load_state_dict(state | {"prompts.value": value[:, :, :2]})
    time, kind = events(4, 11, 3)
    lag = LAG.expand(4, 11, -1)
    before = model.run(time, kind, lag)
    assert torch.equal(before.rate_BLGK, without.run(time, kind, lag).rate_BLGK)
    model.prompts.value[0, 1, 2:] = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    after = model.run(time, kind, lag)
    assert torch.equal(after.hidden_BLGD, before.hidden_BLGD)
    # A slow obvious reference: the weights of the head and the mean change of the prompts read, event by event.
    head = model.rate.linear  # type: ignore[union-attr]
    for row in range(4):
        for place in range(11):
            change = 0.2 * model.prompts.value[0, after.chosen[0][row, place], 2:].mean(0)
            x = after.hidden_BLGD[row, place] @ (head.weight + change).T + head.bias  # type: ignore[union-attr, operator]
            torch.testing.assert_close(after.rate_BLGK[row, place], torch.nn.functional.softplus(x), rtol=1e-5, atol=1e-6)
    reads = (after.chosen[0] == 1).any(2)
    assert reads.any() and not reads.all()
    moved = (after.rate_BLGK != before.rate_BLGK).flatten(2).any(2)
    assert torch.equal(moved, reads)
    torch.testing.assert_close(stepped(model, time, kind, 4), after.rate_BLGK, rtol=1e-4, atol=1e-6)


def test_prompts_change_the_head_of_networks_that_have_both() -> None:
    for changes in ({"backbone": "attnhp"}, {"backbone": "s2p2", "pool": 0}, {"backbone": "thp", "pool": 0}):
        with pytest.raises(ConfigError, match="prompt_head needs prompts and backbone s2p2 or nhp"):
            TppConfig(types=3, prompt_head=True, **changes)  # type: ignore[arg-type]
    plain, own = TppConfig(types=3, backbone="nhp"), TppConfig(types=3, backbone="nhp", prompt_head=True)
    assert "prompt_head" not in plain.to_json() and TppConfig.from_json(plain.to_json()) == plain  # names of old files stay
    assert TppConfig.from_json(own.to_json()) == own


def test_prompts_are_chosen_in_order_and_ties_go_to_the_lower_index() -> None:
    pools = PromptPools(1, 4, 2, 1, 3, top_k=3)
    with torch.no_grad():
        pools.key[0] = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    found = pools.reader().choose(0, torch.tensor([[3.0, 0.1], [0.0, 0.0]]))
    assert found.index.tolist() == [[1, 2, 0], [0, 1, 2]]
    torch.testing.assert_close(found.cosine[0, 0], found.cosine[0, 1])


def test_time_far_from_zero_keeps_its_precision() -> None:
    model = small("attnhp")
    time, kind = events(1, 6, 3)
    lag = LAG.expand(1, 6, -1)
    # 2^40 units later a difference of 1e-3 is still seen; in float32 it would be lost.
    late = model.run(time + 2.0**40, kind, lag).rate_BLGK
    later = model.run(time + 2.0**40 + 1e-3, kind, lag).rate_BLGK
    assert not torch.equal(late, later)


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_rates_after_some_events_are_those_of_all(backbone: str) -> None:
    model = small(backbone)
    time, kind = events(3, 7, 3)
    whole = model.run(time, kind, LAG.expand(3, 7, -1))
    after = torch.tensor([[2, 6], [0, 1], [5, 5]])
    some = model.run(time, kind, LAG.expand(3, 2, -1), after_BC=after)
    every = torch.arange(3)[:, None]
    torch.testing.assert_close(some.rate_BLGK, whole.rate_BLGK[every, after], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some.cosine_BL, whole.cosine_BL[every, after])


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_keys_that_take_no_event_stay_as_they_are(backbone: str) -> None:
    model = small(backbone)
    time, kind = events(3, 9, 3)
    key = model.start(3, 4)
    for place in range(5):
        model.step(key, time[:, place], kind[:, place])
    before = model.rates(key, LAG.expand(3, -1))
    model.step_where(key, torch.tensor([True, False, False]), time[:, 5], kind[:, 5])
    after = model.rates(key, LAG.expand(3, -1))
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])
    assert key.ordinal_B.tolist() == [6, 5, 5]


@pytest.mark.parametrize(("hidden", "time_dim"), [(6, 8), (7, 8), (12, 4)])
def test_attention_begins_with_recent_events(hidden: int, time_dim: int) -> None:
    layer = AttentionLayer(hidden + time_dim, hidden)
    time_L = torch.tensor([100.0, 99.5, 98.0, 96.0, 60.0], dtype=torch.float64)
    token_LQ = torch.cat([torch.zeros(5, hidden), encode_time(time_L, time_dim, torch.float32)], dim=1)
    query_LD, key_LD = (torch.nn.functional.linear(token_LQ, part.weight) for part in (layer.query, layer.key))
    score_L = query_LD[0] @ key_LD.T / math.sqrt(hidden)
    wanted = [
        1.5 * sum(math.cos(10_000 ** (-2 * m / time_dim) * (100.0 - time)) for m in range(min(hidden, time_dim) // 2))
        for time in time_L.tolist()
    ]
    assert score_L.tolist() == pytest.approx(wanted, abs=1e-4)
    assert score_L.argmax() == 0
