"""Parameter names of published checkpoints and ours: InternVL's own, transformers' InternVL, DINOv2's own and transformers'.

Pure functions over names and tensors. Separate projections (q, k, v; gate, up) are joined; nothing else is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch

__all__ = ["UNUSED", "dino_names", "internvl_names", "without_prefixes"]

UNUSED = re.compile(r"language_model\.lm_head\.weight|vision_model\.mask_token|.*\.rotary_emb\.inv_freq")
"""Of a backbone, in our names: what a policy does not need."""

_PREFIXES = ("module.", "model.", "vlm.")

# Names of transformers (without prefix) to ours. A group {q,k,v} is joined in the order given.
_INTERNVL: Sequence[tuple[str, str]] = (
    (r"vision_tower\.embeddings\.cls_token", r"vision_model.embeddings.class_embedding"),
    (r"vision_tower\.embeddings\.position_embeddings", r"vision_model.embeddings.position_embedding"),
    (r"vision_tower\.embeddings\.mask_token", r"vision_model.mask_token"),
    (r"vision_tower\.embeddings\.patch_embeddings\.projection\.(.*)", r"vision_model.embeddings.patch_embedding.\1"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(.*)", r"vision_model.encoder.layers.\1.attn.qkv.\3#\2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.attention\.projection_layer\.(.*)", r"vision_model.encoder.layers.\1.attn.proj.\2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.layernorm_before\.(.*)", r"vision_model.encoder.layers.\1.norm1.\2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.layernorm_after\.(.*)", r"vision_model.encoder.layers.\1.norm2.\2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.lambda_([12])", r"vision_model.encoder.layers.\1.ls\2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.mlp\.(.*)", r"vision_model.encoder.layers.\1.mlp.\2"),
    (r"vision_tower\.layernorm\.(.*)", r"vision_model.norm.\1"),
    (r"multi_modal_projector\.layer_norm\.(.*)", r"mlp1.0.\1"),
    (r"multi_modal_projector\.linear_1\.(.*)", r"mlp1.1.\1"),
    (r"multi_modal_projector\.linear_2\.(.*)", r"mlp1.3.\1"),
    (r"language_model\.(embed_tokens|layers|norm)\.(.*)", r"language_model.model.\1.\2"),
    (r"lm_head\.(.*)", r"language_model.lm_head.\1"),
)
# Separate projections of any decoder, once it is under our name.
_DECODER: Sequence[tuple[str, str]] = (
    (r"(language_model\.model\.layers\.\d+\.self_attn)\.([qkv])_proj\.(.*)", r"\1.qkv_proj.\3#\2"),
    (r"(language_model\.model\.layers\.\d+\.mlp)\.(gate|up)_proj\.(.*)", r"\1.gate_up_proj.\3#\2"),
)
_DINO: Sequence[tuple[str, str]] = (
    # The release's own layout.
    (r"cls_token", r"embeddings.class_embedding"),
    (r"pos_embed", r"embeddings.position_embedding"),
    (r"mask_token|embeddings\.mask_token", r"mask_token"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embedding.\1"),
    (r"blocks\.(?:\d+\.)?(\d+)\.ls([12])\.gamma", r"encoder.layers.\1.ls\2"),
    (r"blocks\.(?:\d+\.)?(\d+)\.(.*)", r"encoder.layers.\1.\2"),
    # transformers'.
    (r"embeddings\.cls_token", r"embeddings.class_embedding"),
    (r"embeddings\.position_embeddings", r"embeddings.position_embedding"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"embeddings.patch_embedding.\1"),
    (
        r"encoder\.layer\.(\d+)\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.(.*)",
        r"encoder.layers.\1.attn.qkv.\3#\2",
    ),
    (r"encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(.*)", r"encoder.layers.\1.attn.qkv.\3#\2"),
    (r"encoder\.layer\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(.*)", r"encoder.layers.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"encoder.layers.\1.ls\2"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp)\.(.*)", r"encoder.layers.\1.\2.\3"),
    (r"layernorm\.(.*)", r"norm.\1"),
)
_ORDER = {"q": 0, "k": 1, "v": 2, "gate": 0, "up": 1}
_PARTS = {"q": 3, "k": 3, "v": 3, "gate": 2, "up": 2}


def without_prefixes(name: str) -> str:
    """Return a name without what wrappers put in front of it."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def internvl_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of an InternVL checkpoint, of either naming, by our names. Raise ``CheckpointMismatch``."""
    renamed = {_renamed(without_prefixes(name), _INTERNVL): tensor for name, tensor in tensors.items()}
    return _joined({_renamed(name, _DECODER): tensor for name, tensor in renamed.items()})


def dino_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of a DINOv2 checkpoint, of either naming, by the names of ``VisionEncoder``."""
    return _joined({_renamed(without_prefixes(name), _DINO): tensor for name, tensor in tensors.items()})


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, ours in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(ours)
    return name


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join tensors called ``NAME#PART``."""
    plain = {name: tensor for name, tensor in tensors.items() if "#" not in name}
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if "#" in name:
            whole, part = name.split("#")
            groups.setdefault(whole, {})[part] = tensor
    for whole, parts in groups.items():
        order = sorted(parts, key=_ORDER.__getitem__)
        if len(parts) != _PARTS[order[0]]:
            raise CheckpointMismatch(f"{whole}: the checkpoint holds only {order} of its parts; copy it again")
        plain[whole] = torch.cat([parts[part] for part in order])
    return plain
