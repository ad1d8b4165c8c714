"""The policy: coordinates that start at nothing, frames that are padded, losses, and backbones that transformers knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fourd_vla_models import DECODER, VISION, tiny_config, tiny_policy
from safetensors.torch import save_file

from connectors.errors import CheckpointMismatch, ConfigError
from models.fourd_vla.checkpoint import load_policy, save_policy
from models.fourd_vla.config import ActionScale, FourDVLAConfig
from models.fourd_vla.header import policy_config
from models.fourd_vla.losses import action_losses
from models.fourd_vla.model import Actions, FourDVLA
from models.fourd_vla.names import dino_names
from models.fourd_vla.vision import VisionEncoder, pixel_shuffle, pooled_feature


def frames(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features, coordinates and valid shares of tiny frames."""
    generator = torch.Generator().manual_seed(seed)
    places = VISION.rows * VISION.columns
    return (
        torch.randn((count, places, VISION.hidden), generator=generator),
        torch.randn((count, places, 3), generator=generator),
        torch.rand((count, places), generator=generator) + 0.1,
    )


def test_a_fresh_coordinate_embedding_changes_no_bit() -> None:
    torch.manual_seed(0)
    model = FourDVLA(tiny_config()).eval()
    features, coord, share = frames(2)
    share[0, :5] = 0.0
    plain = model.mlp1(pixel_shuffle(features, VISION.rows, VISION.columns))
    assert model.spatial_tokens(features, coord, share).equal(plain)


@pytest.mark.parametrize("add_at", ["patch", "pixel_shuffled"])
def test_a_token_without_depth_does_not_see_its_coordinate(add_at: str) -> None:
    model = tiny_policy(add_at=add_at).model
    features, coord, share = frames(1)
    if add_at == "pixel_shuffled":
        coord, share = coord[:, ::4].contiguous(), share[:, ::4].contiguous()
    share[:, 3] = 0.01
    moved = coord.clone()
    moved[:, 3] += 1.0
    assert model.spatial_tokens(features, coord, share).equal(model.spatial_tokens(features, moved, share))
    moved[:, 4] += 1.0
    assert not model.spatial_tokens(features, coord, share).equal(model.spatial_tokens(features, moved, share))


