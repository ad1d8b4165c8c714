"""The detector over clips: same numbers as the operator, no look ahead, and attention that learns to use remembered rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from connectors.records import FRAME
from models.mamba import checkpoint
from models.mamba.attention import Attention
from models.mamba.losses import TrainingRules, Truth, rpn_loss
from models.mamba.model import Mamba
from models.mamba.recipe import shapes_model_config
from models.mamba.rollout import MemoryRules, detect_clip, rollout_losses, separable_roi_align
from models.mamba.shapes import Scene, ShapesConfig, make_scene
from operators.base import Context
from operators.mamba import MambaOperator, MambaOptions

SHIPPED = Path(checkpoint.__file__).parent / "weights" / "shapes.safetensors"
RULES = TrainingRules(rpn_samples=64, roi_samples=16, reference_rois=12)


@pytest.fixture
def model() -> Mamba:
    """The small detector with random weights."""
    torch.manual_seed(3)
    return Mamba(shapes_model_config(ShapesConfig())).eval()


def _images(scene: Scene) -> list[torch.Tensor]:
    return [torch.from_numpy(frame) for frame in scene.frames()]


def _losses(model: Mamba, scene: Scene, *, memory: bool) -> dict[str, torch.Tensor]:
    images = model.prepare(_images(scene), "cpu")
    labels = torch.from_numpy(scene.labels_O)
    truth = [Truth(torch.from_numpy(boxes), labels) for boxes in scene.boxes_TO4]
    generator = torch.Generator().manual_seed(0)
    return rollout_losses(model, images, truth, scene.config.frames, generator, RULES, memory=memory)


def test_separable_roi_align_gives_torchvisions_values_and_gradients(model: Mamba) -> None:
    torch.manual_seed(0)
    feature = torch.randn(3, 48, 6, 5, requires_grad=True)
    corners = torch.rand(3, 20, 2, 2) * 110 - 10  # also outside the map, where samples count as 0
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=2)
    boxes[0, 0] = 0.0
    expected, got = model.roi_features(feature, boxes), separable_roi_align(feature, boxes, 7)
    assert torch.allclose(expected, got, atol=1e-4)
    weight = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), feature)
    (gradient,) = torch.autograd.grad((got * weight).sum(), feature)
    assert torch.allclose(wanted, gradient, atol=1e-3)


def test_with_output_projections_of_zero_memory_changes_no_loss(model: Mamba) -> None:
    scene = make_scene(ShapesConfig(frames=4), 1)
    assert not torch.isclose(_losses(model, scene, memory=True)["loss_cls"], _losses(model, scene, memory=False)["loss_cls"])
    for attention in model.head.attention:
        nn.init.zeros_(attention.output.weight)
        nn.init.zeros_(attention.output.bias)
    with_memory, without = _losses(model, scene, memory=True), _losses(model, scene, memory=False)
    assert with_memory.keys() == without.keys() == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    for name, value in without.items():
        assert torch.allclose(value, with_memory[name], atol=1e-5)


@pytest.mark.slow
def test_training_through_the_memory_lowers_the_loss_below_what_one_frame_allows() -> None:
    model = checkpoint.load(SHIPPED.with_name("shapes_base.safetensors")).train()
    scene = next(
        s for s in map(lambda seed: make_scene(ShapesConfig(frames=6), seed), range(99)) if s.degraded_TO[:, 0].sum() == 4
    )
    parameters = list(model.head.attention.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)  # attention alone: the detector itself learns nothing here
    before = float(_losses(model, scene, memory=False)["loss_cls"].detach())
    for _ in range(15):
        loss = _losses(model, scene, memory=True)["loss_cls"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(_losses(model, scene, memory=True)["loss_cls"].detach()) < 0.7 * before
    assert float(_losses(model, scene, memory=False)["loss_cls"].detach()) == before


def test_detections_do_not_depend_on_later_frames(model: Mamba) -> None:
    images = _images(make_scene(ShapesConfig(frames=6), 4))
    rules = MemoryRules(write_topk=12, max_length=40, key_length=20)

    def run(frames: list[torch.Tensor]) -> list[torch.Tensor]:
        return [found.scores_D for found in detect_clip(model, frames, rules, torch.Generator().manual_seed(0))]

    whole, cut = run(images), run([*images[:4], *(torch.zeros_like(image) for image in images[4:])])
    assert all(torch.equal(a, b) for a, b in zip(whole[:4], cut[:4], strict=True))
    assert not torch.equal(whole[5], cut[5])


@pytest.mark.parametrize("memory", [True, False])
def test_a_clip_gives_what_the_operator_gives(memory: bool) -> None:
    scene = make_scene(ShapesConfig(frames=8), 6)
    # Fewer rows than key_length: both sides read all of them, and no draw matters.
    size = {"write_topk": 12, "max_length": 100, "key_length": 100}
    options = MambaOptions(checkpoint=str(SHIPPED), memory=memory, score_threshold=0.4, max_streams=1, **size)
    rows = scene.config.frames
    batch = pa.RecordBatch.from_pydict(
        {
            "stream_id": ["s"] * rows,
            "sequence": list(range(rows)),
            "event_time": pa.array(range(rows), pa.int64()).cast(FRAME.field("event_time").type),
            "image": [scene.frame(t).tobytes() for t in range(rows)],
            "encoding": ["raw_rgb8"] * rows,
            "height": [96] * rows,
            "width": [96] * rows,
            "error": pa.nulls(rows, pa.string()),
        },
        schema=FRAME,
    )
    (streamed,) = MambaOperator(options, Context()).process(batch)
    offline = list(detect_clip(checkpoint.load(SHIPPED), _images(scene), MemoryRules(**size), torch.Generator(), memory=memory))
    assert sum(int((found.scores_D > 0.4).sum()) for found in offline) >= 4, "the comparison must not be about nothing"
    for row, found in zip(streamed.column("detections").to_pylist(), offline, strict=True):
        kept = found.scores_D > 0.4
        assert [entry["label"] for entry in row] == found.labels_D[kept].tolist()
        assert np.allclose([entry["score"] for entry in row], found.scores_D[kept], atol=1e-4)
        edges = np.array([[entry[edge] for edge in ("x1", "y1", "x2", "y2")] for entry in row]).reshape(-1, 4)
        assert np.allclose(edges, found.boxes_D4[kept], atol=1e-2)


def test_the_region_proposals_learn_the_same_with_and_without_memory(model: Mamba) -> None:
    scene = make_scene(ShapesConfig(frames=3), 8)
    images = model.prepare(_images(scene), "cpu")
    feature = model.neck(model.encode(images.pixels_BCHW))
    logits, deltas = model.rpn(feature)
    labels = torch.from_numpy(scene.labels_O)
    truth = [Truth(torch.from_numpy(boxes), labels) for boxes in scene.boxes_TO4]
    generator = torch.Generator().manual_seed(0)
    expected = rpn_loss(logits, deltas, model.rpn.anchors(feature), images.sizes_B2, truth, generator, RULES)
    got = _losses(model, scene, memory=True)
    assert torch.equal(got["loss_rpn_cls"], expected["loss_rpn_cls"])


def test_attention_learns_to_read_the_class_from_remembered_rows() -> None:
    """Without a detector: rows are class vectors where the object was seen, one and the same vector where it was not."""
    K, C, frames, background, degraded = 4, 32, 8, 3, 0.6
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    classes_KC, gray_C, empty_C = noise(K, C), noise(C), noise(C)

    def clips(B: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        label_B = torch.randint(K, (B,), generator=generator)
        hidden_BT = torch.rand(B, frames + 1, generator=generator) < degraded
        object_BTC = torch.where(hidden_BT[..., None], gray_C, classes_KC[label_B][:, None]) + 0.3 * noise(B, frames + 1, C)
        rows_BTRC = torch.cat([object_BTC[:, :frames, None], empty_C + 0.3 * noise(B, frames, background, C)], dim=2)
        return object_BTC[:, -1:], rows_BTRC.flatten(1, 2), label_B, hidden_BT[:, -1]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention, fc, out = Attention(C, 4), nn.Linear(C, C), nn.Linear(C, K)

    def predict(x_B1C: torch.Tensor, rows_BMC: torch.Tensor) -> torch.Tensor:
        h_B1C = fc(x_B1C)
        return out(F.relu(h_B1C + attention(h_B1C, fc(rows_BMC))))[:, 0]

    optimizer = torch.optim.AdamW([*attention.parameters(), *fc.parameters(), *out.parameters()], lr=4e-3)
    for _ in range(250):
        x, rows, label, _ = clips(16)
        loss = F.cross_entropy(predict(x, rows), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    x, rows, label, hidden = clips(1000)
    other = label.roll(1) != label
    with torch.no_grad():
        own = (predict(x, rows).argmax(1) == label)[hidden].float().mean()
        cleared = (predict(x, x).argmax(1) == label)[hidden].float().mean()
        wrong = (predict(x, rows.roll(1, 0)).argmax(1) == label)[hidden & other].float().mean()
    assert own > 0.9, "chance is 0.25; in 1.7 % of the clips no frame shows the class"
    assert cleared < 0.4
    assert wrong < 0.1


def test_rules_of_memory_have_the_papers_defaults() -> None:
    assert dataclasses.asdict(MemoryRules()) == {"write_topk": 75, "max_length": 20000, "key_length": 2000}
