"""Training of the 4D-VLA policy: a short recipe lowers the loss and is a function of its seed; own demonstrations load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lerobot_sets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_previews import check_previews

from connectors.errors import ConfigError, SourceError
from connectors.sources.lerobot import LeRobotOptions, LeRobotSource
from models.fourd_vla.checkpoint import load_policy
from models.fourd_vla.geometry import unproject
from models.fourd_vla.recipe import RECIPES, SmallSchedule, measure, train_task
from models.fourd_vla.scenes import Scenes, random_cameras, render
from models.fourd_vla.train import train
from models.training import Progress
from pipelines.commands.train import train_method

SHORT = SmallSchedule(steps=20, batch=8, fresh=8)


def test_a_short_recipe_lowers_the_loss_and_is_a_function_of_its_seed(tmp_path: Path) -> None:
    seen: list[Progress] = []
    first = train(tmp_path / "a", recipe="past", seed=3, schedule=SHORT, progress=seen.append)
    again = train_task("past", 3, SHORT)
    mine = [progress.loss for progress in seen if "window" in progress.stage]
    assert mine[-1] < mine[0]
    assert set(first.metrics) == {"right", "right_control"}
    for name, tensor in load_policy(first.weights).model.state_dict().items():
        assert tensor.equal(again.model.state_dict()[name])
    check_previews(first, {"past window": 4, "past last_k": 4})
    assert first.control is not None and load_policy(first.control).model.config.coordinates


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_makes_samples_whose_answers_it_can_read_back(recipe: str) -> None:
    task = RECIPES[recipe]
    samples = task.make(12, torch.Generator().manual_seed(1))
    assert samples.color_STHW3.shape == (12, task.window, task.height, task.width, 3)
    if task.answers:
        right = task.decode(samples.move_S3, 10 * (samples.grip_S - 0.5))
        assert right.equal(samples.answer_S)
        assert set(samples.answer_S.tolist()) <= set(range(task.answers))


def test_rendered_depth_lies_on_the_floor_and_on_the_cubes() -> None:
    generator = torch.Generator().manual_seed(0)
    cameras = random_cameras(3, 24, 32, generator)
    scenes = Scenes(torch.tensor([[[0.0, 0.0, 0.1]]]).repeat(3, 1, 1), torch.full((3, 1), 0.2), torch.zeros(3, 1, 3))
    color, depth = render(scenes, cameras)
    points = unproject(depth, cameras.camera_S33, cameras.pose_S44)
    is_cube = (color == 0).all(-1)
    assert is_cube.any()
    floor = points[~is_cube & (depth > 0)][:, 2]
    torch.testing.assert_close(floor, torch.zeros_like(floor), atol=1e-4, rtol=0)
    off = (points[is_cube] - torch.tensor([0.0, 0.0, 0.1])).abs().amax(1)
    torch.testing.assert_close(off, torch.full_like(off, 0.1), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_past_is_remembered_by_sampling_and_lost_without() -> None:
    schedule = SmallSchedule(steps=250)
    with_memory = train_task("past", 0, schedule)
    without = train_task("past", 0, schedule, sampling="last_k")
    assert measure(with_memory, "past", 200, "window") >= 0.9
    assert measure(without, "past", 200, "last_k") < 0.4


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a LeRobot data set as a pipeline from ``lerobot`` to ``parquet`` writes them."""
    folder = tmp_path_factory.mktemp("demonstrations")
    path = lerobot_sets.make_set(folder / "set", (6, 6, 6))
    source = LeRobotSource(LeRobotOptions(path=str(path), camera=[30.0, 31.0, 15.5, 11.0], pose="camera.pose"))
    batches = []
    for split in source.splits():
        batches.append(source.open(split, None).read(100, 1 << 30))
    pq.write_table(pa.Table.from_batches(batches), folder / "rows.parquet")
    return folder / "rows.parquet"


