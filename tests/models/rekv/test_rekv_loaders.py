"""Checkpoint folders: supported families load and answer from frames; what does not fit is named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rekv_models import VOCABULARY, seen
from safetensors.torch import load_file, save_file

from connectors.errors import CheckpointMismatch, ConfigError
from models.rekv.config import ReKVConfig
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenQuestion, answer_questions
from models.rekv.loaders import load_model
from models.rekv.session import open_stream
from models.rekv.store import TensorStore
from models.rekv.vision import FrameEncoder

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 3,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {  # family → class of the config, settings, tokens per frame
    "llava_onevision": (
        "LlavaOnevisionConfig",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION | {"model_type": "siglip_vision_model", "image_size": 28, "vision_use_head": False},
            "vision_feature_layer": -1,
            "image_token_index": 50,
            "video_token_index": 51,
        },
        16,
    ),
    "video_llava": (
        "VideoLlavaConfig",
        {
            "text_config": TEXT | {"model_type": "llama", "num_key_value_heads": 4},
            "vision_config": VISION | {"model_type": "clip_vision_model", "image_size": 28, "projection_dim": 16},
            "image_token_index": 50,
            "video_token_index": 51,
        },
        50,
    ),
    "internvl": (
        "InternVLConfig",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION | {"image_size": [16, 16], "patch_size": [4, 4]},
            "image_token_id": 50,
        },
        4,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
            "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32},
            "image_token_id": 50,
            "video_token_id": 51,
        },
        6,
    ),
}
CONFIG = ReKVConfig(window_tokens=240, retrieve_frames=4)


def checkpoint(folder: Path, family: str) -> Path:
    """Write a random checkpoint of a family in the library's form."""
    import transformers

    from models.rekv.families import FAMILIES as KNOWN

    name, settings, _ = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, KNOWN[family].class_name)(getattr(transformers, name)(**settings))
    model.save_pretrained(folder)
    return folder


