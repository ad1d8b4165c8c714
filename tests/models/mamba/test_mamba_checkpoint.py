"""Checkpoint files: ours, official ones, and every way in which a file can be wrong or hostile."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch
from models.mamba import checkpoint
from models.mamba.config import IMAGENET_VID_CLASSES, MambaConfig
from models.mamba.model import Mamba


def config(**changes) -> MambaConfig:
    settings = {
        "classes": ("cat", "dog"),
        "blocks": (1, 2, 1, 1),
        "channels": (4, 16, 16, 32, 32),
        "neck_channels": 8,
        "fc_channels": 16,
        "heads": 16,
        "pixel_heads": 16,
    }
    return MambaConfig(**(settings | changes))


@pytest.fixture
def model() -> Mamba:
    torch.manual_seed(0)
    return Mamba(config()).eval()


def official(model: Mamba) -> dict[str, Tensor]:
    return {checkpoint.official_key(name): tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(got: Mamba, wanted: Mamba) -> None:
    assert got.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(got.state_dict()[name], tensor), name


@pytest.mark.parametrize("changes", [{}, {"pixel_level": True}, {"backbone": "conv5", "channels": (8, 8, 16, 16, 32)}])
def test_saved_model_comes_back_with_its_config(tmp_path: Path, changes):
    wanted = Mamba(config(score_threshold=0.25, **changes))
    checkpoint.save(wanted, tmp_path / "m.safetensors")
    got = checkpoint.load(tmp_path / "m.safetensors")
    assert got.config == wanted.config
    assert not got.training
    assert_same(got, wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_fused_model_is_not_saved(tmp_path: Path, model: Mamba):
    with pytest.raises(ValueError, match="save before fusing"):
        checkpoint.save(model.fuse_for_inference(), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_official_file_loads_bare_or_wrapped_and_its_config_follows_from_shapes(tmp_path, model, wrap, prefix, legacy):
    state = {prefix + name: tensor for name, tensor in official(model).items()}
    content = {"state_dict": state, "meta": {"epoch": 6, "config": "text"}, "optimizer": {"state": {}}} if wrap else state
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    got = checkpoint.load(tmp_path / "m.pth", classes=("cat", "dog"))
    assert got.config == config()
    assert_same(got, model)


def test_thirty_classes_are_those_of_imagenet_vid_and_others_are_numbered(tmp_path: Path, model: Mamba):
    torch.save(official(Mamba(config(classes=IMAGENET_VID_CLASSES))), tmp_path / "vid.pth")
    assert checkpoint.load(tmp_path / "vid.pth").config.classes == IMAGENET_VID_CLASSES
    torch.save(official(model), tmp_path / "two.pth")
    assert checkpoint.load(tmp_path / "two.pth").config.classes == ("class_0", "class_1")
    with pytest.raises(CheckpointMismatch, match="has 2 classes, but 1 names"):
        checkpoint.load(tmp_path / "two.pth", classes=("cat",))


@pytest.mark.parametrize("position", ["backbone", "neck"])
def test_pixel_level_is_found_with_its_position(tmp_path: Path, position: str):
    wanted = Mamba(config(neck_channels=16, pixel_level=True, pixel_position=position))
    torch.save(official(wanted), tmp_path / "m.pth")
    got = checkpoint.load(tmp_path / "m.pth")
    assert (got.config.pixel_level, got.config.pixel_position) == (True, position)
    assert_same(got, wanted)


def test_absent_pixel_level_gives_the_instance_only_model_and_says_so(tmp_path: Path, model: Mamba, caplog):
    torch.save(official(model), tmp_path / "m.pth")
    got = checkpoint.load(tmp_path / "m.pth", config(pixel_level=True))
    assert got.pixel is None
    assert "no pixel level" in caplog.text


def test_selsa_file_with_unknown_extras_loads_and_reports_them(tmp_path: Path, model: Mamba, caplog):
    torch.save(official(model) | {"detector.motion.weight": torch.zeros(3)}, tmp_path / "selsa.pth")
    assert_same(checkpoint.load(tmp_path / "selsa.pth"), model)
    assert "detector.motion.weight" in caplog.text


def test_converted_file_equals_the_official_one(tmp_path: Path, model: Mamba):
    torch.save({"state_dict": official(model)}, tmp_path / "m.pth")
    checkpoint.convert(tmp_path / "m.pth", tmp_path / "m.safetensors", classes=("cat", "dog"))
    got = checkpoint.load(tmp_path / "m.safetensors")
    assert got.config == config()
    assert_same(got, model)


def test_any_missing_parameter_refuses_the_file(tmp_path: Path, model: Mamba):
    state = official(model)
    del state["detector.rpn_head.rpn_cls.bias"], state["detector.backbone.bn1.num_batches_tracked"]
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointMismatch, match=r"2 of \d+ parameters are missing .*rpn.objectness.bias"):
        checkpoint.load(tmp_path / "m.pth")


def test_incomplete_pixel_level_refuses_the_file(tmp_path: Path):
    state = official(Mamba(config(pixel_level=True)))
    del state["pixel.aggregator.fc.bias"]
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointMismatch, match=r"pixel.output.bias"):
        checkpoint.load(tmp_path / "m.pth")


def test_wrong_shape_is_named(tmp_path: Path, model: Mamba):
    torch.save(official(model), tmp_path / "m.pth")
    with pytest.raises(CheckpointMismatch, match=r"head.logits.weight is \(3, 16\), not \(4, 16\)"):
        checkpoint.load(tmp_path / "m.pth", config(classes=("a", "b", "c")))


def test_parameters_that_are_not_finite_refuse_the_file(tmp_path: Path, model: Mamba):
    state = official(model)
    state["detector.neck.convs.0.conv.bias"][1] = float("nan")
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointMismatch, match=r"NaN or infinity: neck_conv\.bias"):
        checkpoint.load(tmp_path / "m.pth")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, model: Mamba, kind: str):
    marker, file = tmp_path / "executed", tmp_path / "m.pth"
    content = {"state_dict": official(model), "meta": Payload(marker)}
    if kind == "plain":
        file.write_bytes(pickle.dumps({"state_dict": {}, "meta": Payload(marker)}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointMismatch, match="nothing of it was executed"):
        checkpoint.load(file)
    assert not marker.exists()
    if kind == "plain":
        pickle.loads(file.read_bytes())  # the payload does work where pickle code is executed
        assert marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["official", "legacy", "own"])
def test_truncated_file_is_refused(tmp_path: Path, model: Mamba, kind: str, share: float):
    whole = tmp_path / "whole"
    if kind == "own":
        checkpoint.save(model, whole)
    else:
        torch.save(official(model), whole, _use_new_zipfile_serialization=kind == "official")
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointMismatch, match="cut: "):
        checkpoint.load(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3}, "holds no tensors"),
        ({"fc.weight": torch.zeros(2, 2)}, "not a MAMBA detector"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content, message: str):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointMismatch, match=message):
        checkpoint.load(tmp_path / "m.pth")


def test_missing_file_and_folder_are_named(tmp_path: Path):
    with pytest.raises(CheckpointMismatch, match=r"absent.pth: cannot be read: No such file"):
        checkpoint.load(tmp_path / "absent.pth")
    with pytest.raises(CheckpointMismatch, match="is no plain file; give a file of weights"):
        checkpoint.load(tmp_path)


def test_safetensors_of_another_model_or_version_or_with_a_damaged_config_are_refused(tmp_path: Path):
    def write(**metadata: str) -> Path:
        file = tmp_path / "m.safetensors"
        safetensors.torch.save_file({"a": torch.zeros(1)}, file, {f"{k.replace('_', '.')}": v for k, v in metadata.items()})
        return file

    with pytest.raises(CheckpointMismatch, match="'rekv' model, not 'mamba'"):
        checkpoint.load(write(streambank_model="rekv"))
    with pytest.raises(CheckpointMismatch, match="has format '9'; this version reads '1'"):
        checkpoint.load(write(streambank_model="mamba", streambank_format="9"))
    for damaged in ("{", json.dumps({"heads": 5}), json.dumps({"unknown": 1}), "3"):
        with pytest.raises(CheckpointMismatch, match="its header cannot be used"):
            checkpoint.load(write(streambank_model="mamba", streambank_format="1", config=damaged))


def test_safetensors_with_official_names_load_too(tmp_path: Path, model: Mamba):
    safetensors.torch.save_file(official(model), tmp_path / "m.safetensors")
    assert_same(checkpoint.load(tmp_path / "m.safetensors"), model)


def test_safetensors_with_an_absurd_header_is_refused(tmp_path: Path):
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", 2**60) + b'{"a":1}')
    with pytest.raises(CheckpointMismatch, match="not a complete safetensors file"):
        checkpoint.load(file)


def test_imagenet_weights_fill_the_backbone_only(tmp_path: Path, model: Mamba):
    torch.manual_seed(1)
    other = Mamba(config())
    torch.save(dict(other.backbone.state_dict()) | {"fc.weight": torch.zeros(5, 32)}, tmp_path / "resnet.pth")
    head = model.head.fc[0].weight.clone()
    checkpoint.load_backbone(model, tmp_path / "resnet.pth")
    for name, tensor in other.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    assert torch.equal(model.head.fc[0].weight, head)
    deeper = Mamba(config(blocks=(1, 3, 1, 1)))
    with pytest.raises(CheckpointMismatch, match=r"parameters are missing .layer2\.2"):
        checkpoint.load_backbone(deeper, tmp_path / "resnet.pth")


def test_names_translate_both_ways(model: Mamba):
    names = list(Mamba(config(pixel_level=True)).state_dict())
    translated = [checkpoint.official_key(name) for name in names]
    assert len(set(translated)) == len(names)
    assert [checkpoint.own_key(name) for name in translated] == names
    assert checkpoint.own_key("tracker.weight") is None
    with pytest.raises(KeyError):
        checkpoint.official_key("tracker.weight")


def test_settings_decide_over_what_shapes_suggest():
    """24 channels have no 16 heads, the default; as many neck channels as the backbone has suggest the backbone."""
    told = {"heads": 3, "pixel_heads": 2, "pixel_position": "neck"}
    wanted = Mamba(config(fc_channels=24, neck_channels=32, pixel_level=True, **told))
    state = wanted.state_dict()
    with pytest.raises(CheckpointMismatch, match="heads=16 must divide fc_channels=24"):
        checkpoint.infer_config(state, Path("x.pth"))
    got = checkpoint.infer_config(state, Path("x.pth"), told)
    assert (got.heads, got.pixel_heads, got.pixel_position, got.fc_channels) == (3, 2, "neck", 24)
