"""Every training of every method, stopped by a signal or cut off in the middle and resumed, ends in the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.training_hashes_run import CASES, run_case, weights_hash
from connectors.errors import ConfigError
from models.mamba import recipe as mamba_recipe
from models.mamba.train import train as train_mamba
from models.rekv import recipe as rekv_recipe
from models.rekv.evaluate import FilmQuality
from models.specvqgan import recipe as sound_recipe
from models.training import TrainingStopped, loop
from models.videostreaming import recipe as videostreaming_recipe
from models.videostreaming.evaluate import FilmQuality as SelectionQuality

METHODS = ("mamba", "rekv", "reloop2", "specvqgan", "videostreaming")
# Each loop and kind of data of each method. `python -m benchmarks.training_hashes` has more, with processes that are killed.
STOPPED = [
    pytest.param("mamba recipe shapes", marks=pytest.mark.slow),
    pytest.param("rekv recipe shapes", marks=pytest.mark.slow),
    pytest.param("mamba videos from nothing", marks=pytest.mark.slow),
    *("rekv videos", "reloop2 recipe drift"),
    "reloop2 rows, dcnv2 with dropout",
    pytest.param("specvqgan recipe bounces", marks=pytest.mark.slow),
    pytest.param("specvqgan sound", marks=pytest.mark.slow),
    pytest.param("videostreaming recipe shapes", marks=pytest.mark.slow),
]
# Fewer updates than the benchmark makes: every stage, discriminators included, and checkpoints in the middle of each.
SHORTER: dict[str, dict[str, Any]] = {
    "specvqgan sound": {"plain_steps": 3, "steps": 4, "disc_start": 2, "vocoder_steps": 4, "vocoder_disc_start": 2},
    "rekv videos": {"iterations": 10},
}


class _CutOffError(BaseException):
    """Stands for a process that is gone: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def one_thread_little_evaluation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mamba_recipe, "_FRESH_CLIPS", 1)
    quality = FilmQuality(1, {"memory": 0.5}, {}, 0.5, [0.5], 0.5)  # of the weights, which are compared
    monkeypatch.setattr(rekv_recipe, "film_quality", lambda *_: quality)
    selected = SelectionQuality(1, {"memory": 0.5}, {}, {"memory": 0.5}, 0.5, 0.5, {}, {})
    monkeypatch.setattr(videostreaming_recipe, "film_quality", lambda *_: selected)
    monkeypatch.setattr(sound_recipe, "sounds_in", lambda *_, **__: {})
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def counted(name: str, out: Path, at: int | None = None, act: Callable[[], None] = lambda: None, **given: Any) -> int:
    """Run a case, call ``act`` after update ``at``, and return the number of updates."""
    updates = 0

    def hook(*args: Any) -> None:
        nonlocal updates
        updates += 1
        if updates == at:
            act()

    handle = register_optimizer_step_post_hook(hook)
    try:
        run_case(name, out, **given)
    finally:
        handle.remove()
    return updates


def cut_off() -> None:
    raise _CutOffError


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", STOPPED)
def test_a_training_that_was_stopped_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    own = SHORTER.get(name, {})
    updates = counted(name, tmp_path / "whole", **own)
    own = own if " recipe " in name else own | {"checkpoint_every": 3}
    middle = updates // 2 + 3
    with pytest.raises(_CutOffError):
        counted(name, tmp_path / "resumed", middle, cut_off, **own)
    file = tmp_path / "resumed" / "training.pt"
    done = torch.load(file, weights_only=True)["position"]["done"]
    with pytest.raises(TrainingStopped, match=r"stopped at \w+ \d+/\d+; go on with --resume"):
        counted(name, tmp_path / "resumed", 2, stop, resume=True, **own)
    assert torch.load(file, weights_only=True)["position"]["done"] != done
    left = counted(name, tmp_path / "resumed", resume=True, **own)
    assert 0 < left < updates - done
    assert weights_hash(tmp_path / "resumed") == weights_hash(tmp_path / "whole")
    assert not file.exists()
    assert counted(name, tmp_path / "resumed", resume=True, **own) == 0, "a complete training is returned as it is"


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_training_is_neither_overwritten_nor_resumed_with_another_seed(method: str, tmp_path: Path) -> None:
    name = next(name for name in CASES if name.startswith(f"{method} recipe"))
    with pytest.raises(TrainingStopped):
        counted(name, tmp_path, 2, stop)
    with pytest.raises(ConfigError, match=r"training\.pt: a training was stopped here at \w+, update 2; go on with it"):
        run_case(name, tmp_path)
    saved = torch.load(tmp_path / "training.pt", weights_only=True)
    saved["settings"]["seed"] = 4
    torch.save(saved, tmp_path / "training.pt")
    with pytest.raises(ConfigError, match=r"is of another training: seed was 4, is 3; repeat the options"):
        run_case(name, tmp_path, resume=True)


def test_a_recipe_resumed_with_another_schedule_names_the_part_that_differs(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped):
        counted("mamba recipe shapes", tmp_path, 1, stop)
    with pytest.raises(ConfigError, match=r"schedule\.heads_steps was 20, is 300; .*schedule\.batch was 2, is 8"):
        train_mamba(tmp_path, recipe="shapes", seed=3, resume=True)
