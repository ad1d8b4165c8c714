"""Golden: whole tiny videos, replayed by the published procedure written out slowly on top of the networks."""

# N proposals, C channels, L map cells

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mamba_cases
import numpy as np
import torch
import torch.nn.functional as F
from golden_cases import golden, read_json, read_npz, sibling
from mamba_cases import (
    LiteralBank,
    as_proposals,
    assert_close,
    assert_roi_features,
    assert_same_boxes,
    in_order_of,
    prepared,
    tiny_model,
)
from torch import Tensor

from models.mamba.images import Prepared
from models.mamba.model import Mamba, Proposals


def detections(model: Mamba, cls: Tensor, reg: Tensor, proposals: Proposals, image: Prepared) -> np.ndarray:
    """Return [D, 6]: box, score, class."""
    found = model.detect(cls, reg, proposals, image.sizes_B2[:1], image.scales_B2[:1])[0]
    return torch.cat([found.boxes_D4, found.scores_D[:, None], found.labels_D[:, None]], dim=1).numpy()


def first(proposals: Proposals, topk: int) -> Proposals:
    return Proposals(*(part[:, :topk] for part in proposals))


def joined(proposals: Proposals) -> np.ndarray:
    """Return the valid proposals of one image as [N, 5]."""
    rows = torch.cat([proposals.boxes_BN4[0], proposals.scores_BN[0, :, None]], dim=1)
    return rows[proposals.valid_BN[0]].numpy()


