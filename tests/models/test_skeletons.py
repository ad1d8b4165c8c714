"""Networks without memory have the names, shapes and types of those with it, and are not drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.skeletons import skeleton


class Dispatched(TorchDispatchMode):
    """Notes the names of the operations that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    made = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 5, dtype=torch.float64), nn.BatchNorm1d(5))
    nn.init.kaiming_normal_(made[1].weight)
    return made


def test_a_skeleton_has_what_its_network_has_but_no_memory() -> None:
    with skeleton():
        shape = network().state_dict()
    wanted = network().state_dict()
    assert {name: (x.shape, x.dtype) for name, x in shape.items()} == {name: (x.shape, x.dtype) for name, x in wanted.items()}
    assert all(x.is_meta for x in shape.values())
    assert network()[0].weight.device.type == "cpu"


@pytest.mark.parametrize(("place", "drawn"), [(skeleton, False), (lambda: torch.device("meta"), True)])
def test_no_normal_numbers_are_drawn_for_a_skeleton(place: Any, drawn: bool) -> None:
    """PyTorch imports its compiler to draw them there, as long as it takes to import PyTorch."""
    with Dispatched() as seen, place():
        network()
    assert ("normal_" in seen.names) == drawn and "empty" in seen.names


def test_what_has_memory_is_drawn_in_a_skeleton_too() -> None:
    made = torch.zeros(8)
    with skeleton():
        nn.init.normal_(made)
        made[:4].normal_()
    assert made.count_nonzero() == 8
