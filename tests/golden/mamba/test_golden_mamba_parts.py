"""Golden: discovery, attention with gradients, its older forms, the evaluator, the official parameter list."""

from pathlib import Path

import golden_cases
import mamba_cases
import numpy as np
import pytest
import torch
from golden_cases import golden, read_json, read_npz
from torch import nn

from models.mamba.attention import Attention
from models.mamba.checkpoint import official_key, own_key
from models.mamba.config import MambaConfig
from models.mamba.evaluate import Found, Objects, evaluate_motion, mean_average_precision
from models.mamba.model import Mamba

LINEARS = {"query": "fc_embed", "key": "ref_fc_embed", "value": "ref_fc", "output": "fc"}


@pytest.mark.golden
def test_every_folder_has_cases_and_every_file_is_checked():
    golden_cases.assert_complete("mamba", mamba_cases.KINDS)


@golden("mamba", ".npz", *mamba_cases.ATTENTION)
def test_attention_and_its_gradients(path: Path):
    arrays = read_npz(path)
    for case in sorted({name.split("_")[0] for name in arrays if name.startswith("agg")}):
        x, keys = (torch.from_numpy(arrays[f"{case}_{n}"])[None].requires_grad_() for n in ("x", "keys"))
        attention = Attention(x.shape[-1], int(arrays[f"{case}_heads"]))
        for ours, theirs in LINEARS.items():
            layer = getattr(attention, ours)
            layer.weight.data = torch.from_numpy(arrays[f"{case}_p.{theirs}.weight"])
            layer.bias.data = torch.from_numpy(arrays[f"{case}_p.{theirs}.bias"])
        out = attention(x, keys)
        mamba_cases.assert_close(out[0], arrays[f"{case}_out"], f"{case} out")
        out.backward(torch.from_numpy(arrays[f"{case}_gout"])[None])
        mamba_cases.assert_close(x.grad[0], arrays[f"{case}_gx"], f"{case} gradient of x")
        mamba_cases.assert_close(keys.grad[0], arrays[f"{case}_gkeys"], f"{case} gradient of the keys")
        for ours, theirs in LINEARS.items():
            # The key bias has gradient 0, recorded as the round-off of sums as large as its weight's: one scale per layer.
            scale = float(np.abs(arrays[f"{case}_g.{theirs}.weight"]).max())
            for part in ("weight", "bias"):
                gradient, wanted = getattr(getattr(attention, ours), part).grad, arrays[f"{case}_g.{theirs}.{part}"]
                mamba_cases.assert_close(gradient, wanted, f"{case} {theirs}.{part}", scale=scale)
        with torch.inference_mode():
            exact = attention.double()(x.double(), keys.double())
        mamba_cases.assert_close(exact[0], arrays[f"{case}_out_f64"], f"{case} out in float64", atol=1e-10)


@golden("mamba", ".npz", *mamba_cases.OLDER_ATTENTION)
def test_older_attention_is_the_same_with_identity_as_output(path: Path):
    """Its grouped convolution maps the averaged key per head, which is the value projection pulled behind the softmax."""
    arrays = read_npz(path)
    for case in sorted({name.rsplit("_x", 1)[0] for name in arrays if name.startswith("geo") and name.endswith("_x")}):
        x, keys = (torch.from_numpy(arrays[f"{case}_{n}"])[None] for n in ("x", "keys"))
        attention = Attention(x.shape[-1], int(arrays[f"{case}_heads"]))
        for layer, name in ((attention.query, "wq"), (attention.key, "wk"), (attention.value, "wv")):
            layer.weight.data = torch.from_numpy(arrays[f"{case}_p.{name}.weight"]).reshape(layer.weight.shape)
            layer.bias.data = torch.from_numpy(arrays[f"{case}_p.{name}.bias"])
        nn.init.eye_(attention.output.weight)
        nn.init.zeros_(attention.output.bias)
        with torch.inference_mode():
            term = attention(x, keys)
        weight = float(arrays[f"{case}_query_weight"])
        out = x + term if "attention" in case else weight * x + (1 - weight) * term
        mamba_cases.assert_close(out[0], arrays[f"{case}_out"], case)


@golden("mamba", ".npz", *mamba_cases.EVALUATION)
def test_evaluator_repeats_the_published_one(path: Path):
    arrays = read_npz(path)
    gt, pred = arrays["gt"], arrays["pred"]
    truth = Objects(gt[:, 0].astype(int), gt[:, 1:5], gt[:, 5].astype(int) - 1, gt[:, 6])
    found = Found(pred[:, 0].astype(int), pred[:, 1:5], pred[:, 5].astype(int) - 1, pred[:, 6])
    classes = arrays["ap_all"].shape[0] - 1
    results = evaluate_motion(truth, found, images=int(arrays["n_images"]), classes=classes)
    for name, result in results.items():
        np.testing.assert_allclose(result.ap_K, arrays[f"ap_{name}"][1:], atol=1e-6, err_msg=name)
        assert abs(result.mean - float(arrays[f"map_{name}"])) < 1e-6, name
    plain = mean_average_precision(truth, found, classes=classes)
    np.testing.assert_array_equal(plain.ap_K, results["all"].ap_K)


@golden("mamba", ".json", *mamba_cases.KEYS)
def test_full_size_model_has_the_official_parameters(path: Path):
    official = read_json(path)
    with torch.device("meta"):
        model = Mamba(MambaConfig(pixel_level=any(name.startswith("pixel.") for name in official)))
    ours = {official_key(name): tensor for name, tensor in model.state_dict().items()}
    assert ours.keys() == official.keys()
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == {n: e["shape"] for n, e in official.items()}
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in ours.items()}
    assert kinds == {name: entry["dtype"] for name, entry in official.items()}
    assert all(official_key(own_key(name)) == name for name in official)
