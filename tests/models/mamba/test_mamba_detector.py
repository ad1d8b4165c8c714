"""The detector's stages against slow references, and every trap on the way from torchvision's defaults to this model.

A trap's test shows both: our value is the reference, and the trapped variant differs from it.
"""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.mamba.backbone import ResNet
from models.mamba.boxes import base_anchors, box_iou, decode_boxes
from models.mamba.config import MambaConfig
from models.mamba.model import BOX_DELTA_STD, Mamba, Proposals


def small_config(**changes) -> MambaConfig:
    settings = {
        "classes": ("a", "b", "c"),
        "blocks": (1, 2, 1, 2),
        "channels": (8, 16, 16, 32, 32),
        "neck_channels": 16,
        "fc_channels": 32,
        "heads": 4,
        "anchor_scales": (1.0, 2.0, 4.0),
        "nms_pre": 60,
        "proposals": 20,
        "train_proposals": 30,
        "max_long_side": 128,
        "max_short_side": 96,
    }
    return MambaConfig(**(settings | changes))


def small_model(seed: int = 0, **changes) -> Mamba:
    torch.manual_seed(seed)
    model = Mamba(small_config(**changes))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    for layer in (model.rpn.objectness, model.rpn.deltas, model.head.logits, model.head.deltas):
        nn.init.normal_(layer.weight, std=0.3)
    return model.eval()


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- backbone -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision_dc5() -> torchvision.models.ResNet:
    torch.manual_seed(0)
    return torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()


def torchvision_map(net: torchvision.models.ResNet, pixels: Tensor) -> Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(pixels))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


@torch.inference_mode()
@pytest.mark.heavy
def test_backbone_dilates_the_first_block_of_the_last_stage_where_torchvision_does_not(torchvision_dc5):
    ours = ResNet((3, 4, 6, 3), (64, 256, 512, 1024, 2048)).eval()
    state = {k: v for k, v in torchvision_dc5.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state)  # strict: the names are torchvision's
    pixels = torch.randn(1, 3, 64, 96)
    trapped = torchvision_map(torchvision_dc5, pixels)
    first = torchvision_dc5.layer4[0].conv2
    before = (first.dilation, first.padding)
    first.dilation, first.padding = (2, 2), (2, 2)
    wanted = torchvision_map(torchvision_dc5, pixels)
    first.dilation, first.padding = before
    got = ours(pixels)
    assert got.shape == (1, 2048, 4, 6)
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(got, trapped, atol=1e-2)


def test_batch_norm_keeps_its_statistics_and_stem_and_first_stage_stay_frozen_in_training():
    model = small_model().train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "tracked" in k}
    model.encode(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))
    }
    assert model.backbone.layer2[0].bn1.weight.grad is not None


