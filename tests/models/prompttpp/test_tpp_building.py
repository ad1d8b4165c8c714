"""Building networks: a seed gives its weights, on ``meta`` there are shapes only, threads do not disturb each other."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tpp_models import BACKBONES, small

from models.prompttpp.config import TppConfig
from models.prompttpp.model import build_model
from models.prompttpp.process import PointProcess


def shapes(model: PointProcess) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def on_meta(backbone: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = small(backbone)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    return shapes(model)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_building_for_shapes_alone_draws_nothing(backbone: str) -> None:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    with torch.device("meta"):
        build_model(small(backbone).config)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.heavy
def test_networks_are_built_for_shapes_in_many_threads_while_others_are_filled() -> None:
    wanted = {backbone: shapes(small(backbone)) for backbone in BACKBONES}
    jobs = [backbone for backbone in BACKBONES for _ in range(12)]
    with ThreadPoolExecutor(8) as pool:
        empty = pool.map(on_meta, jobs)
        filled = pool.map(lambda backbone: build_model(small(backbone).config), jobs)
        assert [shapes(model) for model in filled] == [wanted[backbone] for backbone in jobs]
        assert list(empty) == [wanted[backbone] for backbone in jobs]


def test_rates_of_a_state_space_begin_evenly_spread_and_drawn_from_the_seed() -> None:
    model = build_model(TppConfig(backbone="s2p2", types=2, pool=0, hidden=4, state=5, layers=1), seed=7)
    state = model.state_dict()
    log_rate = torch.linspace(math.log(0.02), math.log(20.0), 5)
    torch.testing.assert_close(state["layers.0.log_rate"], log_rate, rtol=0, atol=0)
    assert bool((state["layers.0.frequency"] < log_rate.exp()).all())
    again = build_model(model.config, seed=7).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    drawn = [0.014874654822051525, 0.10788141191005707, 0.24586200714111328, 0.7875873446464539, 7.484041213989258]
    torch.testing.assert_close(state["layers.0.frequency"], torch.tensor(drawn))
