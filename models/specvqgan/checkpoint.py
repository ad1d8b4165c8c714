"""Weights on disk: own safetensors files, and the official layouts of autoencoder, transformer and vocoder (spec 11).

Official files are Lightning checkpoints: beside tensors they hold objects of classes that this program does not have, and
does not want. Those become inert stand-ins; no code of a file runs. What of a file is not used is logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import damaged_named, is_own, is_safetensors, make_header, require_model
from models.pretrained import some_of
from models.skeletons import skeleton
from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.config import ROWS, WINDOW_COLUMNS, AutoencoderConfig, TransformerConfig, VocoderConfig
from models.specvqgan.tokens import sequence_of
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vision import FrameFeatures, FrameNetwork, PixelConfig, PixelFeatures
from models.specvqgan.vocoder import Vocoder
from models.weight_files import read_safetensors, read_state_dict, write_safetensors

__all__ = [
    "SoundModel",
    "load_autoencoder",
    "load_features",
    "load_own_transformer",
    "load_transformer",
    "load_vocoder",
    "save",
]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

_FORMAT = "1"
_CODEBOOK, _PERMUTER, _TRANSFORMER = "first_stage_model.", "first_stage_permuter.", "transformer."
_HEAD_WIDTH = 64


class SoundModel(NamedTuple):
    """The two networks of a transformer's checkpoint."""

    autoencoder: Autoencoder
    transformer: SoundTransformer


def save(model: Autoencoder | SoundTransformer | Vocoder | PixelFeatures, path: str | os.PathLike[str]) -> None:
    """Write one network and its sizes as one safetensors file, replacing it in one step."""
    write_safetensors(model.state_dict(), make_header(_kind(type(model)), _FORMAT, config=model.config.to_json()), Path(path))


def load_autoencoder(path: str | os.PathLike[str]) -> Autoencoder:
    """Build the codebook autoencoder of a file, on the CPU in eval mode.

    Takes own files, official codebooks, and official transformers (which hold a copy of theirs). Raises
    ``CheckpointMismatch`` for a file that cannot be read safely or does not fit.
    """
    file = Path(path)
    tensors, metadata = _read(file)
    if (sizes := _stored_sizes(metadata, Autoencoder, file)) is not None:
        return _filled(Autoencoder, AutoencoderConfig.from_json(sizes), tensors, file)
    tensors = _without_module(tensors)
    if any(name.startswith(_CODEBOOK) for name in tensors):
        codebook, rest = _below(tensors, _CODEBOOK)
    else:
        codebook = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
        rest = tensors.keys() - codebook.keys()
    _say_ignored(file, rest)
    return _filled(Autoencoder, _autoencoder_sizes(codebook, file), codebook, file)


def load_transformer(path: str | os.PathLike[str], *, heads: int | None = None) -> SoundModel:
    """Build codebook and transformer of an official transformer's file, on the CPU in eval mode.

    ``heads``: a file does not tell them; by default there is one per 64 of the width, as in all released models. Raises
    ``CheckpointMismatch`` as :func:`load_autoencoder` does, and where the order of the tokens is not column by column.
    """
    file = Path(path)
    tensors = _without_module(_read(file)[0])
    codebook, _ = _below(tensors, _CODEBOOK)
    network, _ = _below(tensors, _TRANSFORMER)
    if not codebook or not network:
        raise CheckpointMismatch(
            f"{file}: is no transformer of SpecVQGAN: it needs {_CODEBOOK}* and {_TRANSFORMER}*, it has {some_of(tensors)}"
        )
    masks = {name for name in network if re.fullmatch(r"blocks\.\d+\.attn\.mask", name)}
    _check_order(tensors, file)
    used = (_CODEBOOK, _TRANSFORMER, _PERMUTER)
    _say_ignored(file, {name for name in tensors if not name.startswith(used)} | {_TRANSFORMER + name for name in masks})
    network = {name: tensor for name, tensor in network.items() if name not in masks}
    autoencoder = _filled(Autoencoder, _autoencoder_sizes(codebook, file), codebook, file)
    sizes = _transformer_sizes(network, file, heads)
    if sizes.codes != autoencoder.config.codes:
        raise CheckpointMismatch(f"{file}: {sizes.codes} tokens for a codebook of {autoencoder.config.codes}; take one file")
    return SoundModel(autoencoder, _filled(SoundTransformer, sizes, network, file))


