"""Fine-tuning on own videos: it learns, it goes on where it was stopped, and it draws as the paper says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from connectors.errors import ConfigError, DeviceError
from models.mamba import checkpoint
from models.mamba.annotations import read_annotations
from models.mamba.frames import FrameStore
from models.mamba.model import Mamba
from models.mamba.recipe import shapes_model_config
from models.mamba.samples import Sampler
from models.mamba.shapes import ShapesConfig, render_clips
from models.mamba.train import Progress, train
from models.mamba.validation import detect_with_references, validate

SHIPPED = Path(checkpoint.__file__).parent / "weights" / "shapes.safetensors"
QUIET: dict[str, Any] = {"device": "cpu", "preview_every": 0}
SMALL = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in shapes_model_config(ShapesConfig()).to_json().items()
    if name != "classes"
}
TINY_RESNET = {
    "blocks": [1, 1, 1, 1],
    "channels": [8, 32, 64, 128, 256],
    "neck_channels": 32,
    "fc_channels": 64,
    "heads": 4,
    "anchor_scales": [1.25, 2.0, 3.0],
    "anchor_ratios": [1.0],
    "proposals": 30,
    "train_proposals": 60,
    "max_long_side": 96,
    "max_short_side": 96,
}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two video files of five clean frames each, and their annotations."""
    return render_clips(tmp_path / "clips", config=ShapesConfig(frames=5, degraded=0.0), seeds=[1, 2], scale=1)


