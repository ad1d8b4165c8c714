"""The running mean of weights: what it is, that the weights stay, and that it goes on after a stop with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.training import Progress, Stage, Training, TrainingStopped, WeightAverage


class Counted(nn.Module):
    """A line, and a whole number that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.register_buffer("number", torch.tensor(0))


def test_it_is_the_mean_in_which_each_update_weighs_decay_times_the_next() -> None:
    model, state = Counted(), dict[str, Any]()
    average, mean = WeightAverage(model, 0.6, state), torch.zeros(1, 2)
    for done in range(1, 12):
        with torch.no_grad():
            model.line.weight.copy_(torch.tensor([[float(done), float(done * done)]]))
            model.get_buffer("number").fill_(done)
        average.take(done)
        keep = 0.0 if done == 1 else min(0.6, (1 + done) / (10 + done))
        mean = keep * mean + (1 - keep) * model.line.weight.detach()
    found = average.weights()
    torch.testing.assert_close(found["line.weight"], mean)
    assert int(found["number"]) == 11
    own = model.line.weight.detach().clone()
    with average.applied():
        assert torch.equal(model.line.weight, found["line.weight"]) and not torch.equal(model.line.weight, own)
    assert torch.equal(model.line.weight, own)
    found["line.weight"].zero_()  # a copy
    torch.testing.assert_close(average.weights()["line.weight"], mean)


def fitted(folder: Path, *, stop: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
    """Fit y = 2x in ten updates and return the mean of the weights."""
    torch.manual_seed(0)
    model, generator, state = nn.Linear(1, 1), torch.Generator().manual_seed(1), dict[str, Any]()
    average = WeightAverage(model, 0.9, state)

    def losses(step: int) -> Any:
        x_B1 = torch.randn(8, 1, generator=generator)
        yield {"line": (model(x_B1) - 2 * x_B1).square().mean()}

    def told(progress: Progress) -> None:
        if progress.step == stop:
            raise TrainingStopped

    training = Training(folder, resume=resume, progress=told, checkpoint_every=1)
    training.open({"recipe": "line"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training.run(
        Stage(
            name="line", steps=10, trained=model, optimizer=optimizer, losses=losses, gradient_norm=1.0, report_every=1,
            generators=(generator,), state=state, after=average.take,
        )
    )  # fmt: skip
    return average.weights()


def test_a_stopped_training_goes_on_with_the_same_mean(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "a")
    with pytest.raises(TrainingStopped):
        fitted(tmp_path / "b", stop=6)
    again = fitted(tmp_path / "b", resume=True)
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
