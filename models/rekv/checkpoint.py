"""Checkpoints of video-language models in folders of the published form: config.json and safetensors, no pickle.

Reads what the llava-hf repositories hold, in their older and newer naming (transformers renames on load), and says what is
missing. Knows no stream; transformers is imported when a folder is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from connectors.errors import CheckpointMismatch, first_line
from connectors.extras import optional
from models.pretrained import quiet, read_config, some_of
from models.rekv.families import FAMILIES
from models.weight_files import read_safetensors

transformers = optional("transformers")

__all__ = ["load_checkpoint"]

_SHOWN = 5


def load_checkpoint(
    folder: str | os.PathLike[str], *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """Load a model of ``FAMILIES`` from a local folder, for inference.

    ``dtype`` None keeps the checkpoint's. Nothing is fetched and no pickle is read: weights must be safetensors. Raises
    ``CheckpointMismatch`` for a folder that is incomplete, of another family, or whose tensors do not fit the model.
    """
    path = Path(folder)
    model_type = read_config(path, FAMILIES)["model_type"]
    if not any(path.glob("*.safetensors")):
        others = sorted(p.name for p in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")))
        raise CheckpointMismatch(
            f"{path}: holds no safetensors file{f' but {others[:_SHOWN]}, which are pickles' if others else ''}; "
            "convert the weights to safetensors first"
        )
    model_class: Any = getattr(transformers, FAMILIES[model_type].class_name)
    try:
        config = model_class.config_class.from_pretrained(path, local_files_only=True)
        _leave_out_unused(config, path)
        with quiet():
            model, report = model_class.from_pretrained(
                path,
                config=config,
                dtype=dtype or "auto",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointMismatch(f"{path}: cannot be loaded as {model_type}: {first_line(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(what):
            raise CheckpointMismatch(
                f"{path}: {what.replace('_', ' ')} for {model_type}: {some_of(report[what])}; "
                "config.json and weights do not belong together, or a file is missing"
            )
    ready: nn.Module = model.to(device).eval().requires_grad_(False)
    return ready


def _leave_out_unused(config: Any, path: Path) -> None:
    """Build no pooling head on a SigLIP tower whose checkpoint has none: tokens are taken before it."""
    names = {name for file in path.glob("*.safetensors") for name in read_safetensors(file, header_only=True)[0]}
    vision = config.vision_config
    has_head = any("vision_tower." in name and ".head." in name for name in names)
    if vision.model_type == "siglip_vision_model" and not has_head:
        vision.vision_use_head = False
