"""A compiled network returns what the network returns; batches are padded to few sizes."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from compilers import captured
from sound_models import write_model
from torch import Tensor
from video_streams import frames, interleaved

from models import compiled
from models.mamba.config import MambaConfig
from models.mamba.model import Mamba


def test_batches_are_computed_in_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x * 2

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    run = compiled.bucketed(network, torch.device("cpu"))
    for rows in (1, 2, 3, 5, 8):
        x = torch.randn(rows, 4)
        assert torch.equal(run(x), 2 * x)
    assert seen == [1, 2, 4, 8, 8]


@pytest.mark.slow
def test_the_compiled_backbone_of_the_detector_returns_what_the_eager_one_does() -> None:
    torch.manual_seed(3)
    small = MambaConfig(backbone="conv5", channels=(8, 8, 16, 16, 16), neck_channels=16, fc_channels=32, heads=4)
    model = Mamba(small).fuse_for_inference()
    run = compiled.bucketed(model.encode, torch.device("cpu"))
    with torch.inference_mode():
        for rows in (1, 3):
            pixels = torch.randn(rows, 3, 64, 80).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(run(pixels), model.encode(pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["rekv", "videostreaming", pytest.param("specvqgan", marks=pytest.mark.slow)])
def test_operators_compile_the_network_that_frames_go_through(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's first half only: what it captures must be what the eager network does, in few sizes."""
    sizes: list[int] = []
    found = captured(monkeypatch)
    padded = compiled.padded

    def noted(x_B: Tensor, wanted: int) -> Tensor:
        sizes.append(wanted)
        return padded(x_B, wanted)

    monkeypatch.setattr(compiled, "padded", noted)
    folder = Path(__file__).parents[1] / "operators" / method
    module = import_streams(folder, method, monkeypatch)
    results = []
    for compile_ in (False, True):
        if method == "specvqgan":
            made = module.operator(write_model(tmp_path / "model", columns=3), compile=compile_, batch_frames=3)
            out = made.process(module.clip("a", 3, 30))
            results.append((module.tokens_of(out), module.samples_of(out).tolist()))
        else:
            made = module.operator(module.tiny(tmp_path), compile=compile_, batch_frames=3)
            for start in (0, 3, 6):  # twice three frames, which are padded: one size, as each takes seconds
                made.process(frames(interleaved("ab", 3, start=start)))
            results.append(made.snapshot())
    assert found.graphs and set(sizes) <= {1, 2, 4} and 4 in sizes
    if method == "specvqgan":
        assert results[0] == results[1] and len(results[0][0]) > 5
        return
    for name, rows in results[0].rows.items():
        torch.testing.assert_close(rows.values_R, results[1].rows[name].values_R, atol=1e-4, rtol=1e-4)


def import_streams(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("test_specvqgan_operator" if method == "specvqgan" else f"{method}_streams")
