"""Weights of VideoStreaming on disk: three published folders and projectors, or one safetensors file with everything.

No release of the authors is known. A folder holds ``vision_tower/`` (CLIP), ``streaming_encoder/`` and ``language_model/``,
each as published, and ``projectors.safetensors``. No pickle code is executed and nothing is fetched; what is missing or
unmatched is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from connectors.errors import CheckpointMismatch, first_line
from connectors.extras import optional
from models.pretrained import quiet, read_config, some_of
from models.skeletons import skeleton
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.header import PUBLISHED
from models.videostreaming.model import PARTS, TOWERS, VideoStreamingModel, projector
from models.weight_files import read_safetensors, read_state_dict

transformers = optional("transformers")

__all__ = [
    "PROJECTORS",
    "build_model",
    "encoder_tensors",
    "fitting_tensors",
    "load_folder",
    "load_tensors",
    "read_tensors",
    "shortened",
    "split_parts",
]

PROJECTORS = "projectors.safetensors"

"""Folders of a checkpoint folder."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_VISION_TYPES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
_ENCODER_TYPES = {"phi-msft": "phi", "mixformer-sequential": "phi"}
_OLD_PHI = (
    ("transformer.embd.wte.", "embed_tokens."),
    ("lm_head.ln.", "final_layernorm."),
    ("lm_head.linear.", "lm_head."),
    ("transformer.h.", "layers."),
    (".mixer.out_proj.", ".self_attn.dense."),
    (".mixer.", ".self_attn."),
    (".ln.", ".input_layernorm."),
)
"""Names of Phi-2 as it was published with code of its own → names of today."""

_TEXT_OF = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3"}
"""Models that see → the class of their text half. Of text all three axes of a position are the same, so the rotation is too."""

