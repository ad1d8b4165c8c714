"""Targets and losses against slow references; the training step learns and keeps its promises."""

import math

import pytest
import torch
from torch import Tensor

from models.mamba import losses as losses_module
from models.mamba.boxes import box_iou, encode_boxes
from models.mamba.config import MambaConfig
from models.mamba.images import Prepared
from models.mamba.losses import TrainingRules, Truth, roi_loss, rpn_loss, training_step
from models.mamba.model import Mamba
from models.mamba.targets import BACKGROUND, IGNORED, assign, inside, sample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(number: int, seed: int) -> Tensor:
    low = torch.rand(number, 2, generator=generator(seed)) * 60
    return torch.cat([low, low + 4 + torch.rand(number, 2, generator=generator(seed + 1)) * 40], dim=1)


def literal_assign(boxes: Tensor, truth: Tensor, positive: float, negative: float, rescue: float | None) -> list[int]:
    iou = box_iou(boxes, truth)
    match = []
    for p in range(len(boxes)):
        best = max(range(len(truth)), key=lambda g: float(iou[p, g]))
        match.append(best if iou[p, best] >= positive else BACKGROUND if iou[p, best] < negative else IGNORED)
    if rescue is not None:
        for g in range(len(truth)):
            top = max(float(v) for v in iou[:, g])
            for p in range(len(boxes)):
                if top >= rescue and float(iou[p, g]) == top:
                    match[p] = g
    return match


@pytest.mark.parametrize("rescue", [None, 0.3])
def test_assignment_equals_a_literal_one(rescue):
    truth = random_boxes(6, 100)
    boxes = torch.cat([random_boxes(80, 0), truth[:3] + 1.0, truth[:2] + 1.0])  # the last two tie with earlier ones
    got = assign(boxes, truth, positive_iou=0.7, negative_iou=0.3, rescue_iou=rescue)
    assert got.tolist() == literal_assign(boxes, truth, 0.7, 0.3, rescue)
    assert {BACKGROUND, IGNORED} < set(got.tolist())  # all three kinds occur


def test_without_objects_everything_is_background():
    assert assign(random_boxes(5, 0), torch.zeros(0, 4), positive_iou=0.5, negative_iou=0.5).tolist() == [BACKGROUND] * 5


def test_sample_keeps_its_shares_and_depends_on_the_generator_only():
    match = torch.tensor([0] * 40 + [BACKGROUND] * 200 + [IGNORED] * 50)[torch.randperm(290, generator=generator(3))]
    chosen = sample(match, 64, 0.25, generator())
    assert int((chosen.match_S >= 0).sum()) == 16
    assert int((chosen.match_S == BACKGROUND).sum()) == 48
    assert chosen.index_S.unique().shape[0] == 64
    assert torch.equal(match[chosen.index_S], chosen.match_S)
    state = torch.get_rng_state()
    assert torch.equal(sample(match, 64, 0.25, generator()).index_S, chosen.index_S)
    assert not torch.equal(sample(match, 64, 0.25, generator(1)).index_S, chosen.index_S)
    assert torch.equal(torch.get_rng_state(), state)


def test_few_positives_are_filled_up_with_background():
    match = torch.tensor([0, 0] + [BACKGROUND] * 200)
    chosen = sample(match, 64, 0.5, generator())
    assert chosen.match_S.tolist() == [0, 0] + [BACKGROUND] * 62


def test_boxes_that_touch_the_far_edge_cross_it():
    boxes = torch.tensor([[0.0, 0, 9, 9], [-0.1, 0, 9, 9], [0, 0, 20, 9], [0, 0, 9, 10], [0, 0, 19.9, 9.9]])
    assert inside(boxes, torch.tensor([10.0, 20.0])).tolist() == [True, False, False, False, True]


def smooth_l1(difference: float, beta: float) -> float:
    return 0.5 * difference**2 / beta if abs(difference) < beta else abs(difference) - 0.5 * beta