class _StoppedError(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_bit_for_bit(clips: Path, tmp_path: Path) -> None:
    options = QUIET | {"annotations": str(clips), "init": str(SHIPPED), "iterations": 4, "batch": 2}

    def stop(progress: Progress) -> None:
        raise _StoppedError

    whole = train(tmp_path / "whole", **options)
    # Reports come with a validation, before the checkpoint of that step: the run loses step 2.
    with pytest.raises(_StoppedError):
        train(tmp_path / "stopped", progress=stop, validation=str(clips), validate_every=2, checkpoint_every=1, **options)
    assert torch.load(tmp_path / "stopped" / "training.pt", weights_only=True)["position"]["done"] == 1
    assert not list((tmp_path / "stopped").glob(".training.pt*"))
    seen: list[int] = []
    resumed = train(tmp_path / "stopped", resume=True, progress=lambda p: seen.append(p.step), **options)
    assert seen == [4]
    first, second = (checkpoint.load(run.weights).state_dict() for run in (whole, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("held_out", [False, True])
def test_previews_show_what_is_found_on_frames_and_leave_the_weights_as_they_are(
    held_out: bool, clips: Path, tmp_path: Path
) -> None:
    other = render_clips(tmp_path / "other", config=ShapesConfig(frames=4, degraded=0.0), seeds=[7], scale=1)
    options: dict[str, Any] = {"annotations": str(clips), "init": str(SHIPPED), "iterations": 2, "batch": 1, "device": "cpu"}
    options |= {"validation": str(other)} if held_out else {}
    shown, plain = train(tmp_path / "a", preview_every=1, **options), train(tmp_path / "b", preview_every=0, **options)
    assert [path.name for path in shown.previews] == ["finetune-00000001.png", "finetune-00000002.png"]
    assert plain.previews == () and not (tmp_path / "b" / "previews").exists()
    one, two = (checkpoint.load(run.weights).state_dict() for run in (shown, plain))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())

    # White frames of the annotated boxes, and boxes of the shipped weights in other colors, over the frames of the file.
    videos = read_annotations(str(other if held_out else clips), None)
    picture = cv2.imread(str(shown.previews[-1]))[..., ::-1]
    tiles = min(len(videos), 6)
    height, width = videos.size_I2[0]
    side = round(height * 320 / width)
    assert picture.shape == (2 * side, 960, 3)
    store = FrameStore(videos, tmp_path / "cache")
    store.extract()
    first = cv2.resize(store.read(0), (320, side), interpolation=cv2.INTER_AREA)
    changed = (picture[:side, :320] != first).any(axis=2)
    assert 0.002 < changed.mean() < 0.3
    assert (picture[:side, :320][changed] == 255).all(axis=1).any()
    assert (picture[side:, (tiles - 3) * 320 :] == 0).all() if tiles < 6 else True


def test_a_folder_of_another_run_is_refused_with_the_difference(clips: Path, tmp_path: Path) -> None:
    options = QUIET | {"annotations": str(clips), "init": str(SHIPPED), "iterations": 1, "batch": 1}
    done = train(tmp_path / "run", **options)
    assert train(tmp_path / "run", resume=True, **options).metrics == done.metrics
    with pytest.raises(ConfigError, match="batch was 1, is 2"):
        train(tmp_path / "run", resume=True, **(options | {"batch": 2}))
    document = json.loads(clips.read_text())
    document["annotations"][0]["bbox"][2] -= 1
    clips.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"annotations was 10 frames.*checksum"):
        train(tmp_path / "run", resume=True, **options)


def test_a_damaged_checkpoint_of_a_run_is_named(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "training.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ConfigError, match=r"training\.pt is damaged"):
        train(tmp_path, resume=True, annotations=str(clips), init=str(SHIPPED), iterations=1, device="cpu")


@pytest.mark.slow
def test_twenty_frames_are_learned_from_random_weights(tmp_path: Path) -> None:
    config = ShapesConfig(frames=10, degraded=0.0, classes=2)
    path = render_clips(tmp_path / "clips", config=config, seeds=[2, 3], scale=1)
    losses: list[float] = []
    result = train(
        tmp_path / "out",
        annotations=str(path),
        network={**SMALL, "channels": [16, 24, 32, 48, 48], "neck_channels": 16},
        iterations=70,
        batch=1,
        learning_rate=0.02,
        progress=lambda p: losses.append(p.loss),
        **QUIET,
    )
    assert len(losses) == 2 and losses[1] < 0.6 * losses[0]
    assert checkpoint.load(result.weights).config.classes == ("red", "green")
    assert json.loads((tmp_path / "out" / "training.json").read_text())["metrics"]["loss"] == losses[-1]


@pytest.mark.parametrize("pixel_level", [False, True])
def test_a_resnet_trains_with_its_stem_frozen(clips: Path, tmp_path: Path, pixel_level: bool) -> None:
    network = {**TINY_RESNET, "pixel_level": pixel_level}
    result = train(tmp_path, annotations=str(clips), validation=str(clips), network=network, iterations=2, batch=1, **QUIET)
    model = checkpoint.load(result.weights)
    trained = model.state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = Mamba(model.config).state_dict()
    changed = {name for name, tensor in fresh.items() if not torch.equal(tensor, trained[name])}
    assert not any(name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1")) for name in changed)
    assert not any("running_" in name for name in changed)
    assert {"backbone.layer4.0.conv2.weight", "rpn.conv.weight", "head.attention.1.value.weight"} <= changed
    assert ("pixel.value.weight" in changed) is pixel_level
    assert 0.0 <= result.metrics["map50"] <= 1.0


def test_known_classes_keep_their_outputs_and_new_ones_start_fresh(tmp_path: Path) -> None:
    path = render_clips(tmp_path / "clips", config=ShapesConfig(frames=3), seeds=[0], scale=1)
    document = json.loads(path.read_text())
    document["categories"] = [
        {"id": 1, "name": "van"},
        {"id": 2, "name": "blue"},
        {"id": 3, "name": "lorry"},
        {"id": 4, "name": "red"},
    ]
    path.write_text(json.dumps(document))
    options = QUIET | {"iterations": 1, "batch": 1, "learning_rate": 1e-12}
    done = train(tmp_path / "out", annotations=str(path), init=str(SHIPPED), **options)
    tuned, start = checkpoint.load(done.weights), checkpoint.load(SHIPPED)
    assert tuned.config.classes == ("van", "blue", "lorry", "red")
    old = {name: label for label, name in enumerate(start.config.classes)}
    for label, name in ((1, "blue"), (3, "red")):
        assert torch.allclose(tuned.head.logits.weight[label], start.head.logits.weight[old[name]])
        boxes = tuned.head.deltas.weight.unflatten(0, (4, 4)), start.head.deltas.weight.unflatten(0, (4, 4))
        assert torch.allclose(boxes[0][label], boxes[1][old[name]])
    assert torch.allclose(tuned.head.logits.weight[4], start.head.logits.weight[4]), "background"
    assert not torch.allclose(tuned.head.logits.weight[0], start.head.logits.weight[0])
    assert torch.allclose(tuned.neck_conv.weight, start.neck_conv.weight)


def test_validation_of_the_shipped_weights_finds_what_the_clips_show(clips: Path, tmp_path: Path) -> None:
    store = FrameStore(read_annotations(clips), tmp_path)
    store.extract()
    model = checkpoint.load(SHIPPED)
    assert validate(model, store).mean > 0.8
    image, reference = (torch.from_numpy(store.read(i)) for i in (0, 4))
    found = detect_with_references(model, image, [reference])
    assert int(found.labels_D[0]) == int(store.videos.objects(0)[1][0])


def _coded_frames(folder: Path, frames: dict[str, list[int]]) -> FrameStore:
    """Videos whose pictures say which frame they are: red = position in the set, and a bright left half."""
    document: dict[str, list[dict]] = {"videos": [], "images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    for video_id, (name, numbers) in enumerate(frames.items()):
        document["videos"].append({"id": video_id, "name": name})
        for number in numbers:
            image_id = len(document["images"])
            picture = np.zeros((32, 48, 3), np.uint8)
            picture[:, :24] = 200
            picture[..., 2] = image_id
            cv2.imwrite(str(folder / f"{image_id}.png"), picture)
            entry = {"id": image_id, "video_id": video_id, "frame_id": number, "file_name": f"{image_id}.png"}
            document["images"].append({**entry, "height": 32, "width": 48})
            box = {"id": image_id, "image_id": image_id, "category_id": 1, "bbox": [0, 4, 10, 20]}
            document["annotations"].append(box)
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    return FrameStore(read_annotations(path), folder / "cache")


def test_references_lie_on_both_sides_within_a_thousand_frames(tmp_path: Path) -> None:
    store = _coded_frames(tmp_path, {"long": [0, 5, 900, 1500, 1900, 4000], "still": [0]})
    allowed = {0: {1, 2}, 1: {0, 2}, 2: {0, 1, 3, 4}, 3: {2, 4}, 4: {2, 3}, 5: {5}, 6: {6}}
    sampler = Sampler(store, seed=0)
    pairs: dict[int, set[tuple[int, ...]]] = {}
    for number in range(140):
        drawn = sampler.draw(number)
        key, *references = (int(image[0, 0, 0]) for image in (drawn.key, *drawn.references))
        assert set(references) <= allowed[key] and len(references) == 2
        pairs.setdefault(key, set()).add(tuple(references))
    assert pairs[2] == {(0, 3), (0, 4), (1, 3), (1, 4)}, "one earlier, one later"
    assert pairs[0] == {(1, 1), (2, 2)}, "a side without frames repeats the other"
    assert pairs[6] == {(6, 6)}, "a still image is its own reference"
    passes = [sorted(sampler._key(7 * epoch + k) for k in range(7)) for epoch in range(3)]
    assert passes == [list(range(7))] * 3, "every pass sees every frame once"


def test_key_references_and_boxes_are_flipped_together(tmp_path: Path) -> None:
    sampler = Sampler(_coded_frames(tmp_path, {"a": [0, 1, 2]}), seed=0)
    flipped = 0
    for number in range(60):
        drawn = sampler.draw(number)
        sides = {bool(image[0, 0, 1] > 100) for image in (drawn.key, *drawn.references)}
        assert len(sides) == 1
        is_flipped = not sides.pop()
        flipped += is_flipped
        assert drawn.boxes_G4.tolist() == ([[38, 4, 48, 24]] if is_flipped else [[0, 4, 10, 24]])
    assert 15 < flipped < 45


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"init": "x", "network": {"heads": 2}}, ConfigError, "init brings its own network"),
        ({"batch": 0}, ConfigError, "batch is 0"),
        ({"network": {"head": 2}}, ConfigError, "did you mean 'heads'"),
        ({"device": "gpu"}, ConfigError, "device must be cpu, cuda, cuda:N"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
        ({"network": {**SMALL, "max_long_side": 12}}, ConfigError, "96x96 px are too small"),
    ],
)
def test_options_that_cannot_be_used_are_named(clips: Path, tmp_path: Path, changes: dict, error: type, part: str) -> None:
    with pytest.raises(error, match=part):
        train(tmp_path, **{"annotations": str(clips), "iterations": 1, **changes})


def test_a_loss_that_leaves_the_numbers_stops_the_run_and_says_what_to_do(clips: Path, tmp_path: Path) -> None:
    from connectors.errors import StreambankError

    with pytest.raises(StreambankError, match="lower learning_rate"):
        train(tmp_path, annotations=str(clips), network=SMALL, iterations=30, batch=1, learning_rate=1e30, **QUIET)


def test_training_on_views_of_a_few_boxes_resumes_bit_for_bit(clips: Path, tmp_path: Path) -> None:
    options = QUIET | {
        "annotations": str(clips), "init": "package://mamba/shapes", "preset": "few", "iterations": 4,
        "classes": ["green", "red", "blue"], "max_long_side": 64,
    }  # fmt: skip

    def stop(progress: Progress) -> None:
        raise _StoppedError

    whole = train(tmp_path / "whole", **options)
    with pytest.raises(_StoppedError):
        train(tmp_path / "stopped", progress=stop, validation=str(clips), validate_every=2, checkpoint_every=1, **options)
    resumed = train(tmp_path / "stopped", resume=True, **options)
    first, second = (checkpoint.load(run.weights) for run in (whole, resumed))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert first.config.classes == ("green", "red", "blue") and first.config.max_long_side == 64


def test_views_keep_boxes_on_their_objects(tmp_path: Path) -> None:
    picture = np.zeros((80, 120, 3), np.uint8)
    boxes = {1: (10, 20, 40, 50, 90), 2: (70, 30, 100, 60, 240)}
    for x1, y1, x2, y2, shade in boxes.values():
        picture[y1:y2, x1:x2] = shade
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    lines = [f"a.png,{name},{x1},{y1},{x2},{y2}" for name, (x1, y1, x2, y2, _) in boxes.items()]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,label,x1,y1,x2,y2", *lines]))
    sampler = Sampler(FrameStore(read_annotations(tmp_path / "boxes.csv"), tmp_path / "cache"), seed=0)
    orders = set()
    for view in [view for number in range(12) for view in sampler.draw_views(number, 4)]:
        shades = []
        for (x1, y1, x2, y2), label in zip(view.boxes_G4, view.labels_G, strict=True):
            inner = view.key[int(y1 + 4) : int(y2 - 4), int(x1 + 4) : int(x2 - 4)]
            shades.append((float(np.median(inner)), int(label), float(x1)))
        ordered = sorted(shades)
        assert [label for _, label, _ in ordered] == sorted(label for _, label, _ in ordered), "the brighter object is label 1"
        orders.add(tuple(label for _, label, x1 in sorted(shades, key=lambda each: each[2])))
    assert {(0, 1), (1, 0)} <= orders, "objects change places"