def test_own_demonstrations_are_learned_and_measured_on_held_out_episodes(demonstrations: Path, tmp_path: Path) -> None:
    sizes = {"width": 32, "height": 32, "patch": 8, "hidden": 16, "layers": 1, "steps": 30, "batch": 4, "window": 4, "keep": 2}
    result = train(tmp_path, data=str(demonstrations), state_dim=2, validation=0.34, device="cpu", **sizes)
    assert result.metrics["rows"] == 18
    check_previews(result, {"policy": 4}, size=(340, 900))
    assert result.metrics["rows_bad"] == 0
    assert 0 <= result.metrics["held_out_gripper"] <= 1
    policy = load_policy(result.weights)
    assert policy.model.config.state_dim == 2
    assert policy.model.config.action_scale.translation == pytest.approx((0.5, 0.5, 0.5), abs=0.01)
    assert policy.tokenizer.encode("open the drawer") == policy.tokenizer.encode("Open the drawer")


def test_a_lerobot_data_set_and_any_source_are_learned_from_directly(demonstrations: Path, tmp_path: Path) -> None:
    folder = demonstrations.parent / "set"
    size = ["--width=32", "--height=32", "--patch=8", "--hidden=16", "--layers=1", "--steps=3", "--batch=2", "--device=cpu"]
    source = f"{{type: lerobot, path: {folder}, camera: [30.0, 31.0, 15.5, 11.0], pose: camera.pose}}"
    said = train_method("fourd_vla", [f"--out={tmp_path / 'a'}", "--data", source, *size], live=False)
    assert "rows  18" in said
    by_hand = train(
        tmp_path / "b",
        data=str(demonstrations),
        width=32,
        height=32,
        patch=8,
        hidden=16,
        layers=1,
        steps=3,
        batch=2,
        device="cpu",
    )
    weights = [load_policy(file).model.state_dict() for file in (tmp_path / "a" / "policy.safetensors", by_hand.weights)]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    plain = train_method("fourd_vla", [f"--out={tmp_path / 'c'}", f"--data={folder}", "--coordinates=false", *size], live=False)
    assert "rows  18" in plain


def test_a_source_of_a_training_that_cannot_be_is_named(demonstrations: Path, tmp_path: Path) -> None:
    def wrong(data: str) -> str:
        with pytest.raises((ConfigError, SourceError)) as caught:
            train_method("fourd_vla", [f"--out={tmp_path}", "--data", data, "--steps=1", "--device=cpu"], live=False)
        return str(caught.value)

    folder = demonstrations.parent / "set"
    assert "18 rows: depth without a camera matrix; give camera: [fx, fy, cx, cy] to the source" in wrong(str(folder))
    assert "has no type; write a source as in a pipeline file" in wrong("{path: x}")
    assert "--data.camra: unknown option" in wrong(f"{{type: lerobot, path: {folder}, camra: [1, 1, 0, 0]}}")
    assert "unknown source type 'lerobt'" in wrong(f"{{type: lerobt, path: {folder}}}")
    assert "has no end" in wrong("{type: host}")


class _StoppedError(Exception):
    pass


def test_a_training_on_own_data_that_was_stopped_goes_on_bit_for_bit(demonstrations: Path, tmp_path: Path) -> None:
    sizes = {"width": 32, "height": 32, "patch": 8, "hidden": 16, "layers": 1, "steps": 6, "batch": 2, "device": "cpu"}
    options: dict[str, Any] = {"data": str(demonstrations), "checkpoint_every": 2, **sizes}

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise _StoppedError

    whole = train(tmp_path / "whole", **options)
    with pytest.raises(_StoppedError):
        train(tmp_path / "stopped", progress=stop, **options)
    assert torch.load(tmp_path / "stopped" / "training.pt", weights_only=True)["position"]["done"] == 4
    with pytest.raises(ConfigError, match="a training was stopped here"):
        train(tmp_path / "stopped", **options)
    resumed = train(tmp_path / "stopped", resume=True, **options)
    first, second = (load_policy(run.weights).model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    with pytest.raises(ConfigError, match="batch was 2, is 3"):
        train(tmp_path / "stopped", resume=True, **(options | {"batch": 3}))


def test_demonstrations_that_cannot_be_used_are_named(tmp_path: Path, demonstrations: Path) -> None:
    with pytest.raises(ConfigError, match="has no column action"):
        table = pq.read_table(demonstrations).drop_columns(["action"])
        pq.write_table(table, tmp_path / "x.parquet")
        train(tmp_path, data=str(tmp_path / "x.parquet"))
    with pytest.raises(ConfigError, match="nothing to learn from"):
        train(tmp_path)