def test_rpn_loss_equals_a_literal_one_over_a_batch():
    anchors = torch.cat([random_boxes(60, 0), torch.tensor([[-5.0, 0, 20, 20], [80, 80, 101, 95]])])
    sizes = torch.tensor([[100.0, 100.0], [70.0, 100.0]])
    truth = [
        Truth(anchors[:3] + 1.0, torch.zeros(3, dtype=torch.int64)),
        Truth(anchors[5:6] - 0.5, torch.zeros(1, dtype=torch.int64)),
    ]
    logits = torch.randn(2, 62, generator=generator(5))
    deltas = torch.randn(2, 62, 4, generator=generator(6))
    rules = TrainingRules(rpn_samples=10**6, rpn_positive_share=1.0)
    got = rpn_loss(logits, deltas, anchors, sizes, truth, generator(), rules)
    entropy = regression = 0.0
    number = 0
    for b in range(2):
        allowed = [p for p in range(62) if bool(inside(anchors[p : p + 1], sizes[b]))]
        match = literal_assign(anchors[allowed], truth[b].boxes_G4, 0.7, 0.3, 0.3)
        for p, g in zip(allowed, match, strict=True):
            if g == IGNORED:
                continue
            number += 1
            probability = 1 / (1 + math.exp(-float(logits[b, p])))
            entropy -= math.log(probability if g >= 0 else 1 - probability)
            if g >= 0:
                wanted = encode_boxes(anchors[p], truth[b].boxes_G4[g])
                regression += sum(smooth_l1(float(d), 1 / 9) for d in deltas[b, p] - wanted)
    assert float(got["loss_rpn_cls"]) == pytest.approx(entropy / number, rel=1e-4)
    assert float(got["loss_rpn_bbox"]) == pytest.approx(regression / number, rel=1e-4)


def test_roi_loss_is_class_specific_and_ignores_padding():
    truth = [Truth(random_boxes(2, 0), torch.tensor([2, 0])), Truth(random_boxes(1, 9), torch.tensor([1]))]
    boxes = [torch.cat([truth[0].boxes_G4 + 2, random_boxes(3, 30)]), torch.cat([truth[1].boxes_G4 - 1, random_boxes(1, 40)])]
    samples = [sample(torch.tensor(m), 99, 1.0, generator()) for m in ([0, 1, -1, -1, -1], [0, -1])]
    cls, reg = torch.randn(2, 5, 4, generator=generator(1)), torch.randn(2, 5, 3, 4, generator=generator(2))
    got = roi_loss(cls, reg, boxes, samples, truth)
    entropy = regression = 0.0
    for b in range(2):
        for s, g in enumerate(samples[b].match_S.tolist()):
            label = 3 if g < 0 else int(truth[b].labels_G[g])
            entropy -= float(cls[b, s].log_softmax(0)[label])
            if g >= 0:
                wanted = encode_boxes(boxes[b][s], truth[b].boxes_G4[g]) / 0.2
                regression += sum(smooth_l1(float(d), 1.0) for d in reg[b, s, label] - wanted)
    assert float(got["loss_cls"]) == pytest.approx(entropy / 7, rel=1e-4)
    assert float(got["loss_bbox"]) == pytest.approx(regression / 7, rel=1e-4)
    cls[1, 2:], reg[1, 2:] = 1e6, -1e6
    assert roi_loss(cls, reg, boxes, samples, truth) == got


def small_model(**changes) -> Mamba:
    torch.manual_seed(0)
    settings = {
        "classes": ("a", "b"),
        "backbone": "conv5",
        "channels": (8, 8, 16, 16, 16),
        "neck_channels": 16,
        "fc_channels": 32,
        "heads": 4,
        "pixel_heads": 4,
        "anchor_scales": (1.25, 2.0, 3.0),
        "anchor_ratios": (1.0,),
        "proposals": 10,
        "train_proposals": 20,
    }
    return Mamba(MambaConfig(**(settings | changes)))


def batch(number: int, references: int, seed: int = 0) -> tuple[Prepared, Prepared, list[Truth]]:
    def images(n: int, shift: int) -> Prepared:
        pixels = torch.randn(n, 3, 64, 64, generator=generator(seed + shift))
        return Prepared(pixels, torch.full((n, 2), 64.0), torch.ones(n, 2))

    truth = [Truth(torch.tensor([[8.0, 8, 40, 44]]), torch.tensor([i % 2])) for i in range(number)]
    return images(number, 0), images(number * references, 1), truth


