"""The small recipe: it learns, a seed fixes it, and the weights in the repository show what the memory gains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from connectors.errors import ConfigError
from models.mamba import checkpoint
from models.mamba.recipe import ShapesSchedule, ShapesWeights, evaluate_shapes, train_shapes
from models.mamba.shapes import ShapesConfig, make_scene
from models.mamba.train import RECIPES, Progress, train
from models.training import Training

WEIGHTS = Path(checkpoint.__file__).parent / "weights"
TINY = ShapesSchedule(heads_steps=2, easy_steps=2, hard_steps=2, memory_steps=2, clips=1, clip_frames=3, batch=2)


@pytest.mark.slow
def test_a_hundred_steps_halve_the_loss() -> None:
    losses: list[float] = []
    schedule = ShapesSchedule(heads_steps=100, easy_steps=1, hard_steps=1, memory_steps=1, clips=1, clip_frames=2, batch=4)
    train_shapes(seed=1, schedule=schedule, control=False, training=Training(progress=lambda p: losses.append(p.loss)))
    assert losses[1] < 0.6 * losses[0], "mean of steps 51-100 against that of steps 1-50"


@pytest.mark.slow
def test_a_seed_fixes_the_weights_whatever_the_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.mamba.recipe._FRESH_CLIPS", 1)
    monkeypatch.setitem(RECIPES, "shapes", ShapesConfig(frames=4))
    threads = torch.get_num_threads()
    states = []
    try:
        for folder, number in (("a", 1), ("b", 2)):
            torch.set_num_threads(number)
            torch.manual_seed(number)  # the caller's own generator plays no part
            result = train(tmp_path / folder, recipe="shapes", seed=5, schedule=TINY)
            assert torch.get_num_threads() == number
            assert result.control is not None
            states.append([checkpoint.load(path).state_dict() for path in (result.weights, result.control)])
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(*states, strict=True):
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    other = train_shapes(seed=6, shapes=RECIPES["shapes"], schedule=TINY, control=False).memory.state_dict()
    assert not torch.equal(other["neck_conv.weight"], states[0][0]["neck_conv.weight"])
    report = json.loads((tmp_path / "b" / "training.json").read_text())
    assert report["recipe"] == "shapes" and report["metrics"] == result.metrics
    assert {"map50_base", "map50_control", "map50_memory"} <= result.metrics.keys()


@pytest.fixture(scope="module")
def tiny() -> tuple[ShapesWeights, list[Progress]]:
    """What the shortest training makes and says."""
    seen: list[Progress] = []
    return train_shapes(seed=0, schedule=TINY, training=Training(progress=seen.append)), seen


def test_progress_names_every_stage_and_its_end(tiny: tuple[ShapesWeights, list[Progress]]) -> None:
    assert [(p.stage, p.step, p.steps) for p in tiny[1]] == [
        (stage, 2, 2) for stage in ("heads", "easy", "hard", "memory", "control")
    ]


def test_stage_two_starts_at_the_plain_detector_and_the_control_stays_one(tiny: tuple[ShapesWeights, list[Progress]]) -> None:
    models, _ = tiny
    for model in (models.base, models.control):
        assert all(not parameter.any() for attention in model.head.attention for parameter in attention.output.parameters())
    assert any(parameter.any() for attention in models.memory.head.attention for parameter in attention.output.parameters())


@pytest.mark.parametrize("clips", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_the_shipped_weights_gain_from_memory_on_fresh_clips(clips: int) -> None:
    scenes = [make_scene(ShapesConfig(), seed) for seed in range(1000, 1000 + clips)]
    memory, control = (checkpoint.load(WEIGHTS / f"{name}.safetensors") for name in ("shapes", "shapes_base"))
    with_memory = evaluate_shapes(memory, scenes, memory=True)
    without = evaluate_shapes(control, scenes, memory=False)
    assert with_memory > without + 0.08
    assert evaluate_shapes(memory, scenes, memory=False) < with_memory, "and it is the memory, not the weights"
    assert memory.config.classes == control.config.classes == ShapesConfig().class_names
    assert sum((WEIGHTS / f"{name}.safetensors").stat().st_size for name in ("shapes", "shapes_base")) < 8_000_000


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({}, "give recipe .* or annotations"),
        ({"recipe": "shape"}, "did you mean 'shapes'"),
        ({"recipe": "shapes", "iterations": 5}, r"remove \['iterations'\]"),
        ({"annotations": "a.json", "schedule": TINY}, "schedule belongs to a recipe"),
        ({"annotations": "a.json", "iteration": 5}, "did you mean 'iterations'"),
        ({"annotations": "a.json"}, "a.json: cannot be read"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(tmp_path: Path, arguments: dict, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        train(tmp_path / "out", **arguments)


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        train(tmp_path / "file" / "out", recipe="shapes", schedule=TINY)


def test_clips_shorter_than_the_rollout_are_refused() -> None:
    with pytest.raises(ConfigError, match="clip_frames is 6, but clips have 4 frames"):
        train_shapes(shapes=ShapesConfig(frames=4))


def test_recipes_differ_in_what_the_memory_must_do() -> None:
    assert {name: config.mode for name, config in RECIPES.items()} == {"shapes": "same_class", "shapes_binding": "binding"}
