"""Golden: the slow reference that makes cases of other sizes reproduces the published vectors itself."""

from collections.abc import Iterator
from pathlib import Path

import mamba_cases
import mamba_reference as reference
import mamba_reference_training as training
import numpy as np
import pytest
import torch
from golden_cases import golden, read_json, read_npz, sibling
from mamba_cases import assert_close, assert_same_boxes
from mamba_reference import Bank, Network
from torch import Tensor


class Replay:
    """Hands recorded permutations out, frame by frame, and tells which were used."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        recorded = [(t, j) for t in range(len(arrays["frames"])) for j in range(len(arrays)) if f"f{t}_perm{j}" in arrays]
        self.left: Iterator[Tensor] = iter([arrays[f"f{t}_perm{j}"] for t, j in recorded])
        self.used: list[Tensor] = []

    def __call__(self, size: int) -> Tensor:
        self.used.append(next(self.left))
        assert len(self.used[-1]) == size
        return self.used[-1]

    def since_last(self, frame: int) -> list[Tensor]:
        used, self.used = self.used, []
        return used


def tensors(path: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in read_npz(path).items()}


def assert_reproduced(made: dict[str, Tensor], recorded: dict[str, Tensor], inputs: set[str]) -> None:
    """Compare all recorded entries but the inputs; boxes as sets."""
    assert set(recorded) - inputs <= set(made), sorted(set(recorded) - inputs - set(made))
    for name in sorted(set(recorded) - inputs):
        got, wanted = made[name], recorded[name].numpy()
        if name.endswith("_det") or "proposals" in name:
            assert_same_boxes(got.numpy(), wanted, name)
        elif np.issubdtype(wanted.dtype, np.integer):
            assert np.array_equal(got.numpy(), wanted), name
        else:
            if "roi_feats" in name and wanted.size != got.numel():
                got = got.flatten(2).mean(2)
            assert_close(got.reshape(wanted.shape), wanted, name)


@golden("mamba", ".npz", *mamba_cases.VIDEO)
def test_reference_repeats_the_instance_level_video(path: Path) -> None:
    arrays, settings = tensors(path), read_json(sibling(path, "tiny_video", "tiny_config", ".json"))
    net = Network(tensors(sibling(path, "tiny_video", "tiny_state_dict", ".npz")), settings)
    draw = Replay(arrays)
    made = reference.instance_video(net, arrays["frames"], arrays["refs"], draw, draw.since_last)
    assert_reproduced(made, arrays, {"frames", "refs"})
    assert next(draw.left, None) is None


@golden("mamba", ".npz", *mamba_cases.PIXEL_VIDEO)
def test_reference_repeats_the_pixel_and_instance_level_video(path: Path) -> None:
    arrays, settings = tensors(path), read_json(sibling(path, "tiny_pixel_video", "tiny_pixel_config", ".json"))
    state = {name.removeprefix("state."): tensor for name, tensor in arrays.items() if name.startswith("state.")}
    draw = Replay(arrays)
    made = reference.pixel_video(
        Network(state, settings),
        arrays["frames"],
        arrays["refs"],
        draw,
        draw.since_last,
        lambda entry, found, map_: arrays[entry],
    )
    made |= {
        name: tensor[:, : arrays[name].shape[1]] for name, tensor in made.items() if name.startswith("init") and "det" in name
    }
    assert_reproduced(made, arrays, {"frames", "refs", *(f"state.{name}" for name in state)})
    assert next(draw.left, None) is None


@golden("mamba", ".npz", *mamba_cases.TRAIN_STEP)
@pytest.mark.heavy
def test_reference_repeats_the_training_step(path: Path) -> None:
    arrays, settings = tensors(path), read_json(sibling(path, "tiny_train_step", "tiny_config", ".json"))
    net = Network(tensors(sibling(path, "tiny_train_step", "tiny_state_dict", ".npz")), settings)
    made = training.training_step(net, *(arrays[n] for n in ("img", "refs", "gt_bboxes", "gt_labels")), big=2**40)
    made |= {name.replace("grad_", "gradnorm_"): tensor.norm() for name, tensor in made.items() if name.startswith("grad_")}
    assert_reproduced(made, arrays, {"img", "refs", "gt_bboxes", "gt_labels", "out_acc"})


@golden("mamba", ".npz", *mamba_cases.BANK)
def test_reference_repeats_the_bank_trace(path: Path) -> None:
    arrays = tensors(path)
    bank = Bank(arrays["init"], int(arrays["max_length"]), int(arrays["key_length"]))
    for t in range(int(arrays["n_steps"])):
        if f"s{t}_new" in arrays:
            assert torch.equal(bank.read(lambda size, t=t: arrays[f"s{t}_read_perm"]), arrays[f"s{t}_read"])
            bank.write(arrays[f"s{t}_new"], lambda size, t=t: arrays[f"s{t}_keep_perm"])
            assert torch.equal(bank.rows, arrays[f"s{t}_after"])


@golden("mamba", ".npz", *mamba_cases.ATTENTION)
def test_reference_repeats_the_attention(path: Path) -> None:
    arrays = tensors(path)
    for case in sorted({name.split("_")[0] for name in arrays if name.startswith("agg")}):
        params = {name.removeprefix(f"{case}_p."): tensor for name, tensor in arrays.items() if name.startswith(f"{case}_p.")}
        x, keys, heads = (arrays[f"{case}_{n}"] for n in ("x", "keys", "heads"))
        net = Network(params, {"H": 0, "W": 0})
        assert_close(
            reference.attention(net, "", int(heads), x.double(), keys.double()),
            arrays[f"{case}_out_f64"].numpy(),
            case,
            atol=1e-10,
        )


@golden("mamba", ".npz", *mamba_cases.EVALUATION)
def test_reference_repeats_the_evaluation(path: Path) -> None:
    arrays = read_npz(path)
    results = training.evaluate(arrays["gt"], arrays["pred"], int(arrays["n_images"]), len(arrays["ap_all"]) - 1)
    for name, value in results.items():
        np.testing.assert_allclose(value, arrays[name], atol=1e-6, err_msg=name)