RULES = TrainingRules(reference_rois=6, rpn_samples=64, roi_samples=32, pixel_cells=10)


@pytest.mark.parametrize("position", [None, "backbone", "neck"])
def test_every_trainable_parameter_gets_a_gradient_and_references_carry_some(position):
    model = small_model(**({} if position is None else {"pixel_level": True, "pixel_position": position}))
    keys, references, truth = batch(2, 3)
    references.pixels_BCHW.requires_grad_()
    losses = training_step(model, keys, references, truth, generator(), RULES)
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"]
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    moved = references.pixels_BCHW.grad.abs().flatten(1).amax(dim=1)
    assert bool((moved > 0).all())


def test_without_references_the_plain_detector_is_trained():
    model = small_model()
    keys, _, truth = batch(2, 1)
    torch.stack(list(training_step(model, keys, None, truth, generator(), RULES).values())).sum().backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None}
    assert untouched == {name for name, _ in model.named_parameters() if name.startswith("head.attention")}


def test_a_batch_of_keys_averages_over_all_its_samples_and_keeps_memories_apart():
    model = small_model()
    keys, references, truth = batch(2, 2)
    everything = TrainingRules(reference_rois=6, rpn_samples=10**6, roi_samples=10**6)
    with torch.no_grad():
        together = training_step(model, keys, references, truth, generator(), everything)
        counted, alone = [], []
        for b in range(2):
            one = Prepared(*(part[b : b + 1] for part in keys))
            its = Prepared(*(part[2 * b : 2 * b + 2] for part in references))
            proposals = model.propose(model.neck(model.encode(one.pixels_BCHW)), one.sizes_B2, training=True)
            counted.append(1 + int(proposals.valid_BN.sum()))
            alone.append(training_step(model, one, its, truth[b : b + 1], generator(), everything))
    for name in ("loss_cls", "loss_bbox"):
        mean = sum(float(a[name]) * n for a, n in zip(alone, counted, strict=True)) / sum(counted)
        assert float(together[name]) == pytest.approx(mean, rel=1e-4)


def test_pixel_keys_are_capped_and_come_from_every_reference(monkeypatch):
    model = small_model(pixel_level=True)
    seen = []
    monkeypatch.setattr(model.pixel, "project", lambda rows: seen.append(rows) or type(model.pixel).project(model.pixel, rows))
    maps = torch.arange(2.0 * 3 * 16).reshape(6, 1, 4, 4).expand(-1, 16, -1, -1).contiguous()
    losses_module._enhance_pixels(model, torch.zeros(2, 16, 4, 4), maps, RULES, generator())
    rows = seen[0][..., 0].reshape(2, -1)
    assert rows.shape == (2, RULES.pixel_cells)
    for b in range(2):
        images = {int(v) // 16 for v in rows[b].tolist()}
        assert images <= {3 * b, 3 * b + 1, 3 * b + 2}
        assert len(images) == 3
        assert rows[b].unique().shape[0] == RULES.pixel_cells


def test_image_without_objects_trains_on_background_only():
    model = small_model()
    keys, references, _ = batch(1, 2)
    empty = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = training_step(model, keys, references, [empty], generator(), RULES)
    assert losses["loss_bbox"].item() == losses["loss_rpn_bbox"].item() == 0.0
    assert losses["loss_cls"].item() > 0
    torch.stack(list(losses.values())).sum().backward()


def test_uneven_references_are_refused():
    keys, references, truth = batch(2, 2)
    three = Prepared(*(part[:3] for part in references))
    with pytest.raises(ValueError, match="3 reference images for 2 key images"):
        training_step(small_model(), keys, three, truth, generator(), RULES)


@pytest.mark.heavy
def test_steps_with_the_same_generator_repeat_and_training_lowers_the_loss():
    keys, references, truth = batch(2, 2)

    def train(steps: int) -> list[float]:
        model = small_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        draws, totals = generator(), []
        for _ in range(steps):
            total = torch.stack(list(training_step(model, keys, references, truth, draws, RULES).values())).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(float(total.detach()))
        return totals

    first = train(25)
    assert first[:4] == train(4)
    assert first[-1] < 0.5 * first[0]