def start(model: Mamba, x_key: Tensor, x_refs: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run the head on the first frame: every reference row is a key. Return logits, deltas and the rows of each stage."""
    rows = []
    for fc, attention in zip(model.head.fc, model.head.attention, strict=True):
        h_refs, h = fc(x_refs), fc(x_key)
        rows.append(h_refs[0])
        x_key, x_refs = F.relu(h + attention(h, h_refs)), F.relu(h_refs)
    return *model.head.predict(x_key), rows


def step(model: Mamba, x: Tensor, banks: list[LiteralBank], topk: int) -> tuple[Tensor, Tensor]:
    """Run the head on a later frame: read, enhance, write, stage by stage."""
    for fc, attention, bank in zip(model.head.fc, model.head.attention, banks, strict=True):
        h = fc(x)
        y = h + attention(h, bank.read()[None])
        bank.write(y[0, :topk])
        x = F.relu(y)
    return model.head.predict(x)


@golden("mamba", ".npz", *mamba_cases.VIDEO)
@torch.inference_mode()
def test_instance_level_video(path: Path):
    arrays = read_npz(path)
    settings = read_json(sibling(path, "tiny_video", "tiny_config", ".json"))
    model = tiny_model(settings, read_npz(sibling(path, "tiny_video", "tiny_state_dict", ".npz")))
    topk = settings["topk"]
    banks: list[LiteralBank] = []
    for t in range(len(arrays["frames"])):
        image = prepared(arrays["frames"][t : t + 1], settings)
        feature_map = model.encode(image.pixels_BCHW)
        feature = model.neck(feature_map)
        if f"f{t}_backbone" in arrays:
            assert_close(feature_map, arrays[f"f{t}_backbone"], f"frame {t} backbone")
            assert_close(feature, arrays[f"f{t}_neck"], f"frame {t} neck")
        assert_same_boxes(joined(model.propose(feature, image.sizes_B2)), arrays[f"f{t}_proposals"], f"frame {t} proposals")
        # From here on with the recorded proposals, whose order may differ from ours where scores tie.
        proposals = as_proposals(arrays[f"f{t}_proposals"])
        x = model.roi_features(feature, proposals.boxes_BN4)
        if f"f{t}_roi_feats" in arrays:
            assert_roi_features(x[0], arrays[f"f{t}_roi_feats"], feature.shape[1], f"frame {t} RoI features")
        if t == 0:
            cls, reg, rows = start(model, x, reference_rows(model, arrays, settings))
            banks = [LiteralBank(r, settings["max_len"], settings["key_len"], iter(())) for r in rows]
        else:
            drawn = mamba_cases.draws(arrays, t)
            for bank in banks:
                bank.draws = drawn
            cls, reg = step(model, x, banks, topk)
            assert next(drawn, None) is None, f"frame {t}: a recorded draw was not used"
        assert_close(cls[0], arrays[f"f{t}_cls_score"], f"frame {t} class logits")
        assert_close(reg[0].flatten(1), arrays[f"f{t}_bbox_pred"], f"frame {t} deltas")
        found = detections(model, cls, reg, proposals, image)
        assert_same_boxes(found, arrays[f"f{t}_det"], f"frame {t} detections")
        for i, bank in enumerate(banks):
            assert_close(bank.rows, arrays[f"f{t}_bank{i}"], f"frame {t} bank {i}")


def reference_rows(model: Mamba, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Tensor:
    """Return the RoI features of the references and the first frame, checked on the way."""
    rows = []
    images = np.concatenate([arrays["refs"], arrays["frames"][:1]])
    for i in range(len(images)):
        image = prepared(images[i : i + 1], settings)
        feature = model.neck(model.encode(image.pixels_BCHW))
        recorded = arrays[f"f0_ref_proposals_{i}"]
        found = joined(first(model.propose(feature, image.sizes_B2), settings["topk"]))
        assert_same_boxes(found, recorded, f"reference {i} proposals")
        rows.append(model.roi_features(feature, as_proposals(recorded).boxes_BN4)[0])
    x = torch.cat(rows)[None]
    if "f0_ref_roi_feats" in arrays:
        assert_roi_features(x[0], arrays["f0_ref_roi_feats"], model.config.neck_channels, "reference RoI features")
    return x


def cells_of(box: np.ndarray, height: int, width: int) -> set[int]:
    """Return the cells whose center lies in the box, else the one that holds the center of the box."""
    inside = {
        row * width + column
        for row in range(height)
        for column in range(width)
        if box[0] <= (column + 0.5) * 16 <= box[2] and box[1] <= (row + 0.5) * 16 <= box[3]
    }
    if inside:
        return inside
    column = min(max(int((box[0] + box[2]) / 2 // 16), 0), width - 1)
    row = min(max(int((box[1] + box[3]) / 2 // 16), 0), height - 1)
    return {row * width + column}


def assert_cells(written: np.ndarray, found: np.ndarray, map_CHW: Tensor, settings: Mapping[str, Any], what: str) -> None:
    """Check recorded cells against the rule of the pixel bank; which cells of a big box were drawn is free."""
    height, width = map_CHW.shape[1:]
    boxes = found[found[:, 4] > settings["thr"]]
    if len(boxes) == 0:
        strongest = map_CHW.flatten(1).norm(dim=0).topk(min(settings["fb"], height * width)).indices
        assert set(written.tolist()) == set(strongest.tolist()), what
        return
    position = 0
    for box in boxes:
        allowed = cells_of(box, height, width)
        number = min(len(allowed), settings["ppb"], settings["ppf"] - position)
        chunk = written[position : position + number].tolist()
        assert len(set(chunk)) == number and set(chunk) <= allowed, f"{what}: cells {chunk} of {box}"
        position += number
    assert position == len(written), what


@golden("mamba", ".npz", *mamba_cases.PIXEL_VIDEO)
@torch.inference_mode()
def test_pixel_and_instance_level_video(path: Path):
    arrays = read_npz(path)
    settings = read_json(sibling(path, "tiny_pixel_video", "tiny_pixel_config", ".json"))
    weights = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
    model = tiny_model(settings, weights)
    at_neck, topk = settings["position"] == "neck", settings["topk"]

    # Start of the video: plain maps of references and first frame; every image is detected with all top rows as keys.
    images = np.concatenate([arrays["refs"], arrays["frames"][:1]])
    image = prepared(images, settings)
    settings |= {"scale": 1.0}  # recorded boxes of the pixel level are in pixels of the network's input
    in_network_pixels = prepared(images[:1], settings)
    plain = model.encode(image.pixels_BCHW)
    features = model.neck(plain)
    proposals = model.propose(features, image.sizes_B2)
    x = model.roi_features(features, proposals.boxes_BN4)
    x_refs = x[:, :topk].reshape(1, -1, x.shape[-1])[:, first(proposals, topk).valid_BN.flatten()]
    stored = features if at_neck else plain
    drawn = mamba_cases.draws(arrays, 0)  # the start may overflow the bank already; its draws are those of frame 0
    pixels = LiteralBank(stored.new_zeros(0, stored.shape[1]), settings["pmax"], settings["pkey"], drawn)
    rows: list[Tensor] = []
    for i in range(len(images)):
        cls, reg, rows = start(model, x[i : i + 1], x_refs)
        found = detections(model, cls, reg, Proposals(*(part[i : i + 1] for part in proposals)), in_network_pixels)
        width = arrays[f"init{i}_det"].shape[1]
        assert_same_boxes(found[:, :width], arrays[f"init{i}_det"], f"image {i} of the start")
        assert_cells(arrays[f"init{i}_cells"], arrays[f"init{i}_det"], stored[i], settings, f"image {i} of the start")
        pixels.write(stored[i].flatten(1).T[torch.from_numpy(arrays[f"init{i}_cells"])])
    assert_close(pixels.rows, arrays["init_bank"], "pixel bank at the start")
    banks = [LiteralBank(r, settings["max_len"], settings["key_len"], iter(())) for r in rows]

    for t in range(len(arrays["frames"])):
        drawn = mamba_cases.draws(arrays, t) if t else drawn
        for bank in (pixels, *banks):
            bank.draws = drawn
        image = prepared(arrays["frames"][t : t + 1], settings)
        before = model.encode(image.pixels_BCHW)
        before = model.neck(before) if at_neck else before
        assert_close(before, arrays[f"f{t}_map"], f"frame {t} map")
        keys = pixels.read()
        assert_close(keys, arrays[f"f{t}_pix_keys"], f"frame {t} pixel keys")
        cells = before.flatten(2).transpose(1, 2)
        enhanced = (cells + model.pixel(cells, keys[None])).transpose(1, 2).reshape(before.shape)
        assert_close(enhanced, arrays[f"f{t}_map_enhanced"], f"frame {t} enhanced map")
        feature = enhanced if at_neck else model.neck(enhanced)
        proposals = model.propose(feature, image.sizes_B2)
        assert proposals.valid_BN.any()
        proposals = Proposals(*(part[:, proposals.valid_BN[0]] for part in proposals))
        cls, reg = step(model, model.roi_features(feature, proposals.boxes_BN4), banks, topk)
        found = detections(model, cls, reg, proposals, in_network_pixels)
        assert_same_boxes(found, arrays[f"f{t}_det"], f"frame {t} detections")
        assert_cells(arrays[f"f{t}_written_cells"], arrays[f"f{t}_det"], enhanced[0], settings, f"frame {t} cells")
        pixels.write(enhanced[0].flatten(1).T[torch.from_numpy(arrays[f"f{t}_written_cells"])])
        assert next(drawn, None) is None, f"frame {t}: a recorded draw was not used"
        assert_close(pixels.rows, arrays[f"f{t}_pix_bank"], f"frame {t} pixel bank")
        for i, bank in enumerate(banks):
            bank.rows = bank.rows[in_order_of(arrays[f"f{t}_ins_bank{i}"], bank.rows)]
            assert_close(bank.rows, arrays[f"f{t}_ins_bank{i}"], f"frame {t} bank {i}")
