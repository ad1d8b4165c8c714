"""Checkpoints: one file, three published folders in old and new naming; what does not fit is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from videostreaming_models import publish, tiny_ready, write_tokenizer

from connectors.errors import CheckpointMismatch, ConfigError
from models.videostreaming.checkpoint import encoder_tensors
from models.videostreaming.encoding import Clip, encode_clips
from models.videostreaming.header import read_settings
from models.videostreaming.loaders import VideoStreaming, load_model, save_model

SETTINGS = {"encoder_layers": 2, "frames_per_clip": 2, "frame_summaries": 1}


def looks(ready: VideoStreaming) -> torch.Tensor:
    """Return what a model makes of a clip."""
    frames = torch.randint(0, 256, (2, 20, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        clip = Clip(ready.model.frame_tokens(frames), ready.time_ids(0, 8, first=True), None)
        (one,) = encode_clips(ready.model, [clip])
    return torch.cat((one.memory_MD, one.indicator_D[None]))


def test_a_saved_model_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    ready = tiny_ready()
    save_model(ready, tmp_path / "small.safetensors")
    again = load_model(tmp_path / "small.safetensors")
    assert torch.equal(looks(again), looks(ready))
    assert again.config == ready.config and again.tokenizer.encode("12 red") == ready.tokenizer.encode("12 red")
    assert load_model(tmp_path / "small.safetensors", select_clips=7, propagate=None).config.select_clips == 7


def test_three_published_folders_make_a_model(tmp_path: Path) -> None:
    publish(tmp_path)
    ready = load_model(tmp_path, **SETTINGS)
    assert ready.model.streaming_encoder.config.num_hidden_layers == 2  # the first two of three
    assert float(ready.model.sim_scale) == 7.0 and ready.end_tokens == {3}
    assert looks(ready).shape == (3, 32)
    assert ready.asked_ids("red circle").tolist() == [11, 12]


def test_settings_of_a_folder_are_read_from_its_file(tmp_path: Path) -> None:
    publish(tmp_path)
    said = {"config": SETTINGS | {"select_clips": 3}, "prompts": {"prefix": "look:", "suffix": " ?"}}
    (tmp_path / "videostreaming.json").write_text(json.dumps(said))
    ready = load_model(tmp_path)
    assert ready.config.select_clips == 3 and ready.prompts.prefix == "look:"


def test_phi_in_its_first_published_naming_is_the_same_model(tmp_path: Path) -> None:
    publish(tmp_path)
    wanted = looks(load_model(tmp_path, **SETTINGS))
    file = tmp_path / "streaming_encoder" / "model.safetensors"
    old: dict[str, torch.Tensor] = {}
    fused: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(file).items():
        if name.startswith("lm_head."):
            old[f"lm_head.linear.{name.removeprefix('lm_head.')}"] = tensor
            continue
        name = name.removeprefix("model.")
        if name.startswith("embed_tokens"):
            old["transformer.embd.wte.weight"] = tensor
        elif name.startswith("final_layernorm"):
            old[name.replace("final_layernorm", "lm_head.ln")] = tensor
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            fused.setdefault(name.replace("q_proj", "*").replace("k_proj", "*").replace("v_proj", "*"), {})[name] = tensor
        else:
            name = name.replace("layers.", "transformer.h.").replace("self_attn.dense", "mixer.out_proj")
            old[name.replace("input_layernorm", "ln")] = tensor
    for name, parts in fused.items():
        whole = torch.cat([parts[name.replace("*", f"{which}_proj")] for which in "qkv"])
        old[name.replace("layers.", "transformer.h.").replace("self_attn.*", "mixer.Wqkv")] = whole
    save_file(old, file)
    assert torch.equal(looks(load_model(tmp_path, **SETTINGS)), wanted)


def test_pytorch_files_are_read_without_running_what_they_hold(tmp_path: Path) -> None:
    publish(tmp_path)
    file = tmp_path / "language_model" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "language_model" / "pytorch_model.bin")
    file.unlink()
    assert looks(load_model(tmp_path, **SETTINGS)).isfinite().all()

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"model.norm.weight": Trap()}, tmp_path / "language_model" / "pytorch_model.bin")
    with pytest.raises(CheckpointMismatch, match="refused"):
        load_model(tmp_path, **SETTINGS)
    assert not (tmp_path / "ran").exists()


def test_other_decoders_fit_by_their_config(tmp_path: Path) -> None:
    import transformers

    publish(tmp_path)
    small = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 36, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        qwen = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(num_hidden_layers=3, **small))
    qwen.save_pretrained(tmp_path / "streaming_encoder")
    write_tokenizer(tmp_path / "streaming_encoder")
    ready = load_model(tmp_path, **SETTINGS)
    assert type(ready.model.streaming_encoder).__name__ == "Qwen2Model" and looks(ready).isfinite().all()


def test_a_phi_in_float16_as_published_is_kept_in_bfloat16_and_the_rest_as_it_is(tmp_path: Path) -> None:
    publish(tmp_path)
    for part in ("streaming_encoder", "language_model"):
        file = tmp_path / part / "model.safetensors"
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    ready = load_model(tmp_path, **SETTINGS)
    assert ready.model.dtype == torch.bfloat16 and looks(ready).dtype == torch.bfloat16
    assert ready.model.language_model.get_input_embeddings().weight.dtype == torch.float16


def test_a_folder_without_projectors_is_for_training_only(tmp_path: Path) -> None:
    publish(tmp_path, projectors=False)
    with pytest.raises(CheckpointMismatch, match="train them"):
        load_model(tmp_path, **SETTINGS)
    assert load_model(tmp_path, new_projectors=True, **SETTINGS).model.memory_projector is not None


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(CheckpointMismatch, match="has 3 layers, encoder_layers is 16"):
        load_model(tmp_path)
    file = tmp_path / "streaming_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.fc1.weight"] = tensors["model.layers.0.mlp.fc1.weight"][:5]
    del tensors["model.layers.1.mlp.fc2.bias"]
    save_file(tensors | {"model.layers.0.extra": torch.zeros(1)}, file)
    with pytest.raises(
        CheckpointMismatch, match=r"missing: layers.1.mlp.fc2.bias.*unknown: layers.0.extra.*shape: layers.0.mlp.fc1"
    ):
        load_model(tmp_path, **SETTINGS)


def test_places_without_a_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="does not exist"):
        read_settings(tmp_path / "none")
    with pytest.raises(CheckpointMismatch, match="no folder vision_tower, streaming_encoder, language_model"):
        read_settings(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointMismatch, match="holds no model of Streambank"):
        read_settings(tmp_path / "other.safetensors")
    save_model(tiny_ready(), tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match="select_clips is 0"):
        read_settings(tmp_path / "small.safetensors", select_clips=0)


def test_only_the_first_layers_of_an_encoder_are_read() -> None:
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.x" for i in (0, 1, 10)), "lm_head.weight"]
    kept = encoder_tensors({name: torch.zeros(1) for name in names}, 2, head=False)
    assert sorted(kept) == ["embed_tokens.weight", "layers.0.x", "layers.1.x"]
