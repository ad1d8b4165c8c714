"""Golden: evaluation logic of the published scripts, and the names and shapes of the published checkpoints."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import golden, read_json
from rekv_cases import HOST, KEYS

from models.rekv.host_logic import (
    answer_letter,
    encode_slices,
    frame_step,
    retrieval_quality,
    sampled_frames,
    split_sizes,
)


@golden("rekv", ".json", *HOST)
def test_letters_are_extracted_as_published(path: Path) -> None:
    for text, letter in read_json(path)["extract_letter"]:
        assert answer_letter(text) == letter, text


@golden("rekv", ".json", *HOST)
def test_retrieval_quality_is_the_published_one(path: Path) -> None:
    for case in read_json(path)["retrieval_recall_precision"]:
        wanted = (case["recall"], case["precision"], case["f1"])
        assert retrieval_quality(case["windows"], case["mask"]) == pytest.approx(wanted, abs=1e-12)


@golden("rekv", ".json", *HOST)
def test_frames_are_sampled_as_published(path: Path) -> None:
    for case in read_json(path)["decode_sampling"]:
        assert frame_step(case["avg_fps"], case["sample_fps"]) == case["step"]
        assert list(sampled_frames(case["n_frames"], case["avg_fps"], case["sample_fps"])) == case["indices"]


@golden("rekv", ".json", *HOST)
def test_questions_are_preceded_by_the_published_slices(path: Path) -> None:
    for case in read_json(path)["stream_slicing"]:
        wanted = [None if one is None else tuple(one) for one in case["encode_slice_before_question"]]
        assert encode_slices([stop for _, stop in case["question_windows"]], case["sample_fps"]) == wanted


@golden("rekv", ".json", *HOST)
def test_annotations_are_split_as_published(path: Path) -> None:
    for case in read_json(path)["anno_split"]:
        assert split_sizes(case["n"], case["k"]) == case["sizes"]


@golden("rekv", ".json", *KEYS)
@pytest.mark.heavy
def test_published_checkpoints_have_the_names_and_shapes_of_the_model(path: Path) -> None:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    for name, keys in read_json(path).items():
        if name.startswith("_"):
            continue
        with torch.device("meta"):
            model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**_config(keys)))
        own = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        published = {_current(key): shape for key, (shape, _) in keys.items()}
        published.setdefault("lm_head.weight", published["model.language_model.embed_tokens.weight"])  # tied
        assert published == own, name


def _current(key: str) -> str:
    """Rename as transformers does when it loads."""
    key = re.sub(r"^language_model\.lm_head\.", "lm_head.", key)
    key = re.sub(r"^language_model\.model\.", "model.language_model.", key)
    key = re.sub(r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1", key)
    return key.replace("vision_tower.vision_model.", "vision_tower.")


def _config(keys: dict[str, Any]) -> dict[str, Any]:
    """Read the sizes off the shapes; heads do not show in them and do not matter here."""

    def shape(pattern: str) -> list[int]:
        return next(value[0] for key, value in keys.items() if re.search(pattern, key))

    def layers(pattern: str) -> int:
        return 1 + max(int(found[1]) for key in keys if (found := re.search(pattern, key)))

    vocabulary, hidden = shape(r"embed_tokens\.weight")
    width, _, patch, _ = shape(r"patch_embedding\.weight")
    key_rows = shape(r"language_model.*k_proj\.weight")[0]
    head = math.gcd(hidden, key_rows)
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shape(r"language_model.*gate_proj")[0],
        "num_hidden_layers": layers(r"language_model\.model\.layers\.(\d+)"),
        "num_attention_heads": hidden // head,
        "num_key_value_heads": key_rows // head,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": shape(r"vision.*fc1\.weight")[0],
        "num_hidden_layers": layers(r"vision.*layers\.(\d+)"),
        "num_attention_heads": 1,
        "patch_size": patch,
        "image_size": patch * round(shape(r"position_embedding\.weight")[0] ** 0.5),
        "vision_use_head": False,
    }
    return {"text_config": text, "vision_config": vision}