@torch.inference_mode()
def test_folding_batch_norm_changes_nothing_and_leaves_none():
    model, pixels = small_model(), torch.randn(2, 3, 64, 64)
    wanted = model.encode(pixels)
    fused = model.fuse_for_inference().fuse_for_inference()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused.encode(pixels), wanted, atol=1e-4, rtol=1e-4)
    channels_last = fused.to(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last.encode(pixels), wanted, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_plain_convolutions_reach_stride_16_and_survive_fusing():
    model = small_model(backbone="conv5", channels=(8, 16, 16, 24, 32))
    pixels = torch.randn(1, 3, 96, 64)
    wanted = model.encode(pixels)
    assert wanted.shape == (1, 32, 6, 4)
    assert torch.equal(model.fuse_for_inference().encode(pixels), wanted)


@torch.inference_mode()
def test_neck_ends_with_relu():
    model = small_model()
    feature_map = model.encode(torch.randn(1, 3, 64, 64))
    raw = model.neck_conv(feature_map)
    assert float(raw.min()) < 0 <= float(model.neck(feature_map).min())
    assert torch.equal(model.neck(feature_map), raw.clamp(min=0))


# --- images -------------------------------------------------------------------------------------------------------------


def test_resize_follows_the_long_and_short_side_rule():
    config = MambaConfig()
    model = small_model(max_long_side=config.max_long_side, max_short_side=config.max_short_side)
    assert model.resized_size(720, 1280) == (563, 1000)
    assert model.resized_size(480, 640) == (600, 800)
    assert model.resized_size(1280, 720) == (1000, 563)
    assert model.padded_size(720, 1280) == (576, 1008)
    assert not model.is_too_small(16, 1000)
    assert model.is_too_small(15, 1000)
    assert model.is_too_small(0, 10)


def test_pixels_are_normalized_before_padding_so_that_padding_is_zero():
    model = small_model()
    picture = torch.full((85, 120, 3), 7, dtype=torch.uint8)
    ready = model.prepare([picture], "cpu")
    h, w = (int(s) for s in ready.sizes_B2[0])
    assert ready.pixels_BCHW.shape[2:] == model.padded_size(85, 120)
    assert h < ready.pixels_BCHW.shape[2]
    wanted = (7 - torch.tensor(model.config.mean_rgb)) / torch.tensor(model.config.std_rgb)
    torch.testing.assert_close(ready.pixels_BCHW[0, :, :h, :w], wanted[:, None, None].expand(3, h, w))
    padding = ready.pixels_BCHW.clone()
    padding[:, :, :h, :w] = 0
    assert torch.count_nonzero(padding) == 0
    trapped = -torch.tensor(model.config.mean_rgb) / torch.tensor(model.config.std_rgb)  # padded, then normalized
    assert float(trapped.abs().min()) > 1


def test_resizing_equals_opencv_within_one_level():
    model = small_model()
    picture = image(150, 211)
    ready = model.prepare([picture], "cpu")
    h, w = model.resized_size(150, 211)
    wanted = cv2.resize(picture.numpy(), (w, h), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    mean, std = np.float32(model.config.mean_rgb), np.float32(model.config.std_rgb)
    got = ready.pixels_BCHW[0, :, :h, :w].permute(1, 2, 0).numpy() * std + mean
    assert np.abs(got - wanted).max() <= 1.001
    assert ready.scales_B2[0].tolist() == pytest.approx([h / 150, w / 211])


def test_images_of_different_size_stack_when_their_padded_size_agrees():
    model = small_model()
    pictures = [image(96, 128), image(192, 256, 1), image(95, 127, 2), image(96, 128, 3)]
    together = model.prepare(pictures, "cpu")
    for i, picture in enumerate(pictures):
        alone = model.prepare([picture], "cpu")
        assert torch.equal(together.pixels_BCHW[i], alone.pixels_BCHW[0])
        assert torch.equal(together.sizes_B2[i], alone.sizes_B2[0])
    with pytest.raises(ValueError, match="share a padded size"):
        model.prepare([image(96, 128), image(96, 64)], "cpu")


# --- proposals ----------------------------------------------------------------------------------------------------------


def literal_proposals(model: Mamba, feature: Tensor, size: tuple[float, float]) -> list[tuple[float, ...]]:
    """The RPN of one image, one box at a time."""
    config = model.config
    x = F.relu(model.rpn.conv(feature))
    scores, deltas = model.rpn.objectness(x).sigmoid()[0], model.rpn.deltas(x)[0]
    base = base_anchors(config.anchor_base, config.anchor_scales, config.anchor_ratios)
    candidates = []
    for row in range(feature.shape[2]):
        for column in range(feature.shape[3]):
            for a in range(len(base)):
                anchor = base[a] + torch.tensor([column, row, column, row]) * config.anchor_base
                box = decode_boxes(anchor, deltas[4 * a : 4 * a + 4, row, column]).tolist()
                candidates.append((float(scores[a, row, column]), *box))
    candidates.sort(reverse=True)
    kept: list[tuple[float, ...]] = []
    for score, x1, y1, x2, y2 in candidates[: config.nms_pre]:
        box = (min(max(x1, 0), size[1]), min(max(y1, 0), size[0]), min(max(x2, 0), size[1]), min(max(y2, 0), size[0]))
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        others = torch.tensor([k[:4] for k in kept]).reshape(-1, 4)
        if (box_iou(torch.tensor([box]), others) > config.rpn_nms).any():
            continue
        kept.append((*box, score))
    return kept[: config.proposals]


@torch.inference_mode()
def test_proposals_equal_a_literal_rpn_and_end_at_the_image_without_padding():
    model = small_model()
    feature = model.neck(model.encode(torch.randn(2, 3, 96, 128)))
    sizes = torch.tensor([[90.0, 120.0], [81.0, 128.0]])
    got = model.propose(feature, sizes)
    assert got.boxes_BN4.shape == (2, model.config.proposals, 4)
    for b in range(2):
        wanted = torch.tensor(literal_proposals(model, feature[b : b + 1], tuple(sizes[b].tolist())))
        rows = torch.cat([got.boxes_BN4[b], got.scores_BN[b, :, None]], dim=1)[got.valid_BN[b]]
        torch.testing.assert_close(rows, wanted, atol=1e-3, rtol=1e-4)
        assert bool((rows[:, 2] <= sizes[b, 1]).all() and (rows[:, 3] <= sizes[b, 0]).all())
    assert float(got.boxes_BN4[..., 2].max()) == 128.0  # image 1 is as wide as its padding, image 0 is not


@torch.inference_mode()
def test_half_precision_weights_do_not_round_anchors_and_the_stages_run():
    model = small_model(anchor_ratios=(0.5, 1.0, 2.0))
    pixels, sizes = torch.randn(1, 3, 96, 128), torch.tensor([[96.0, 128.0]])
    wanted = model.rpn.anchors(model.neck(model.encode(pixels)))
    feature = model.bfloat16().neck(model.encode(pixels.bfloat16()))
    assert torch.equal(model.rpn.anchors(feature), wanted)
    proposals = model.propose(feature, sizes)
    cls, reg = model.head(model.roi_features(feature, proposals.boxes_BN4))
    assert {proposals.boxes_BN4.dtype, cls.dtype, reg.dtype} == {torch.float32}
    assert model.detect(cls, reg, proposals, sizes, torch.ones(1, 2))[0].boxes_D4.dtype == torch.float32


@torch.inference_mode()
def test_boxes_without_area_are_dropped_and_missing_proposals_are_marked_invalid():
    model = small_model()
    P = 5
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]]) + torch.arange(P)[:, None] * 30.0
    outside = model.rpn.select(torch.randn(1, P), torch.zeros(1, P, 4), anchors, torch.tensor([[35.0, 35.0]]), 4)
    assert outside.valid_BN[0].tolist() == [True, True, False, False]  # the other three lie beyond the edge: w = h = 0
    assert torch.count_nonzero(outside.boxes_BN4[0, 2:]) == 0
    assert torch.count_nonzero(outside.scores_BN[0, 2:]) == 0
    nothing = model.rpn.select(torch.randn(1, P), torch.zeros(1, P, 4), anchors - 500, torch.tensor([[35.0, 35.0]]), 4)
    assert not nothing.valid_BN.any()


