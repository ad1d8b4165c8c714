"""The loop on its own, on a line that is fitted: reports, clipping, rates, the end of a stage, losses that are not numbers."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from connectors.errors import ConfigError, StreambankError
from models.training import After, Progress, Stage, Training, TrainingStopped, cosine, warm_up


def stage(steps: int = 10, **changes: Any) -> Stage:
    """Fit y = 2x from draws of a generator."""
    model, rng = nn.Linear(1, 1), np.random.default_rng(1)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(0.0)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        x_B1 = torch.from_numpy(rng.normal(size=(8, 1))).float()
        yield {"line": (model(x_B1) - 2 * x_B1).square().mean()}

    values: dict[str, Any] = {"name": "line", "steps": steps, "trained": model, "losses": losses, "generators": (rng,)}
    values |= {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "gradient_norm": 10.0, "report_every": 4}
    return Stage(**(values | changes))


def test_reports_tell_the_mean_since_the_last_one_and_the_end() -> None:
    seen: list[Progress] = []
    losses: list[float] = []
    own = stage(after=lambda done: After("half") if done == 5 else None)

    def recorded(step: int) -> Iterator[Mapping[str, Tensor]]:
        for parts in own.losses(step):
            losses.append(float(parts["line"].detach()))
            yield parts

    training = Training(progress=seen.append)
    training.run(stage(trained=own.trained, optimizer=own.optimizer, losses=recorded, after=own.after))
    assert [(p.stage, p.step, p.steps, p.note) for p in seen] == [
        ("line", 4, 10, ""),
        ("line", 5, 10, "half"),
        ("line", 9, 10, ""),
        ("line", 10, 10, ""),
    ]
    assert [p.loss for p in seen] == [sum(losses[a:b]) / (b - a) for a, b in ((0, 4), (4, 5), (5, 9), (9, 10))]
    assert (training.first_loss, training.last_loss) == (seen[0].loss, seen[-1].loss)
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert seen[0].eta_s > 0.0 == seen[-1].eta_s


def test_parts_are_summed_and_batches_accumulated() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        for factor in (1.0, 2.0):
            yield {"a": factor * model.weight.sum(), "b": factor * model.weight.sum()}

    seen: list[Progress] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Training(progress=seen.append).run(stage(1, trained=model, optimizer=optimizer, losses=losses))
    assert seen[0].loss == 6.0
    assert model.weight.item() == pytest.approx(1.0 - 0.1 * 6.0)


def test_the_gradient_is_clipped_and_the_rate_follows_its_function() -> None:
    one = stage(3, gradient_norm=1e-3, rate=lambda step: [1.0, 0.5, 0.0][step])
    moved = []
    before = torch.cat([p.detach().flatten().clone() for p in one.trained.parameters()])

    def after(done: int) -> None:
        nonlocal before
        now = torch.cat([p.detach().flatten().clone() for p in one.trained.parameters()])
        moved.append(float((now - before).norm()))
        before = now

    changes = {"trained": one.trained, "optimizer": one.optimizer, "losses": one.losses, "rate": one.rate}
    Training().run(stage(3, gradient_norm=1e-3, after=after, **changes))
    assert moved == [pytest.approx(1e-3, rel=1e-3), pytest.approx(5e-4, rel=1e-3), 0.0]


def test_a_stage_ends_early_where_it_is_told_to_and_does_not_go_on_when_resumed(tmp_path: Path) -> None:
    def early(done: int) -> After | None:
        return After("enough", last=True) if done == 3 else None

    seen: list[Progress] = []
    training = Training(tmp_path, progress=seen.append)
    assert training.open({}) is None
    training.run(stage(after=early))
    assert [p.step for p in seen] == [3]
    again = Training(tmp_path, resume=True, progress=seen.append)
    assert again.open({}) is None
    again.run(stage(after=early))
    assert [p.step for p in seen] == [3]
    assert again.last_loss == training.last_loss


def test_the_first_signal_ends_the_update_and_the_handlers_are_as_before(tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def after(done: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    training = Training(tmp_path)
    training.open({"seed": 1})
    with pytest.raises(TrainingStopped, match="stopped at line 2/10; go on with --resume"):
        training.run(stage(after=after))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(KeyboardInterrupt, match=r"stopped at line 2/10$"):
        Training().run(stage(after=after))


def test_it_runs_in_a_thread_too_where_no_signal_can_be_caught() -> None:
    seen: list[Progress] = []
    thread = threading.Thread(target=lambda: Training(progress=seen.append).run(stage()))
    thread.start()
    thread.join()
    assert seen[-1].step == 10


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_parts_and_the_weights_stay(value: float, said: str) -> None:
    one = stage()

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        for parts in one.losses(step):
            yield parts | {"extra": parts["line"] * (value if step == 2 else 0.0)}

    before: list[Tensor] = []

    def after(done: int) -> None:
        before[:] = [p.detach().clone() for p in one.trained.parameters()]

    with pytest.raises(StreambankError, match=rf"line, update 3 of 10: .*no longer finite \(line .*, extra {said}\); lower"):
        Training().run(stage(trained=one.trained, optimizer=one.optimizer, losses=losses, after=after))
    assert all(torch.equal(a, b) for a, b in zip(before, one.trained.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_told_before_it_reaches_the_weights() -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.0)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        yield {"root": model.weight.abs().sqrt().sum()}  # 0, with an infinite slope

    with pytest.raises(StreambankError, match=r"the gradient of a loss of 0 is no longer finite"):
        Training().run(stage(trained=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), losses=losses))
    assert model.weight.item() == 0.0


def test_a_checkpoint_of_the_former_form_says_so(tmp_path: Path) -> None:
    torch.save({"format": 1, "identity": {}, "done": 3}, tmp_path / "training.pt")
    with pytest.raises(ConfigError, match=r"training\.pt has format 1, this version writes and reads 2"):
        Training(tmp_path, resume=True).open({})


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".training.pt.123.tmp").write_bytes(b"half")
    Training(tmp_path).open({})
    assert list(tmp_path.iterdir()) == []


def test_a_complete_training_whose_weights_were_taken_away_is_made_again(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.open({"seed": 1, "recipe": None})
    training.run(stage(2))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    done = training.finish(tmp_path / "model.safetensors", {"loss": 0.5})
    assert json.loads((tmp_path / "training.json").read_text())["metrics"] == {"loss": 0.5}
    found = Training(tmp_path, resume=True).open({"seed": 1, "recipe": None})
    assert found is not None and (found.weights, found.metrics) == (done.weights, done.metrics)
    done.weights.unlink()
    assert Training(tmp_path, resume=True).open({"seed": 1, "recipe": None}) is None


def test_rates_rise_and_fall_between_their_ends() -> None:
    assert [warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [cosine(step, 4, 0.2) for step in (0, 2, 4, 9)] == [1.0, pytest.approx(0.6), 0.2, 0.2]


def painted(value: int) -> np.ndarray:
    return np.full((3, 5, 3), value, np.uint8) + np.arange(15, dtype=np.uint8).reshape(3, 5, 1)


@pytest.mark.parametrize(
    ("every", "wanted"), [(None, [3, 6, 9, 10]), (4, [4, 8, 10]), (0, []), (100, [10])], ids=["four", "4", "none", "last"]
)
def test_previews_lie_beside_the_checkpoint_and_change_nothing(every: int | None, wanted: list[int], tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    for name in ("line-00000099.png", "mine.png"):  # of a training before, and somebody's own
        (tmp_path / "previews" / name).write_bytes(b"")
    counts = iter(range(100))
    shown = stage(preview=lambda: painted(next(counts)))
    training = Training(tmp_path, preview_every=every)
    training.open({})
    training.run(shown)
    (tmp_path / "model").touch()
    result = training.finish(tmp_path / "model", {})
    assert [path.name for path in result.previews] == [f"line-{done:08d}.png" for done in wanted]
    assert (tmp_path / "previews" / "mine.png").exists() and not (tmp_path / "previews" / "line-00000099.png").exists()
    for number, path in enumerate(result.previews):
        assert (cv2.imread(str(path))[..., ::-1] == painted(number)).all()
    plain = stage()
    Training().run(plain)
    assert torch.equal(plain.trained.weight, shown.trained.weight)  # type: ignore[arg-type]


def test_a_preview_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "previews").write_text("a file is in the way")
    training = Training(tmp_path)
    training.open({})
    with pytest.raises(StreambankError, match=r"previews.*a preview cannot be written"):
        training.run(stage(preview=lambda: painted(0)))
