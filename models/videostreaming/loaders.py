"""A model ready to watch and answer: networks, tokenizers, prompts; from one file or a folder on disk. Knows no stream."""

# n tokens

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors import durable
from connectors.errors import CheckpointMismatch, ConfigError
from connectors.extras import optional
from models.file_headers import make_header
from models.prompts import QWEN_CHAT, PromptTemplate
from models.tokenizers import FolderTokenizer, Tokenizer, WordTokenizer
from models.videostreaming.checkpoint import PROJECTORS, build_model, load_folder, load_tensors
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.header import (
    FORMAT,
    METHOD,
    PUBLISHED,
    SETTINGS_FILE,
    SMALL_UNSURE_BELOW,
    SMALL_WEIGHTS,
    read_settings,
)
from models.videostreaming.model import VideoStreamingModel
from models.videostreaming.prompts import VICUNA, clip_time_text, time_prompt
from models.videostreaming.tokens import check_grid
from models.weight_files import read_safetensors, write_safetensors

transformers = optional("transformers")

__all__ = ["VideoStreaming", "load_model", "save_folder", "save_model"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VideoStreaming:
    """Everything that encoding and answering needs, weights included."""

    model: VideoStreamingModel
    encoder_tokenizer: Tokenizer
    tokenizer: Tokenizer
    """Of the answering model."""
    prompts: PromptTemplate
    end_tokens: frozenset[int]
    unsure_below: float = 0.0
    """Confidence below which its answers are better called unsure; 0 where nobody has calibrated it."""

    @property
    def config(self) -> VideoStreamingConfig:
        """The settings."""
        return self.model.config

    def time_ids(self, start_s: float, end_s: float, *, first: bool) -> Tensor:
        """Return the time prompt of a clip as the encoder's token ids."""
        return _ids(self.encoder_tokenizer, time_prompt(start_s, end_s, first=first, parts=self.config.time_prompt))

    def asked_ids(self, text: str) -> Tensor:
        """Return a question as the encoder's token ids."""
        return _ids(self.encoder_tokenizer, text)

    def prefix_ids(self) -> Tensor:
        """Return what the answering model reads before the memories."""
        return _ids(self.tokenizer, self.prompts.prefix, start=True)

    def shown_ids(self, start_s: float, end_s: float) -> Tensor:
        """Return the time of a selected clip as the answering model's token ids."""
        return _ids(self.tokenizer, clip_time_text(start_s, end_s) if self.config.llm_time_text else "")

    def prompt_ids(self, text: str) -> Tensor:
        """Return the question, and what follows it, as the answering model's token ids."""
        return _ids(self.tokenizer, self.prompts.open_ended(text))

    def frame_size(self) -> int | None:
        """Return the side of the frames that the vision tower takes, px; None without one."""
        tower = self.model.vision_tower
        return None if tower is None else int(tower.config.image_size)


def _chat(language_model: Any) -> PromptTemplate:
    """Return the chat form of an answering model whose folder says nothing of it."""
    return QWEN_CHAT if str(language_model.config.model_type).startswith("qwen") else VICUNA


def _ids(tokenizer: Tokenizer, text: str, *, start: bool = False) -> Tensor:
    return torch.tensor(tokenizer.encode(text, start=start), dtype=torch.long)


def load_model(
    checkpoint: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    new_projectors: bool = False,
    encoder_head: bool = False,
    **changed: Any,
) -> VideoStreaming:
    """Load a file that :func:`save_model` wrote, or a folder (:mod:`models.videostreaming.checkpoint`), for inference.

    ``changed``: fields of the settings that are not None take the place of the checkpoint's own. For training:
    ``new_projectors`` where a folder has none yet, ``encoder_head`` with the encoder's vocabulary head. Raises
    ``CheckpointMismatch`` or ``ConfigError``.
    """
    path = Path(checkpoint)
    config, header = read_settings(path, **changed)
    if path.is_file():
        tensors, _ = read_safetensors(path)
        parts = {name: json.loads(header[name]) if name in header else None for name in ("vision", "encoder", "language")}
        width = tensors["mm_projector.0.weight"].shape[1] if "mm_projector.0.weight" in tensors else None
        model = build_model(
            config,
            vision=parts["vision"],
            encoder=_required(parts["encoder"], path),
            language=_required(parts["language"], path),
            feature_width=width,
            encoder_head=any(name.startswith("encoder_head.") for name in tensors),
        )
        load_tensors(model, tensors, str(path))
        if encoder_head and model.encoder_head is None:  # small models are kept without; its words are tied to begin with
            words = model.streaming_encoder.get_input_embeddings().weight
            model.encoder_head = torch.nn.Linear(words.shape[1], words.shape[0], bias=False)
            model.encoder_head.load_state_dict({"weight": words.detach()})
        encoder_tokenizer: Tokenizer = WordTokenizer(json.loads(header["words"]), digits=True)
        tokenizer = encoder_tokenizer
    else:
        model = load_folder(path, config, dtype=dtype, new_projectors=new_projectors, encoder_head=encoder_head)
        encoder_tokenizer, tokenizer = (FolderTokenizer(path / part) for part in ("streaming_encoder", "language_model"))
    if model.vision_tower is not None:
        tower = model.vision_tower.config
        check_grid((tower.image_size // tower.patch_size) ** 2 // 4, config.frame_summaries)
    prompts = PromptTemplate(**json.loads(header["prompts"])) if "prompts" in header else _chat(model.language_model)
    ready: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return VideoStreaming(
        model=ready,
        encoder_tokenizer=encoder_tokenizer,
        tokenizer=tokenizer,
        prompts=prompts,
        end_tokens=_ends(model.language_model),
        unsure_below=SMALL_UNSURE_BELOW if path.is_file() and path.resolve() == SMALL_WEIGHTS else 0.0,
    )


def _required(part: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(part, dict):
        raise CheckpointMismatch(f"{path}: its header lacks the configs of its language models; copy or train it again")
    return part


def _ends(language_model: Any) -> frozenset[int]:
    ends: set[int] = set()
    for source in (getattr(language_model, "generation_config", None), language_model.config):
        end = getattr(source, "eos_token_id", None)
        ends |= set() if end is None else {end} if isinstance(end, int) else set(end)
    return frozenset(ends)


def save_model(ready: VideoStreaming, path: str | os.PathLike[str]) -> None:
    """Write one safetensors file with everything in it. Only for models whose tokenizer is a list of words."""
    if not isinstance(ready.tokenizer, WordTokenizer):
        raise ConfigError(
            "videostreaming: a model with tokenizers of its own is kept in a folder; one file has no room for them"
        )
    model = ready.model
    parts: dict[str, Any] = {"encoder": model.streaming_encoder, "language": model.language_model}
    if model.vision_tower is not None:
        parts["vision"] = model.vision_tower
    tensors = dict(model.state_dict())
    if getattr(model.language_model.config, "tie_word_embeddings", False):
        tensors.pop("language_model.lm_head.weight", None)
    metadata = make_header(
        METHOD,
        FORMAT,
        config=dataclasses.asdict(ready.config),
        words=ready.tokenizer.words,
        prompts=dataclasses.asdict(ready.prompts),
        **{name: _said(part.config) for name, part in parts.items()},
    )
    write_safetensors(tensors, metadata, Path(path))


def _said(config: Any) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return said | {"model_type": config.model_type}


def save_folder(ready: VideoStreaming, source: Path, target: Path) -> None:
    """Write a folder of the form that ``source`` has, with its tokenizers and what its models have become."""
    model = ready.model
    for part in PUBLISHED:
        getattr(model, part).save_pretrained(target / part)
        for file in (source / part).iterdir():
            known = file.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in file.name
            if known and not (target / part / file.name).exists():
                shutil.copy(file, target / part / file.name)
    large = tuple(f"{part}." for part in (*PUBLISHED, "encoder_head"))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(large)}
    write_safetensors(tensors, {}, target / PROJECTORS)
    said = {"config": dataclasses.asdict(ready.config), "prompts": dataclasses.asdict(ready.prompts)}
    durable.write(target / SETTINGS_FILE, (json.dumps(said, indent=2) + "\n").encode())
