"""Golden: clips, selection, answering model, prefix task and losses are those of the specification; cases of any size."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from golden_cases import assert_complete, golden, read_json
from videostreaming_cases import CASE, KEYS, KINDS, assert_close, model_of, read_case, real

from models.videostreaming.answering import Prompt, Shown, answer_prompts
from models.videostreaming.checkpoint import fitting_tensors
from models.videostreaming.encoding import Clip, clip_embeds, encode_clips, encode_questions, prefix_hidden, prefix_mask
from models.videostreaming.selection import gumbel_top, selection_loss, similarities, stored_indicator, top_clips


def test_every_file_is_checked() -> None:
    assert_complete("videostreaming", KINDS)


@pytest.mark.heavy
@golden("videostreaming", ".npz", *CASE)
def test_recorded_clips_and_question_are_reproduced(path: Path) -> None:
    sizes, weights, case = read_case(path)
    model = model_of(sizes, weights)
    memory, memories, indicators = None, [], []
    for features, time_ids, length in zip(case["clip_features"], case["time_ids"], case["seq_len"], strict=True):
        clip = Clip(features, real(time_ids), memory)
        assert len(clip_embeds(model, [clip])[0]) == int(length)
        (encoded,) = encode_clips(model, [clip])
        memory = encoded.memory_MD
        memories.append(memory)
        indicators.append(encoded.indicator_D)
    assert_close(torch.stack(memories), case["memory"], "memories")
    assert_close(torch.stack(indicators), case["clip_indicator"], "indicators")

    (asked_D,) = encode_questions(model, [memory], [case["question_ids"]])
    assert_close(asked_D, case["question_indicator"], "the question's indicator")
    stored_KD = stored_indicator(torch.stack(indicators), "cosine")
    scores_K = similarities(asked_D, stored_KD)
    assert_close(scores_K, case["similarity"], "similarities")
    chosen = top_clips(scores_K, sizes["V"])
    assert chosen.tolist() == case["selected"].tolist()

    shown = [Shown(case["selected_time_ids"][k], memories[k]) for k in chosen.tolist()]
    steps: list[torch.Tensor] = []
    answer_prompts(model, [Prompt(case["prefix_ids"], shown, case["question_ids"])], [1], (), steps)
    assert_close(steps[0][0], case["llm_last_logits"], "logits")


@pytest.mark.heavy
@golden("videostreaming", ".npz", *CASE)
def test_recorded_prefix_task_is_reproduced(path: Path) -> None:
    sizes, weights, case = read_case(path)
    features_TNC, text_ids = case["clip_features"][0], case["prefix_text_ids"]
    mask = prefix_mask(sizes["T"] * sizes["N"], sizes["T"] * sizes["P"], len(text_ids))
    assert torch.equal(mask, case["prefix_mask"])
    hidden = prefix_hidden(model_of(sizes, weights), features_TNC[None], text_ids[None])
    assert_close(hidden[0], case["prefix_hidden"], "hidden states")


@golden("videostreaming", ".npz", *CASE)
def test_recorded_selection_of_training_is_reproduced(path: Path) -> None:
    sizes, _, case = read_case(path)
    scores_1K, noise_1K, tau = case["similarity"][None], case["gumbel"][None], sizes["tau"]
    chosen_1K, soft_1K = gumbel_top(scores_1K, sizes["V"], noise_BK=noise_1K, temperature=tau)
    assert_close(soft_1K[0], case["gumbel_soft"], "soft selection")
    torch.testing.assert_close(chosen_1K[0], case["gumbel_hard"], atol=1e-6, rtol=0)
    relevant_1K = torch.zeros(1, sizes["K"], dtype=torch.bool)
    relevant_1K[0, case["relevant"]] = True
    assert_close(selection_loss(scores_1K, relevant_1K, temperature=tau)[0], case["kl"], "KL")


@golden("videostreaming", ".json", *KEYS)
def test_published_names_and_shapes_fit_the_networks(path: Path) -> None:
    """The three published models at full size, without memory for them."""
    said = {name: {key: torch.empty(shape, device="meta") for key, shape in keys.items()} for name, keys in _keys(path)}
    for name, tensors in said.items():
        part, settings = _settings(name, tensors)
        _, fitting = fitting_tensors(part, settings, tensors, name)
        dropped = [key for key in tensors if part == "streaming_encoder" and key.startswith("lm_head.")]
        assert len(fitting) == len(tensors) - len(dropped)


def _keys(path: Path) -> list[tuple[str, dict[str, list[int]]]]:
    return [(name, keys) for name, keys in read_json(path).items() if name != "note"]


def _settings(name: str, tensors: dict[str, torch.Tensor]) -> tuple[str, Any]:
    """Read a config off names and shapes."""
    layers = 1 + max(int(found[1]) for key in tensors if (found := re.search(r"layers\.(\d+)\.", key)))
    shapes = {re.sub(r".*layers\.\d+\.", "", key): tensor.shape for key, tensor in tensors.items()}
    if name.startswith("clip"):
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        side = int((shapes["embeddings.position_embedding.weight"][0] - 1) ** 0.5) * patch
        own = {"hidden_size": width, "patch_size": patch, "image_size": side, "intermediate_size": shapes["mlp.fc1.weight"][0]}
        return "vision_tower", transformers.CLIPVisionConfig(num_hidden_layers=layers, num_attention_heads=1, **own)
    words, width = shapes["model.embed_tokens.weight"]
    own = {"vocab_size": words, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 1}
    if name.startswith("phi"):
        return "streaming_encoder", transformers.PhiConfig(intermediate_size=shapes["mlp.fc1.weight"][0], **own)
    return "language_model", transformers.LlamaConfig(intermediate_size=shapes["mlp.gate_proj.weight"][0], **own)
