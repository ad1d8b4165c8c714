"""Golden: geometry as Open3D computes it, sampling and losses as the specification means them, names of the backbone."""

import re
from pathlib import Path

import cv2
import fourd_vla_cases
import numpy as np
import pytest
import torch
from golden_cases import assert_complete, golden, read_json, read_npz, sibling

from models.fourd_vla.checkpoint import fit
from models.fourd_vla.config import DecoderConfig, FourDVLAConfig, VisionConfig
from models.fourd_vla.geometry import depth_meters, pool_coordinates, project, unproject
from models.fourd_vla.losses import action_losses
from models.fourd_vla.model import FourDVLA
from models.fourd_vla.sampling import drop_redundant, likeness, window


def test_every_file_belongs_to_a_kind_and_every_kind_has_a_case() -> None:
    assert_complete("fourd_vla", fourd_vla_cases.KINDS)


def tensors(arrays: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(arrays["K"])[None], torch.from_numpy(arrays["T_wc"])[None]


@golden("fourd_vla", ".npz", *fourd_vla_cases.GEOMETRY)
def test_unprojection_equals_open3d(path: Path) -> None:
    arrays, config = read_npz(path), read_json(sibling(path, "case", "config", ".json"))
    name = next(name for name in arrays if re.fullmatch(r"depth_stride\d+", name))
    stride = int(name.removeprefix("depth_stride"))
    camera_B33, pose_B44 = tensors(arrays)
    strided_B33 = camera_B33.clone()
    strided_B33[:, :2] /= stride  # pixel (u, v) of what is given is pixel (stride u, stride v)
    scale_B = torch.tensor([float(config["depth_scale"])])
    depth_BHW, valid_BHW = depth_meters(torch.from_numpy(arrays[name].astype(np.int32))[None], scale_B, config["depth_trunc"])
    points_BHW3 = unproject(depth_BHW, strided_B33, pose_B44)
    np.testing.assert_allclose(points_BHW3[valid_BHW].numpy(), arrays[f"points_stride{stride}"], atol=1e-5)

    seen_BN2 = project(points_BHW3[valid_BHW][None].double(), camera_B33, pose_B44)
    rows, columns = np.nonzero(valid_BHW[0].numpy())
    np.testing.assert_allclose(seen_BN2[0].numpy(), np.stack([columns, rows], axis=1) * stride, atol=1e-3)


@golden("fourd_vla", ".npz", *fourd_vla_cases.PATCHES)
def test_coordinates_of_patches_are_masked_means(path: Path) -> None:
    arrays, config = read_npz(path), read_json(sibling(path, "case", "config", ".json"))
    file = fourd_vla_cases.source_depth(config["source"])
    if file is None:
        pytest.skip(f"the depth image of {config['source']} is part of the shared data, which are not here")
    raw = torch.from_numpy(cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(np.int32))[None]
    depth_BHW, valid_BHW = depth_meters(raw, torch.tensor([float(config["depth_scale"])]), config["depth_trunc"])
    coord_Bhw3, share_Bhw = pool_coordinates(depth_BHW, valid_BHW, *tensors(arrays), config["patch"])
    np.testing.assert_allclose(share_Bhw[0].numpy(), arrays["patch_valid"], atol=1e-6)
    np.testing.assert_allclose(coord_Bhw3[0].numpy(), arrays["patch_coord"], atol=1e-5)


def kept_by_window(feature_TD: torch.Tensor, n: int, k: int) -> list[list[int]]:
    """Return what the product keeps at each time, all times at once."""
    T, ages = len(feature_TD), min(n, len(feature_TD))
    alike_TT = likeness(feature_TD[None])[0]
    at_TN = (torch.arange(T)[:, None] - torch.arange(ages)).clamp_min(0)
    kept_TN = window(alike_TT[at_TN[:, :, None], at_TN[:, None, :]], (torch.arange(T) + 1).clamp_max(n), k)
    return [sorted(int(at_TN[t, age]) for age in kept_TN[t].nonzero()[:, 0]) for t in range(T)]


def kept_step_by_step(feature_TD: torch.Tensor, n: int, k: int) -> list[list[int]]:
    alike_TT, held_T, out = likeness(feature_TD[None])[0], torch.zeros(len(feature_TD), dtype=torch.bool), []
    for t in range(len(feature_TD)):
        held_T[t] = True
        held_T[: max(0, t - n + 1)] = False
        order = torch.arange(t, -1, -1)  # newest first
        held_T[order] = drop_redundant(alike_TT[order][:, order][None], held_T[order][None], k)[0]
        out.append(held_T.nonzero()[:, 0].tolist())
    return out


@pytest.mark.heavy
@golden("fourd_vla", ".npz", *fourd_vla_cases.SAMPLING)
def test_sampling_reproduces_the_traces(path: Path) -> None:
    arrays = read_npz(path)
    for mode, name, n, k in fourd_vla_cases.traces(arrays):
        features = torch.from_numpy(arrays[f"feat_{name}"])
        kept = kept_by_window(features, n, k) if mode == "window" else kept_step_by_step(features, n, k)
        wanted = [[int(i) for i in row if i >= 0] for row in arrays[f"{mode}_{name}_n{n}_k{k}"]]
        assert kept == wanted, f"{mode} of {name}, n={n}, k={k}"


@golden("fourd_vla", ".npz", *fourd_vla_cases.LOSSES)
def test_losses_equal_the_recorded_terms(path: Path) -> None:
    arrays = {name: torch.from_numpy(values) for name, values in read_npz(path).items() if name.startswith("loss_")}
    names = ("dx_pred", "dr_pred", "grip_logit", "dx", "dr", "grip")
    terms = action_losses(*(arrays[f"loss_{name}"] for name in names))
    got = torch.stack([terms[name] for name in ("translation", "rotation", "gripper", "direction")])
    torch.testing.assert_close(got, arrays["loss_terms"], atol=1e-9, rtol=1e-7)


@golden("fourd_vla", ".json", *fourd_vla_cases.KEYS)
def test_published_backbones_fit_the_policy(path: Path) -> None:
    for layout, shapes in read_json(path).items():
        if layout == "note":
            continue
        sizes = {name: tuple(shape) for name, shape in shapes.items()}
        layers = [1 + max(int(m[1]) for name in sizes if (m := re.match(rf"{part}\.layers\.(\d+)\.", name)))
                  for part in (r"vision_model\.encoder", r"language_model\.model")]  # fmt: skip
        hidden, _, patch, _ = sizes["vision_model.embeddings.patch_embedding.weight"]
        vocabulary, width = sizes["language_model.model.embed_tokens.weight"]
        first = "language_model.model.layers.0"
        config = FourDVLAConfig(
            vision=VisionConfig(
                patch=patch,
                width=2 * patch * 16,
                height=2 * patch * 9,
                hidden=hidden,
                layers=layers[0],
                heads=hidden // 64,
                mlp=sizes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
                grid=round((sizes["vision_model.embeddings.position_embedding"][1] - 1) ** 0.5),
            ),
            decoder=DecoderConfig(
                vocabulary=vocabulary,
                hidden=width,
                layers=layers[1],
                heads=width // 96,
                kv_heads=width // 96,
                mlp=sizes[f"{first}.mlp.down_proj.weight"][1],
            ),
        )
        with torch.device("meta"):
            model = FourDVLA(config)
            checkpoint = {name: torch.empty(shape) for name, shape in sizes.items()}
        own = model.state_dict()
        fresh = {name for name in own if name not in checkpoint}
        assert all(re.match(r"coord_embed|coord_invalid|time_embed|action_head", name) for name in fresh)
        assert {name: tuple(own[name].shape) for name in own if name not in fresh} == {
            name: shape for name, shape in sizes.items() if name != "language_model.lm_head.weight"
        }
        renamed = {f"module.vlm.{name}": tensor for name, tensor in checkpoint.items()}
        assert set(fit(model, renamed | {name: own[name] for name in fresh}, layout)) == set()