_NOT_OF_TEXT = (
    "vision_config",
    "text_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)

Tensors = dict[str, Tensor]


def build_model(
    config: VideoStreamingConfig,
    *,
    vision: Mapping[str, Any] | None,
    encoder: Mapping[str, Any],
    language: Mapping[str, Any],
    feature_width: int | None = None,
    encoder_head: bool = False,
) -> VideoStreamingModel:
    """Return a model with random weights from the parts' configs (``model_type`` and what it takes).

    ``vision`` None: features of ``feature_width`` are given. ``encoder_head``: with a vocabulary head on the encoder.
    """
    tower: Any = None if vision is None else transformers.AutoModel.from_config(_config_of(vision))
    width = feature_width or 4 * int((vision or {})["hidden_size"])
    small: Any = transformers.AutoModel.from_config(_config_of(encoder))
    large: Any = transformers.AutoModelForCausalLM.from_config(_config_of(language))
    inner, outer = small.config.hidden_size, large.config.hidden_size
    return VideoStreamingModel(
        config,
        vision_tower=tower,
        mm_projector=projector(width, inner),
        streaming_encoder=small,
        memory_projector=projector(inner, outer),
        language_model=large,
        encoder_head=nn.Linear(inner, small.config.vocab_size, bias=False) if encoder_head else None,
    )


def load_tensors(model: VideoStreamingModel, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill a model from tensors under the prefixes of ``PARTS``. Raises ``CheckpointMismatch`` where names or shapes differ."""
    parts = split_parts(tensors)
    if "streaming_encoder" in parts:
        layers = model.streaming_encoder.config.num_hidden_layers
        kept = encoder_tensors(parts["streaming_encoder"], layers, head=False)
        if not model.config.final_norm:
            kept = {name: tensor for name, tensor in kept.items() if "layers." in name or "embed" in name}
        parts["streaming_encoder"] = kept
    if "vision_tower" in parts and model.vision_tower is not None:
        parts["vision_tower"] = _vision_tensors(parts["vision_tower"], model.vision_tower)
    named = {f"{part}.{name}" if part else name: tensor for part, rows in parts.items() for name, tensor in rows.items()}
    tied = getattr(model.language_model.config, "tie_word_embeddings", False)
    optional_names = {"sim_scale", *(["language_model.lm_head.weight"] if tied else [])}
    _check_names(named, model.state_dict(), optional_names, f"{where}: ", "settings and weights do not belong together")
    model.load_state_dict(named, strict=False)
    if hasattr(model.language_model, "tie_weights"):
        model.language_model.tie_weights()


def split_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Return tensors by part; what belongs to none, such as ``sim_scale``, stands under an empty name."""
    parts: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in PARTS or part == "encoder_head":
            parts.setdefault(part, {})[rest] = tensor
        else:
            parts.setdefault("", {})[name] = tensor
    return parts


def encoder_tensors(tensors: Mapping[str, Tensor], layers: int, *, head: bool) -> Tensors:
    """Return the tensors of the first layers of a small language model, under the names of its base class.

    Takes the names of a causal model (``model.`` before them), of the base class, and of Phi-2 as it was first published, whose
    queries, keys and values were one matrix. ``head``: with ``lm_head.*`` where it is there.
    """
    kept: Tensors = {}
    for name, tensor in _text_tensors(tensors).items():
        for old, new in _OLD_PHI if name.startswith(("transformer.", "lm_head.ln", "lm_head.linear")) else ():
            name = name.replace(old, new)
        name = name.removeprefix("model.")
        found = _LAYER.search(name)
        if (found and int(found[1]) >= layers) or name.endswith(("rotary_emb.inv_freq", ".inner_attn.causal_mask")):
            continue
        if name.startswith("lm_head.") and not head:
            continue
        if ".Wqkv." in name:
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                kept[name.replace(".Wqkv.", f".{which}_proj.")] = part
        else:
            kept[name] = tensor
    return kept


def _text_tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the text half of a model that sees, under the names of a causal model; of other models all."""
    return {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
        if not name.startswith(("visual.", "model.visual."))
    }


def _text_half(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the text half of a model that sees; older ones have one level only."""
    text = dict(said.get("text_config") or said)
    rope = dict(text.pop("rope_scaling", None) or text.pop("rope_parameters", None) or {})
    rope.setdefault("rope_theta", text.pop("rope_theta", 1e6))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    kept = {name: value for name, value in rope.items() if not name.startswith("mrope") and name != "type"}
    own = {name: value for name, value in text.items() if name not in _NOT_OF_TEXT}
    return own | {
        "model_type": _TEXT_OF[said["model_type"]],
        "rope_parameters": kept | {"rope_type": "default" if kind == "mrope" else kind},
        "tie_word_embeddings": bool(said.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
    }


def _vision_tensors(tensors: Mapping[str, Tensor], tower: nn.Module) -> Tensors:
    """Return the vision part of a CLIP checkpoint under the names of the installed library, which has had two."""
    nested = any(name.startswith("vision_model.") for name in tower.state_dict())
    whole = any(name.startswith("vision_model.") for name in tensors)
    kept = {}
    for name, tensor in tensors.items():
        if (whole and not name.startswith("vision_model.")) or name.endswith("position_ids"):
            continue  # the text half of CLIP
        bare = name.removeprefix("vision_model.")
        kept[f"vision_model.{bare}" if nested else bare] = tensor
    return kept


def read_tensors(folder: Path) -> Tensors:
    """Return all tensors of a published folder: of its safetensors files, else of its PyTorch files, running no pickle."""
    files, read = sorted(folder.glob("*.safetensors")), _read_safe
    if not files:
        files, read = sorted((*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))), read_state_dict
    if not files:
        raise CheckpointMismatch(f"{folder}: holds no weights (*.safetensors or *.bin); copy the checkpoint there")
    tensors: Tensors = {}
    for file in files:
        tensors |= read(file)
    return tensors


def _read_safe(file: Path) -> Tensors:
    return read_safetensors(file)[0]


def load_folder(
    folder: Path,
    config: VideoStreamingConfig,
    *,
    dtype: torch.dtype | None = None,
    new_projectors: bool = False,
    encoder_head: bool = False,
) -> VideoStreamingModel:
    """Load the three published folders and the projectors.

    ``dtype`` None keeps the checkpoints'. ``new_projectors``: random ones where the file is missing, for training; without it
    that is an error, since a model that was never trained answers nonsense. ``encoder_head``: keep the encoder's vocabulary
    head. Raises ``CheckpointMismatch``.
    """
    vision, encoder, language = (_load_part(folder / part, config, dtype) for part in PUBLISHED)
    head = _encoder_head(folder / "streaming_encoder", encoder) if encoder_head else None
    inner, outer = encoder.config.hidden_size, language.config.hidden_size
    model = VideoStreamingModel(
        config,
        vision_tower=vision,
        mm_projector=projector(4 * vision.config.hidden_size, inner),
        streaming_encoder=encoder,
        memory_projector=projector(inner, outer),
        language_model=language,
        encoder_head=head,
    )
    file = folder / PROJECTORS
    if file.exists():
        tensors, _ = read_safetensors(file)
        _load_projectors(model, tensors, file)
    elif not new_projectors:
        raise CheckpointMismatch(
            f"{folder}: has no {PROJECTORS}: the projectors between the three models are learned, and no release of them is "
            "known; train them (streambank train videostreaming), or give a folder that training has written"
        )
    model.mm_projector.to(model.dtype)
    model.memory_projector.to(model.dtype)
    return model


def _load_projectors(model: VideoStreamingModel, tensors: Tensors, file: Path) -> None:
    large = ("vision_tower.", "streaming_encoder.", "language_model.")
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(large)}
    head = {name for name in (*wanted, *tensors) if name.startswith("encoder_head.")}
    found = {name: tensor for name, tensor in tensors.items() if name in wanted or name not in head}
    _check_names(found, wanted, head | {"sim_scale"}, f"{file}: ", "give the file that training with these three models wrote")
    model.load_state_dict(found, strict=False)


def _load_part(folder: Path, config: VideoStreamingConfig, dtype: torch.dtype | None) -> Any:
    """Load one published model by the library, from tensors that were read and renamed here."""
    said, part = read_config(folder), folder.name
    said["model_type"] = _ENCODER_TYPES.get(said["model_type"], said["model_type"])
    if part != "vision_tower" and said["model_type"] in _TEXT_OF:
        said = _text_half(said)
    try:
        if part == "vision_tower":
            said = said.get("vision_config", said) | {"model_type": _VISION_TYPES.get(said["model_type"], said["model_type"])}
        settings = _config_of(said)
        if part == "vision_tower" and settings.model_type not in TOWERS:
            raise CheckpointMismatch(
                f"{folder}: model_type {settings.model_type!r} is no vision tower; use one of {sorted(TOWERS)}"
            )
        if part == "streaming_encoder":
            settings = shortened(settings, config.encoder_layers, folder)
        own, tensors = fitting_tensors(part, settings, read_tensors(folder), str(folder))
        with quiet():
            kept = _kept_dtype(settings.model_type, dtype or _common_dtype(tensors))
            model: Any = own.from_pretrained(None, config=settings, state_dict=tensors, dtype=kept)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointMismatch):
            raise
        raise CheckpointMismatch(f"{folder}: cannot be loaded as {said['model_type']}: {first_line(error)}") from error
    return model.eval().requires_grad_(False)