@torch.inference_mode()
def test_training_keeps_more_proposals_than_serving():
    model = small_model(rpn_nms=0.95)
    feature = model.neck(model.encode(torch.randn(1, 3, 96, 128)))
    sizes = torch.tensor([[96.0, 128.0]])
    serving, training = model.propose(feature, sizes), model.propose(feature, sizes, training=True)
    assert (serving.valid_BN.shape[1], training.valid_BN.shape[1]) == (20, 30)
    assert torch.equal(training.boxes_BN4[:, :20], serving.boxes_BN4)


# --- RoI features and detection -----------------------------------------------------------------------------------------


@torch.inference_mode()
def test_roi_features_are_half_pixel_aligned_and_flattened_channel_by_channel():
    model = small_model()
    feature = torch.randn(2, 16, 6, 8)
    boxes = torch.tensor([[[3.0, 5.0, 90.0, 70.0]], [[20.0, 11.0, 64.0, 95.0]]])
    got = model.roi_features(feature, boxes)
    for b in range(2):
        x1, y1, x2, y2 = (c / 16 - 0.5 for c in boxes[b, 0].tolist())
        wanted = torch.empty(16, 7, 7)
        for i in range(7):
            for j in range(7):
                samples = [
                    bilinear(feature[b], y1 + (y2 - y1) * (i + (p + 0.5) / 2) / 7, x1 + (x2 - x1) * (j + (q + 0.5) / 2) / 7)
                    for p in range(2)
                    for q in range(2)
                ]
                wanted[:, i, j] = torch.stack(samples).mean(0)
        torch.testing.assert_close(got[b, 0], wanted.flatten(), atol=1e-4, rtol=1e-4)
    unaligned = roi_align(feature, list(boxes), 7, 1 / 16, sampling_ratio=2, aligned=False).flatten(1)
    adaptive = roi_align(feature, list(boxes), 7, 1 / 32, sampling_ratio=2, aligned=True).flatten(1)
    for trapped in (unaligned, adaptive):
        assert float((trapped - got[:, 0]).abs().max()) > 0.1


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    height, width = feature.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    fy, fx = y - top, x - left
    upper = feature[:, top, left] * (1 - fx) + feature[:, top, left + 1] * fx
    lower = feature[:, top + 1, left] * (1 - fx) + feature[:, top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def head_output(classes: int, number: int, seed: int = 0) -> tuple[Tensor, Tensor, Proposals]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(1, number, 2, generator=generator) * 60
    boxes = torch.cat([low, low + 8 + torch.rand(1, number, 2, generator=generator) * 40], dim=-1)
    cls = torch.randn(1, number, classes + 1, generator=generator) * 2
    reg = torch.randn(1, number, classes, 4, generator=generator)
    return cls, reg, Proposals(boxes, torch.rand(1, number, generator=generator), torch.ones(1, number, dtype=torch.bool))


def literal_detections(model: Mamba, cls, reg, boxes, size, scale) -> list[tuple[float, ...]]:
    """Box, score and class of every detection of one image, one class at a time."""
    config, found = model.config, []
    for label in range(len(config.classes)):
        candidates = []
        for n in range(cls.shape[0]):
            score = float(cls[n].softmax(0)[label])  # background is the last index
            box = decode_boxes(boxes[n], reg[n, label] * 0.2)
            low, high = torch.zeros(4), torch.tensor([size[1], size[0], size[1], size[0]])
            box = torch.minimum(torch.maximum(box, low), high) / torch.tensor([scale[1], scale[0], scale[1], scale[0]])
            if score > config.score_threshold:
                candidates.append((score, *box.tolist()))
        kept: list[tuple[float, ...]] = []
        for score, *box in sorted(candidates, reverse=True):
            others = torch.tensor([k[:4] for k in kept]).reshape(-1, 4)
            if not (box_iou(torch.tensor([box]), others) > config.box_nms).any():
                kept.append((*box, score, label))
        found += kept
    return sorted(found, key=lambda row: -row[4])[: config.max_detections]


@torch.inference_mode()
def test_detections_equal_a_literal_post_processing():
    model = small_model(score_threshold=0.05, max_detections=25)
    cls, reg, proposals = head_output(3, 40)
    sizes, scales = torch.tensor([[90.0, 100.0]]), torch.tensor([[0.5, 0.49]])
    got = model.detect(cls, reg, proposals, sizes, scales)[0]
    rows = torch.cat([got.boxes_D4, got.scores_D[:, None], got.labels_D[:, None]], dim=1)
    wanted = literal_detections(model, cls[0], reg[0], proposals.boxes_BN4[0], (90.0, 100.0), (0.5, 0.49))
    torch.testing.assert_close(rows, torch.tensor(wanted), atol=1e-3, rtol=1e-4)
    assert rows.shape[0] == 25
    assert bool((got.scores_D.diff() <= 0).all())
    assert pytest.approx(0.2) == BOX_DELTA_STD


@torch.inference_mode()
def test_boxes_of_different_classes_do_not_suppress_each_other():
    model = small_model(score_threshold=0.2)
    cls, reg, proposals = head_output(3, 2)
    cls[:] = torch.tensor([5.0, 5.0, -9.0, -9.0])
    proposals.boxes_BN4[:] = torch.tensor([10.0, 10.0, 50.0, 50.0])
    found = model.detect(cls, torch.zeros_like(reg), proposals, torch.tensor([[90.0, 100.0]]), torch.ones(1, 2))[0]
    assert sorted(found.labels_D.tolist()) == [0, 1]


@torch.inference_mode()
def test_background_is_the_last_class_and_invalid_proposals_give_nothing():
    model = small_model()
    cls, reg, proposals = head_output(3, 2)
    cls[:] = torch.tensor([9.0, 0.0, 0.0, 0.0])  # surely class 0; with background first it would be nothing
    sizes, scales = torch.tensor([[200.0, 200.0]]), torch.ones(1, 2)
    found = model.detect(cls, reg, proposals, sizes, scales)[0]
    assert found.labels_D[0] == 0
    assert float(found.scores_D[0]) > 0.99
    cls[:] = torch.tensor([0.0, 0.0, 0.0, 30.0])
    assert model.detect(cls, reg, proposals, sizes, scales)[0].boxes_D4.shape == (0, 4)
    nobody = proposals._replace(valid_BN=torch.zeros(1, 2, dtype=torch.bool))
    assert model.detect(-cls, reg, nobody, sizes, scales)[0].scores_D.shape == (0,)


@torch.inference_mode()
def test_a_batch_gives_the_same_detections_as_each_image_alone():
    model = small_model()
    pictures = [image(96, 128, seed) for seed in range(3)]

    def run(batch: list[Tensor]) -> list[Tensor]:
        ready = model.prepare(batch, "cpu")
        feature = model.neck(model.encode(ready.pixels_BCHW))
        proposals = model.propose(feature, ready.sizes_B2)
        cls, reg = model.head(model.roi_features(feature, proposals.boxes_BN4))
        return [d.boxes_D4 for d in model.detect(cls, reg, proposals, ready.sizes_B2, ready.scales_B2)]

    for together, picture in zip(run(pictures), pictures, strict=True):
        torch.testing.assert_close(together, run([picture])[0], atol=1e-2, rtol=1e-3)


@torch.inference_mode()
def test_zero_output_projections_make_mamba_a_plain_faster_rcnn_for_any_memory():
    model = small_model()
    for attention in model.head.attention:
        attention.output.weight.zero_()
        attention.output.bias.zero_()
    x, memory = torch.randn(2, 5, 16 * 49), torch.randn(2, 11, 16 * 49)
    plain = model.head(x)
    for got, wanted in zip(model.head(x, memory), plain, strict=True):
        assert torch.equal(got, wanted)
    h = F.relu(model.head.fc[1](F.relu(model.head.fc[0](x))))
    torch.testing.assert_close(plain[0], model.head.logits(h))


@torch.inference_mode()
def test_attention_reads_rows_before_relu_in_both_stages():
    model = small_model()
    x, memory = torch.randn(1, 5, 16 * 49), torch.randn(1, 11, 16 * 49)
    h, k = model.head.fc[0](x), model.head.fc[0](memory)
    y = h + model.head.attention[0](h, k)
    h, k = model.head.fc[1](F.relu(y)), model.head.fc[1](F.relu(k))
    y = h + model.head.attention[1](h, k)
    wanted = model.head.logits(F.relu(y))
    torch.testing.assert_close(model.head(x, memory)[0], wanted)
    trapped = h + model.head.attention[1](h, F.relu(k))
    assert not torch.allclose(model.head.logits(F.relu(trapped)), wanted, atol=1e-3)
