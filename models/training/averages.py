"""The running mean of a network's weights over its updates: what is left out of it is the noise of the last batches.

Lives in the state of a stage, so that a training that was stopped goes on with the same bits. Knows no network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]

_KEY = "average"


class WeightAverage:
    """The mean of weights, in which each update weighs ``decay`` times the next.

    In the first updates less, (1 + n) / (10 + n) after n: else the random weights of the start would stay in it for long.
    """

    def __init__(self, model: nn.Module, decay: float, state: dict[str, Any]) -> None:
        """``state``: the stage's, which keeps the mean under ``average``."""
        self._model, self._decay, self._state = model, decay, state

    @torch.no_grad()
    def take(self, done: int) -> None:
        """Add the weights as they are after ``done`` updates."""
        now = self._model.state_dict()
        if _KEY not in self._state:
            self._state[_KEY] = {name: tensor.clone() for name, tensor in now.items()}
            return
        share = 1.0 - min(self._decay, (1 + done) / (10 + done))
        for name, mean in self._state[_KEY].items():
            if mean.is_floating_point():
                mean.lerp_(now[name].to(mean.device), share)
            else:
                mean.copy_(now[name])

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the mean."""
        return {name: tensor.clone() for name, tensor in self._state[_KEY].items()}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the block use the mean in place of the weights; behind it they are as they were."""
        before = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(self._state[_KEY])
        try:
            yield
        finally:
            self._model.load_state_dict(before)