def load_own_transformer(path: str | os.PathLike[str]) -> SoundTransformer:
    """Build the transformer of a file that :func:`save` wrote."""
    file = Path(path)
    tensors, metadata = _read(file)
    sizes = _stored_sizes(metadata, SoundTransformer, file)
    if sizes is None:
        raise CheckpointMismatch(f"{file}: has no header of this program; official files are read by load_transformer")
    return _filled(SoundTransformer, TransformerConfig.from_json(sizes), tensors, file)


def load_vocoder(path: str | os.PathLike[str]) -> Vocoder:
    """Build the vocoder of a file (own, or an official generator's state dict), on the CPU in eval mode.

    Weight normalization, of the old and the new naming, is folded. Raises ``CheckpointMismatch`` as above.
    """
    file = Path(path)
    tensors, metadata = _read(file)
    if (sizes := _stored_sizes(metadata, Vocoder, file)) is not None:
        return _filled(Vocoder, VocoderConfig.from_json(sizes), tensors, file)
    tensors = _folded(_without_module(tensors), file)
    try:
        config = VocoderConfig(
            channels=tensors["model.1.weight"].shape[0] // 16,
            residual_blocks=_count(tensors, r"model\.(\d+)\.shortcut\.bias") // 4,
        )
    except (KeyError, IndexError, ConfigError) as error:
        raise CheckpointMismatch(f"{file}: is no MelGAN generator: {error}; it has {some_of(tensors)}") from error
    return _filled(Vocoder, config, tensors, file)


def load_features(path: str | os.PathLike[str]) -> FrameNetwork:
    """Build the network of visual features of a file: own, or a state dict of torchvision's ResNet-50. Raises as above."""
    file = Path(path)
    tensors, metadata = _read(file)
    if (sizes := _stored_sizes(metadata, PixelFeatures, file)) is not None:
        return _filled(PixelFeatures, PixelConfig.from_json(sizes), tensors, file)
    network = FrameFeatures()
    try:
        ignored = network.fill(_without_module(tensors))
    except RuntimeError as error:
        said = str(error).strip().splitlines()
        raise CheckpointMismatch(
            f"{file}: is no ResNet-50 of torchvision: {' '.join(said[1:2]).strip() or said[0]}; check that it is the right file"
        ) from error
    _say_ignored(file, set(ignored))
    broken = [name for name, tensor in network.state_dict().items() if not bool(tensor.isfinite().all())]
    if broken:
        raise CheckpointMismatch(f"{file}: {some_of(broken)} hold NaN or infinity; the file is damaged, copy it again")
    return network.eval().requires_grad_(False)


def _kind(network: type[nn.Module]) -> str:
    return f"specvqgan.{network.__name__.lower()}"


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if is_safetensors(file):
        return read_safetensors(file)
    return read_state_dict(file, foreign="inert"), {}


def _stored_sizes(metadata: Mapping[str, str], network: type[nn.Module], file: Path) -> dict[str, object] | None:
    if not is_own(metadata):
        return None
    require_model(metadata, _kind(network), _FORMAT, file)
    with damaged_named(file):
        return dict(json.loads(metadata["config"]))


def _without_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], set[str]]:
    below = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return below, {name for name in tensors if not name.startswith(prefix)}


