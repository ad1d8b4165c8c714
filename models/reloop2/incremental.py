"""Incremental training of a base network on a stream: what ReLoop2's memory is compared with (IncCTR, arXiv 2009.02147).

One pass over the rows whose labels have arrived, in order, after they were predicted. Knows no stream and no memory: the
caller says which rows come when.
"""

# B rows

from __future__ import annotations

import torch
from torch import nn

from connectors.errors import ConfigError
from models.reloop2.base import CtrModel
from models.reloop2.examples import Examples
from models.reloop2.losses import click_loss

__all__ = ["IncrementalTrainer"]

_GRADIENT_NORM = 10.0


class IncrementalTrainer:
    """Updates ``model`` in place; between calls it is in eval mode and can predict.

    Batch-norm statistics stay those of the training: batches of a stream are too small and too alike to renew them.
    """

    def __init__(self, model: CtrModel, *, learning_rate: float = 1e-3, optimizer: str = "adam", batch: int = 512) -> None:
        """``optimizer``: adam, or sgd without momentum; ``batch``: rows per update. Raises ``ConfigError``."""
        kinds: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        if optimizer not in kinds:
            raise ConfigError(f"optimizer {optimizer!r} is not known; use one of {list(kinds)}")
        if learning_rate <= 0 or batch < 1:
            raise ConfigError(f"learning_rate {learning_rate} must be above 0 and batch {batch} 1 or more")
        self.model = model.eval()
        self.batch = batch
        self._optimizer = kinds[optimizer](model.parameters(), lr=learning_rate)  # type: ignore[call-arg]

    def learn(self, examples: Examples) -> None:
        """Make one pass over these rows, in order."""
        for start in range(0, len(examples), self.batch):
            loss = click_loss(self.model, examples.take(slice(start, start + self.batch)))
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
            self._optimizer.step()