def frames(number: int, side: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (number, side, side + 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_checkpoint_folder_answers_a_question_about_frames(family: str, tmp_path: Path) -> None:
    model = load_model(checkpoint(tmp_path, family), CONFIG)
    tokens = FAMILIES[family][2]
    if model.video is not None:  # features and places as given
        film = torch.randn(5, tokens, 32, generator=torch.Generator().manual_seed(2))
        grid = model.decoder.grid(tokens, (1, 2, 3))
    else:
        film = model.frames(frames(5))
        grid = model.decoder.grid(tokens)
    assert film.shape == (5, tokens, 32)
    stream = open_stream(
        model.decoder, CONFIG, encode_prefix(model.decoder, torch.tensor([4, 5])), grid, TensorStore(model.decoder.layers)
    )
    encode_frames(model.decoder, CONFIG, [stream], [film])
    ids = torch.tensor([7, 8, 9])
    question = TokenQuestion(stream=seen(stream), question_ids_n=ids, prompt_ids_n=ids, max_new_tokens=4)
    (answer,) = answer_questions(model.decoder, CONFIG, [question], model.end_tokens)
    assert answer.status == "ok"
    assert 1 <= len(answer.tokens) <= 4
    assert model.end_tokens == {3}


@pytest.mark.parametrize("family", [family for family in FAMILIES if "qwen" not in family])
def test_frame_tokens_do_not_depend_on_the_other_frames_of_a_call(family: str, tmp_path: Path) -> None:
    model = load_model(checkpoint(tmp_path, family), CONFIG)
    assert model.frames is not None
    film = frames(3)
    together = model.frames(film)
    alone = torch.cat([model.frames(film[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_blocks_of_its_type_near_those_of_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder, film = checkpoint(tmp_path, "llava_onevision"), frames(20)
    blocks = []
    for kind in (torch.float32, dtype):
        model = load_model(folder, CONFIG, dtype=kind)
        assert model.frames is not None
        grid, store = model.decoder.grid(16), TensorStore(2)
        stream = open_stream(model.decoder, CONFIG, encode_prefix(model.decoder, torch.tensor([4, 5])), grid, store)
        encode_frames(model.decoder, CONFIG, [stream], [model.frames(film)])
        blocks.append(store.reader().gather(1, torch.arange(20)))
        ids = torch.tensor([7, 8, 9])
        question = TokenQuestion(stream=seen(stream), question_ids_n=ids, prompt_ids_n=ids, max_new_tokens=3)
        assert answer_questions(model.decoder, CONFIG, [question], [])[0].status == "ok"
    for wide, half in zip(*blocks, strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), wide, atol=0.02 * float(wide.abs().max()), rtol=0)  # 8 bits of mantissa


def test_frames_are_resized_by_the_rule_of_their_family(tmp_path: Path) -> None:
    import transformers

    size = {"height": 28, "width": 28}
    film = frames(2)
    encoder = load_model(checkpoint(tmp_path, "llava_onevision"), CONFIG).frames
    assert isinstance(encoder, FrameEncoder)
    processor = transformers.LlavaOnevisionVideoProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    wanted = processor([film.permute(0, 3, 1, 2)], return_tensors="pt").pixel_values_videos[0]
    off = (encoder.pixels(film) - wanted).abs() * 127.5  # in gray levels; the processor rounds between rows and columns
    assert off.max() < 3.5
    assert off.mean() < 0.3


def test_a_folder_that_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "llava_onevision")
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(weights)

    broken = dict(tensors)
    gone = next(name for name in broken if name.endswith("k_proj.weight") and "language" in name)
    del broken[gone]
    save_file(broken, weights)
    with pytest.raises(CheckpointMismatch, match=r"missing keys for llava_onevision: .*k_proj\.weight"):
        load_model(folder, CONFIG)

    save_file(tensors | {"model.extra": torch.zeros(2)}, weights)
    with pytest.raises(CheckpointMismatch, match=r"unexpected keys for llava_onevision: model\.extra"):
        load_model(folder, CONFIG)

    weights.write_bytes(b"not tensors")
    with pytest.raises(CheckpointMismatch, match="safetensors"):
        load_model(folder, CONFIG)

    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointMismatch, match=r"no safetensors file but \['pytorch_model.bin'\], which are pickles"):
        load_model(folder, CONFIG)

    config.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointMismatch, match=r"model_type 'bert' is not supported; supported are \['internvl'"):
        load_model(folder, CONFIG)

    config.unlink()
    with pytest.raises(CheckpointMismatch, match=r"config\.json: cannot be read"):
        load_model(folder, CONFIG)


def test_a_model_with_three_axes_needs_to_know_the_volume_of_a_frame(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "qwen2_5_vl")
    with pytest.raises(ConfigError, match=r"needs the \(time, rows, columns\) of a frame's 6 tokens, got \(1, 2, 2\)"):
        load_model(folder, CONFIG).decoder.grid(6, (1, 2, 2))
    line = load_model(folder, ReKVConfig(window_tokens=240, retrieve_frames=4, rope_mode="1d")).decoder.grid(6)
    assert line.span == 6


def test_multiple_choice_prompt_is_the_published_one() -> None:
    from models.rekv.families import FAMILIES as KNOWN

    got = KNOWN["llava_onevision"].prompts.multiple_choice("Which?", ["red", "blue"])
    start = "\nQuestion: Which?\nOptions:\n(A) red\n(B) blue\nOnly give the best option."
    assert got == start + "<|im_end|><|im_start|>assistant\nBest option: ("
    assert KNOWN["video_llava"].prompts.open_ended("What?") == "\nWhat? ASSISTANT:"
    with pytest.raises(ConfigError, match="1 options; give 2 to 26"):
        KNOWN["internvl"].prompts.multiple_choice("Which?", ["red"])


@pytest.mark.heavy
def test_neither_importing_nor_checking_imports_transformers() -> None:
    names = sorted(p.stem for p in (Path(__file__).resolve().parents[3] / "models" / "rekv").glob("*.py"))
    code = "; ".join(f"import models.rekv.{name}" for name in names if name != "__init__")
    code += "; from operators.rekv import ReKVOperator as kind; kind.examine(kind.Options(), 'watch')"
    code += "; import sys; print([m for m in ('transformers', 'ray', 'pydantic') if m in sys.modules])"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=240, check=True)
    assert done.stdout.strip() == "[]"
