"""Golden: one training step whose samplers keep everything, with recorded proposals."""

from pathlib import Path

import mamba_cases
import torch
from golden_cases import golden, read_json, read_npz, sibling
from mamba_cases import as_proposals, assert_close, assert_same_boxes, prepared, tiny_model

from models.mamba.checkpoint import official_key
from models.mamba.losses import TrainingRules, Truth, training_step
from models.mamba.targets import assign, sample


@golden("mamba", ".npz", *mamba_cases.TRAIN_STEP)
def test_training_step_losses_and_gradients(path: Path):
    arrays = read_npz(path)
    settings = read_json(sibling(path, "tiny_train_step", "tiny_config", ".json"))
    model = tiny_model(settings, read_npz(sibling(path, "tiny_train_step", "tiny_state_dict", ".npz"))).train()
    keys, references = prepared(arrays["img"], settings), prepared(arrays["refs"], settings)
    truth = Truth(torch.from_numpy(arrays["gt_bboxes"]), torch.from_numpy(arrays["gt_labels"]))
    everything = 2**40
    rules = TrainingRules(rpn_samples=everything, roi_samples=everything, reference_rois=settings["topk"])

    with torch.no_grad():
        ours = model.propose(model.neck(model.encode(keys.pixels_BCHW)), keys.sizes_B2, training=True)
    rows = torch.cat([ours.boxes_BN4, ours.scores_BN[..., None]], dim=-1)[ours.valid_BN].numpy()
    assert_same_boxes(rows, arrays["proposals"], "proposals")

    losses = training_step(
        model,
        keys,
        references,
        [truth],
        torch.Generator(),
        rules,
        proposals=as_proposals(arrays["proposals"]),
        reference_proposals=as_proposals(*(arrays[f"ref_proposals_{i}"] for i in range(len(arrays["refs"])))),
    )
    for name, loss in losses.items():
        assert_close(loss, arrays[f"out_{name}"], name)
    total = torch.stack(list(losses.values())).sum()
    assert_close(total, arrays["out_total"], "total")
    total.backward()
    checked = 0
    for name, parameter in model.named_parameters():
        official = official_key(name)
        if f"grad_{official}" in arrays:
            assert_close(parameter.grad, arrays[f"grad_{official}"], official)
            checked += 1
        if f"gradnorm_{official}" in arrays:
            assert_close(parameter.grad.norm(), arrays[f"gradnorm_{official}"], official)
            checked += 1
        if parameter.grad is None:
            assert not parameter.requires_grad, f"{official} got no gradient"
            assert f"gradnorm_{official}" not in arrays, official
    assert checked == sum(name.startswith("grad") for name in arrays)


@golden("mamba", ".npz", *mamba_cases.TRAIN_STEP)
def test_sampled_rois_are_the_recorded_ones(path: Path):
    arrays = read_npz(path)
    truth_boxes = torch.from_numpy(arrays["gt_bboxes"])
    candidates = torch.cat([truth_boxes, torch.from_numpy(arrays["proposals"][:, :4])])
    match = assign(candidates, truth_boxes, positive_iou=0.5, negative_iou=0.5)
    chosen = sample(match, 2**40, 0.25, torch.Generator())
    positive = chosen.match_S >= 0
    assert_close(candidates[chosen.index_S], arrays["rois_sampled"], "RoIs")
    assert int(positive.sum()) == int(arrays["num_pos"])
    labels = torch.from_numpy(arrays["gt_labels"])[chosen.match_S[positive]]
    assert labels.tolist() == arrays["pos_gt_labels"].tolist()
    assert (chosen.index_S[positive] < len(truth_boxes)).tolist() == arrays["pos_is_gt"].astype(bool).tolist()