def fitting_tensors(part: str, settings: Any, tensors: Tensors, where: str) -> tuple[Any, Tensors]:
    """Return the library's class for a published part (one of ``PUBLISHED``), and its tensors under the names of that class.

    Raises ``CheckpointMismatch`` for missing and unknown names and for shapes that differ.
    """
    cls: Any = transformers.AutoModelForCausalLM if part == "language_model" else transformers.AutoModel
    own = cls._model_mapping[type(settings)]
    with skeleton():
        shell = own(settings)
    if part == "vision_tower":
        tensors = _vision_tensors(tensors, shell)
    elif part == "streaming_encoder":
        tensors = encoder_tensors(tensors, settings.num_hidden_layers, head=False)
    else:
        tensors = _text_tensors(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    tied = {"lm_head.weight"} if getattr(settings, "tie_word_embeddings", False) else set()
    _check_names(tensors, shell.state_dict(), tied, f"{where}: ", "config.json and weights do not belong together")
    return own, tensors


def _check_names(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional_names: set[str], where: str, advice: str
) -> None:
    missing = wanted.keys() - found.keys() - optional_names
    unknown = found.keys() - wanted.keys()
    wrong = [
        f"{name} {tuple(found[name].shape)} (expected {tuple(wanted[name].shape)})"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    kinds = (("tensors missing", missing), ("tensors unknown", unknown), ("tensors of another shape", wrong))
    told = [f"{what}: {some_of(names)}" for what, names in kinds if names]
    if told:
        raise CheckpointMismatch(f"{where}{'; '.join(told)}; {advice}")


def shortened(settings: Any, layers: int, where: Path | str) -> Any:
    """Return a decoder's config with its first layers only. Raises ``CheckpointMismatch`` where it has fewer."""
    if layers > settings.num_hidden_layers:
        raise CheckpointMismatch(
            f"{where}: has {settings.num_hidden_layers} layers, encoder_layers is {layers}; lower it, or give another model"
        )
    settings.num_hidden_layers = layers
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[:layers]
    return settings


def _encoder_head(folder: Path, encoder: Any) -> nn.Linear:
    tensors = encoder_tensors(read_tensors(folder), encoder.config.num_hidden_layers, head=True)
    weight = tensors.get("lm_head.weight", encoder.get_input_embeddings().weight)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias="lm_head.bias" in tensors, dtype=weight.dtype)
    head.load_state_dict({"weight": weight} | ({"bias": tensors["lm_head.bias"]} if "lm_head.bias" in tensors else {}))
    return head


def _kept_dtype(model_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return bfloat16 for a float16 Phi, which is how Phi-2 is published: attention scores of some layers overflow float16."""
    return torch.bfloat16 if model_type == "phi" and dtype == torch.float16 else dtype


def _common_dtype(tensors: Tensors) -> torch.dtype:
    return next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)


def _config_of(said: Mapping[str, Any]) -> Any:
    try:
        return transformers.AutoConfig.for_model(str(said["model_type"]), **_plain(said))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointMismatch(
            f"a config of model_type {said.get('model_type')!r} cannot be used: {first_line(error)}"
        ) from error


def _plain(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's own settings: without what names classes and code."""
    return {k: v for k, v in said.items() if k not in ("model_type", "auto_map", "architectures", "transformers_version")}
