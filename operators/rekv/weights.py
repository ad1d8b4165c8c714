"""From options to the model that encodes and answers, the same in every process, and its name. No streams, no banks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch

from connectors.errors import CheckpointMismatch, ConfigError
from models.rekv.config import ReKVConfig
from models.rekv.loaders import load_model
from models.rekv.small import SMALL_WEIGHTS, load_small
from operators.rekv.answering import Answering, one_grid, rekv_config
from operators.rekv.config import ReKVOptions

__all__ = ["load_answering", "model_id", "settings"]


def settings(options: ReKVOptions, name: str) -> ReKVConfig:
    """Return the settings of the model. Raise ``ConfigError`` or ``CheckpointMismatch`` for what cannot be used."""
    path = Path(options.checkpoint) if options.checkpoint is not None else SMALL_WEIGHTS
    if not path.exists():
        raise CheckpointMismatch(
            f"{name}: checkpoint {str(path)!r} does not exist; give the folder of a checkpoint, the file of a small model, or "
            "none for the one that comes with the package"
        )
    return rekv_config(
        load_small(path).rekv if path.is_file() else None,
        window_tokens=options.window_tokens,
        retrieve_frames=options.retrieve_frames,
        chunk_frames=options.chunk_frames,
        score=options.score,
        sink_overlap=options.sink_overlap,
        encode_frames=options.batch_frames,
    )


def load_answering(options: ReKVOptions, name: str, device: torch.device) -> Answering:
    """Load the model and encode its prompt prefix. Raise ``ConfigError`` for a family without frames or tokenizer."""
    config = settings(options, name)
    path = options.checkpoint if options.checkpoint is not None else SMALL_WEIGHTS
    model = load_model(path, config, device=device)
    if model.frames is None:
        raise ConfigError(f"{name}: frames of {model.family} cannot be encoded; use LLaVA-OneVision, Video-LLaVA or InternVL")
    grid = one_grid(model)
    config.check_block(grid.tokens)
    return Answering(model, config, model.prefix(), grid)


def model_id(answering: Answering) -> str:
    """Return a name of weights and settings, equal wherever stored blocks may be used."""
    config = {
        k: v for k, v in dataclasses.asdict(answering.config).items() if k in ("window_tokens", "sink_overlap", "rope_mode")
    }
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=6)
    assert answering.model.frames is not None
    for name, tensor in sorted(answering.model.frames.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"rekv-{digest.hexdigest()}"