def _say_ignored(file: Path, names: set[str]) -> None:
    if names:
        logger.warning("checkpoint=%s ignored=%d (%s)", file, len(names), some_of(names))


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _autoencoder_sizes(tensors: Mapping[str, Tensor], file: Path) -> AutoencoderConfig:
    try:
        channels = tensors["encoder.conv_in.weight"].shape[0]
        levels = range(_count(tensors, r"encoder\.down\.(\d+)\.block\."))
        widths = [tensors[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in levels]
        codes, width = tensors["quantize.embedding.weight"].shape
        return AutoencoderConfig(
            channels=channels,
            multipliers=tuple(each // channels for each in widths),
            blocks=_count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
            attention_levels=tuple(i for i in levels if _count(tensors, rf"encoder\.down\.{i}\.attn\.(\d+)\.")),
            z_channels=tensors["encoder.conv_out.weight"].shape[0],
            code_width=width,
            codes=codes,
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointMismatch(
            f"{file}: is no codebook of SpecVQGAN: {error}; it has {some_of(tensors)}; check that it is the right file"
        ) from error


def _transformer_sizes(tensors: Mapping[str, Tensor], file: Path, heads: int | None) -> TransformerConfig:
    try:
        codes, width = tensors["tok_emb.weight"].shape
        features = tensors["pos_emb"].shape[1] - ROWS * WINDOW_COLUMNS
        if "embedder.weight" not in tensors or features < 1:
            raise CheckpointMismatch(
                f"{file}: has no projection of visual features; models that are given a class are not supported, take one "
                "with features"
            )
        if heads is None and width % _HEAD_WIDTH:
            raise CheckpointMismatch(f"{file}: width {width} is no multiple of {_HEAD_WIDTH}; say how many heads it has")
        return TransformerConfig(
            codes=codes,
            layers=_count(tensors, r"blocks\.(\d+)\."),
            heads=heads or width // _HEAD_WIDTH,
            width=width,
            features=features,
            feature_width=tensors["embedder.weight"].shape[1],
        )
    except (KeyError, IndexError, ConfigError) as error:
        raise CheckpointMismatch(f"{file}: is no transformer of SpecVQGAN: {error}; it has {some_of(tensors)}") from error


def _check_order(tensors: Mapping[str, Tensor], file: Path) -> None:
    grid_1HW = torch.arange(ROWS * WINDOW_COLUMNS).view(1, ROWS, WINDOW_COLUMNS)
    forward_N = sequence_of(grid_1HW)[0]
    for name, wanted_N in (("forward", forward_N), ("backward", forward_N.argsort())):
        held_N = tensors.get(f"{_PERMUTER}{name}_shuffle_idx")
        if held_N is not None and not held_N.is_meta and not torch.equal(held_N.long(), wanted_N):
            raise CheckpointMismatch(f"{file}: its tokens are not in column order ({name}_shuffle_idx); this is another model")


def _folded(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*)\.(weight_v|parametrizations\.weight\.original1)", name)
        if found is None:
            if not re.fullmatch(r".*\.(weight_g|parametrizations\.weight\.original0)", name):
                out[name] = tensor
            continue
        gain_name = f"{found[1]}.{'weight_g' if found[2] == 'weight_v' else 'parametrizations.weight.original0'}"
        if gain_name not in tensors:
            raise CheckpointMismatch(f"{file}: has {name} without {gain_name}; copy it again")
        wide = tensor.double()
        norm = wide.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))
        out[f"{found[1]}.weight"] = (tensors[gain_name].double() * wide / norm).float()
    return out


def _filled(network: type[M], config: object, tensors: Mapping[str, Tensor], file: Path) -> M:
    with skeleton():
        model = network(config)
    wanted = model.state_dict()
    missing, unknown = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    shapes = [
        f"{name} is {list(tensors[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name].shape
    ]
    if missing or unknown or shapes:
        raise CheckpointMismatch(
            f"{file}: does not fit the network: missing {some_of(missing) or 'nothing'}, not known "
            f"{some_of(unknown) or 'nothing'}, shapes {some_of(shapes) or 'right'}; check that it is the right file"
        )
    # Extremes show NaN and infinity in one pass, without a copy of hundreds of megabytes.
    broken = [name for name in wanted if not bool(torch.stack(tensors[name].aminmax()).isfinite().all())]
    if broken:
        raise CheckpointMismatch(f"{file}: {some_of(broken)} hold NaN or infinity; the file is damaged, copy it again")
    model.load_state_dict({name: tensors[name].float() for name in wanted}, assign=True)
    return model.eval().requires_grad_(False)
