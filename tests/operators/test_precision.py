"""``precision: bfloat16``: the networks that ship answer as well as in float32; frames go to a device as the bytes they are."""

from pathlib import Path

import pytest
import torch
from launches import DEVICE, on_device

import models
from benchmarks.mamba_memory_gain import frames, precision
from models.films import make_film
from models.mamba.images import prepare_images
from models.mamba.shapes import ShapesConfig, make_scene
from models.rekv.evaluate import film_quality
from models.rekv.header import SMALL_REKV, SMALL_WEIGHTS
from models.rekv.loaders import load_model
from operators.base import Context
from operators.mamba import MambaOperator, MambaOptions
from operators.precision import NetworkOptions, network_dtype

SHAPES = Path(models.__file__).parent / "mamba" / "weights" / "shapes.safetensors"


def test_the_option_names_a_type_or_keeps_that_of_the_checkpoint() -> None:
    found = [network_dtype(NetworkOptions(precision=name)) for name in (None, "float32", "bfloat16")]
    assert found == [None, torch.float32, torch.bfloat16]


@pytest.mark.slow
def test_rekv_answers_about_films_as_well_in_bfloat16() -> None:
    films = [make_film(seed) for seed in (70, 71, 72)]
    both = [
        film_quality(load_model(SMALL_WEIGHTS, SMALL_REKV, dtype=dtype), SMALL_REKV, films)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert both[1].accuracy["memory"] >= both[0].accuracy["memory"] - 0.05
    assert both[1].recall >= both[0].recall - 0.05


@pytest.mark.slow
def test_mamba_detects_as_well_in_bfloat16() -> None:
    scenes = [make_scene(ShapesConfig(), 900 + number) for number in range(4)]
    found = []
    for name in ("float32", "bfloat16"):
        operator = MambaOperator(MambaOptions(checkpoint=str(SHAPES), precision=name), Context(name="detect"))  # type: ignore[arg-type]
        times = range(scenes[0].config.frames)
        rows = [operator.process(frames(scene, [f"clip{i}"] * len(times), times, times))[0] for i, scene in enumerate(scenes)]
        found.append(precision(scenes, rows))
    assert found[1] >= found[0] - 0.03, found


@pytest.mark.parametrize("size", [(48, 64), (90, 120)])
def test_a_frame_goes_to_the_device_as_the_bytes_it_has(size: tuple[int, int]) -> None:
    pictures = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8)
    with on_device() as launches, torch.inference_mode():
        model = load_model(SMALL_WEIGHTS, SMALL_REKV, device=DEVICE)
        assert model.frames is not None
        launches.clear()
        model.frames(pictures)
        constants = 2 * 3 * 4  # mean and spread of three colors
        assert launches.uploaded() == pictures.numel() + constants
        assert not launches.of("read") and not [event for event in launches.events if event.waits]


def test_a_frame_of_the_detector_goes_to_the_device_as_the_bytes_it_has() -> None:
    from models.mamba.config import MambaConfig

    pictures = torch.randint(0, 256, (2, 90, 120, 3), dtype=torch.uint8)
    with on_device() as launches:
        prepare_images(MambaConfig(), list(pictures), DEVICE)
        constants = 2 * 3 * 4 + 2 * 2 * 2 * 4  # mean and spread; sizes and scales of two images
        assert launches.uploaded() == pictures.numel() + constants
        assert not launches.of("read") and not [event for event in launches.events if event.waits]
