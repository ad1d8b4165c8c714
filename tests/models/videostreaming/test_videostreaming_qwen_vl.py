"""A Qwen-VL checkpoint as answering model and as encoder of clips: its text half, with the numbers of the whole model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from qwen_models import QWEN, model_folder, qwen_model
from safetensors.torch import load_file, save_file
from videostreaming_models import publish

from models.prompts import QWEN_CHAT
from models.videostreaming.loaders import load_model


@pytest.mark.parametrize("family", [QWEN[0], pytest.param(QWEN[1], marks=pytest.mark.slow), QWEN[2]])
def test_a_checkpoint_that_sees_answers_and_encodes_with_its_text_half(family: str, tmp_path: Path) -> None:
    publish(tmp_path, projectors=False)
    for part in ("language_model", "streaming_encoder"):
        shutil.rmtree(tmp_path / part)
        model_folder(tmp_path / part, family)
    if family == "qwen2_vl":  # one of them as published before the library nested its models
        _flatten(tmp_path / "language_model", family)
    ready = load_model(tmp_path, new_projectors=True, encoder_layers=3)
    stock, ids_1n = qwen_model(family), torch.arange(7, 20)[None]
    wanted = stock(input_ids=ids_1n)
    own = ready.model.language_model
    got = own(inputs_embeds=own.get_input_embeddings()(ids_1n), position_ids=torch.arange(13)[None]).logits
    torch.testing.assert_close(got, wanted.logits, rtol=1e-5, atol=1e-5 * float(wanted.logits.abs().max()))
    hidden = ready.model.encode(ready.model.embed(ids_1n[0])[None])
    states = stock.model.language_model(input_ids=ids_1n).last_hidden_state
    torch.testing.assert_close(hidden, states, rtol=1e-5, atol=1e-5 * float(states.abs().max()))
    assert ready.prompts == QWEN_CHAT
    assert ready.end_tokens == {1}
    assert not [name for name in ready.model.state_dict() if "visual" in name]


def _flatten(folder: Path, family: str) -> None:
    said = json.loads((folder / "config.json").read_text())
    text = said.pop("text_config")
    rope = text.pop("rope_parameters")
    said |= {name: value for name, value in text.items() if name != "model_type"}
    said |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (folder / "config.json").write_text(json.dumps(said | {"model_type": family}))
    tensors = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