def test_streams_with_different_histories_act_as_if_alone() -> None:
    policy = tiny_policy(state_dim=2)
    model, L = policy.model, policy.model.config.tokens
    tokens = torch.randn(3, 4, L, DECODER.hidden)
    offsets = torch.tensor([[3, 2, 1, 0], [1, 0, 0, 0], [9, 0, 0, 0]])
    texts = [torch.tensor(policy.tokenizer.encode(text)) for text in ("point to the red cube", "wait", "the cube")]
    state = torch.randn(3, 2)
    together = model.act(tokens, offsets, [4, 2, 1], texts, state)
    for i, count in enumerate((4, 2, 1)):
        alone = model.act(tokens[i : i + 1, :count], offsets[i : i + 1, :count], [count], texts[i : i + 1], state[i : i + 1])
        torch.testing.assert_close(together.translation_B3[i], alone.translation_B3[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.gripper_B[i], alone.gripper_B[0], atol=1e-5, rtol=1e-5)


def test_the_time_of_a_frame_matters_and_old_ones_share_the_last_row() -> None:
    model = tiny_policy().model
    tokens, text = torch.randn(1, 2, model.config.tokens, DECODER.hidden), [torch.tensor([2])]
    act = lambda first: model.act(tokens, torch.tensor([[first, 0]]), [2], text).translation_B3  # noqa: E731
    assert not act(1).equal(act(2))
    assert act(5).equal(act(50))


def test_actions_come_back_in_the_units_of_the_data() -> None:
    config = tiny_config(action_scale=ActionScale(translation=(0.1, 0.2, 0.3), rotation=(2.0, 2.0, 2.0)))
    made = Actions(torch.ones(1, 3), torch.ones(1, 3), torch.tensor([-0.5])).scaled(config)
    torch.testing.assert_close(made, torch.tensor([[0.1, 0.2, 0.3, 2, 2, 2, 0]]))
    assert not config.action_scale.is_isotropic


def test_direction_costs_nothing_where_it_is_right_and_its_gradient_is_finite_at_zero() -> None:
    wanted = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    rest = (torch.zeros(2, 3), torch.zeros(2), wanted, torch.zeros(2, 3), torch.ones(2))
    assert action_losses(3 * wanted, *rest)["direction"] < 1e-12
    guess = torch.zeros(2, 3, requires_grad=True)
    losses = action_losses(guess, *rest, direction_weight=0.5)
    assert losses["direction"].item() == pytest.approx(0.5)
    sum(losses.values()).backward()
    assert guess.grad is not None and guess.grad.isfinite().all()


def test_a_policy_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    policy = tiny_policy(state_dim=3, add_at="pixel_shuffled")
    save_policy(policy, tmp_path / "policy.safetensors")
    again = load_policy(tmp_path / "policy.safetensors")
    assert again.model.config == policy.model.config == policy_config(tmp_path / "policy.safetensors")
    assert again.tokenizer.encode("the red cube") == policy.tokenizer.encode("the red cube")
    for name, tensor in policy.model.state_dict().items():
        assert again.model.state_dict()[name].equal(tensor)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    policy = tiny_policy()
    state = {name: tensor.contiguous() for name, tensor in policy.model.state_dict().items()}
    metadata = {"streambank.model": "fourd_vla", "streambank.format": "1", "words": "[]"}
    metadata["config"] = json.dumps(policy.model.config.to_json())
    file = tmp_path / "w.safetensors"
    del state["vision_model.encoder.layers.1.ls1"]
    save_file(state, file, metadata)
    with pytest.raises(CheckpointMismatch, match=r"missing vision_model\.encoder\.layers\.1\.ls1"):
        load_policy(file)
    assert load_policy(file, strict=False).fresh == ("vision_model.encoder.layers.1.ls1",)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(CheckpointMismatch, match="holds no model of Streambank"):
        load_policy(file)
    with pytest.raises(ConfigError, match="did you mean 'octaves'"):
        FourDVLAConfig.from_json({"octave": 3})
    with pytest.raises(ConfigError, match="multiples of 28"):
        FourDVLAConfig.from_json({"vision": {"height": 250}})


@pytest.mark.parametrize("qwen", [False, True], ids=["phi3", "qwen2"])
def test_a_backbone_of_transformers_computes_the_same(qwen: bool, tmp_path: Path) -> None:
    """Equality after the names are converted: vision tower, projector and decoder, padding aside."""
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 16}
    text |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 56, "patch_size": 14, "attention_bias": True}
    config = transformers.InternVLConfig(
        vision_config=vision, text_config={"model_type": "qwen2" if qwen else "phi3", **text}, downsample_ratio=0.5
    )
    torch.manual_seed(0)
    theirs = transformers.InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():  # what starts as zeros or ones would hide a wrong name
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}
        )
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    loaded = load_policy(tmp_path)
    ours = loaded.model
    assert set(loaded.fresh) >= {"time_embed.weight", "coord_invalid"}
    assert not any(name.startswith(("vision_model", "mlp1", "language_model")) for name in loaded.fresh)

    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        seen = theirs.model.get_image_features(pixel_values=pixels).pooler_output
        mine = ours.mlp1(pixel_shuffle(ours.vision_model(pixels), 4, 4))
        torch.testing.assert_close(mine, seen.view_as(mine), atol=1e-5, rtol=1e-5)
        embeds = torch.randn(2, 7, 24)
        wanted = theirs.model.language_model(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(ours.decoder(embeds), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("release", [False, True], ids=["transformers", "release"])
def test_a_dinov2_encoder_computes_the_same(release: bool) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = dict(theirs.state_dict())
    if release:
        state = release_names(state)
    config = {"width": 32, "height": 32, "patch": 8, "hidden": 16, "layers": 2, "heads": 2, "mlp": 32, "grid": 4}
    ours = VisionEncoder(type(VISION)(**config, final_norm=True, norm_eps=1e-6)).eval()
    named = dino_names(state)
    named.pop("mask_token", None)
    ours.load_state_dict(named)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels).last_hidden_state[:, 1:]
        torch.testing.assert_close(ours(pixels), wanted, atol=1e-5, rtol=1e-5)


def release_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict of transformers as the release stores it."""
    out: dict[str, torch.Tensor] = {}
    older = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key"}
    older |= {"attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}
    for new, old in older.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    plain = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.mask_token": "mask_token",
    }
    for name, tensor in state.items():
        layer = name.split(".")[2] if name.startswith("encoder") else ""
        if name in plain:
            out[plain[name]] = tensor
        elif "patch_embeddings" in name:
            out[name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")] = tensor
        elif ".attention.attention.query." in name:
            end = name.rsplit(".", 1)[1]
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            out[f"blocks.{layer}.attn.qkv.{end}"] = torch.cat(parts)
        elif ".attention.attention." in name:
            continue
        elif ".attention.output.dense." in name:
            out[f"blocks.{layer}.attn.proj.{name.rsplit('.', 1)[1]}"] = tensor
        elif "layer_scale" in name:
            out[f"blocks.{layer}.ls{name[name.index('layer_scale') + 11]}.gamma"] = tensor
        elif name.startswith("encoder"):
            out[f"blocks.{name.removeprefix('encoder.layer.')}"] = tensor
        else:
            out[name.replace("layernorm", "norm")] = tensor
    return out


def test_phi_has_length_one_and_positions_are_read_at_any_size() -> None:
    model = tiny_policy().model
    with torch.inference_mode():
        pixels = model.vision_model.normalize(torch.randint(0, 256, (2, 3, VISION.height, VISION.width)))
        features = model.vision_model(pixels)
    assert features.shape == (2, VISION.rows * VISION.columns, VISION.hidden)
    torch.testing.assert_close(pooled_feature(features).norm(dim=1), torch.ones(2))
