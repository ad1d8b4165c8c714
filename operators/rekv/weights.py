"""From options to the model that encodes and answers, the same in every process, and its name. No streams, no banks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import torch

from connectors.errors import CheckpointMismatch, ConfigError
from models.hub import weights_place
from models.rekv.checkpoint import read_head_width
from models.rekv.config import ReKVConfig
from models.rekv.loaders import load_model
from models.rekv.small import SMALL_MATCHER, SMALL_WEIGHTS, read_small
from operators.banks import BlockSpec, FileReader, SharedBlocks
from operators.precision import network_dtype
from operators.rekv.answering import Answering, BlockAnswer, BlockQuestion, one_grid, rekv_config
from operators.rekv.config import ReKVOptions
from operators.rekv.policies import BlockPolicy, block_policy
from operators.standing import FrameGate, open_gate

__all__ = ["check_policy", "load_answering", "load_file_answering", "load_gate", "model_id", "settings"]


def settings(options: ReKVOptions, name: str) -> ReKVConfig:
    """Return the settings of the model. Raise ``ConfigError`` or ``CheckpointMismatch`` for what cannot be used."""
    path = weights_place(options.checkpoint, SMALL_WEIGHTS)
    if not path.exists():
        raise CheckpointMismatch(
            f"{name}: checkpoint {str(path)!r} does not exist; give the folder of a checkpoint, the file of a small model, or "
            "none for the one that comes with the package"
        )
    return rekv_config(
        read_small(path)[0] if path.is_file() else None,
        window_tokens=options.window_tokens,
        retrieve_frames=options.retrieve_frames,
        chunk_frames=options.chunk_frames,
        score=options.score,
        sink_overlap=options.sink_overlap,
        encode_frames=options.batch_frames,
    )


def check_policy(options: ReKVOptions, name: str) -> None:
    """Raise ``ConfigError`` where the policy does not fit the model's attention heads, as far as its header tells them."""
    path = weights_place(options.checkpoint, SMALL_WEIGHTS)
    width = read_small(path)[1] if path.is_file() else read_head_width(path)
    if width is not None:
        _fitting_policy(options, BlockSpec(layers=1, groups=1, tokens=1, dim=width), name)


def _fitting_policy(options: ReKVOptions, spec: BlockSpec, name: str) -> BlockPolicy:
    policy = block_policy(options.policy, spec)
    try:
        policy.codec.fields(spec)
    except ConfigError as error:
        raise ConfigError(f"{name}: policy: {error}") from error
    return policy


def load_answering(options: ReKVOptions, name: str, device: torch.device) -> Answering:
    """Load the model and encode its prompt prefix. Raise ``ConfigError`` for a family without frames or tokenizer."""
    config = settings(options, name)
    path = weights_place(options.checkpoint, SMALL_WEIGHTS)
    model = load_model(path, config, device=device, dtype=network_dtype(options))
    if model.frames is None:
        raise ConfigError(f"{name}: frames of {model.family} cannot be encoded; use LLaVA-OneVision, Video-LLaVA or InternVL")
    grid = one_grid(model)
    config.check_block(grid.tokens)
    decoder = model.decoder
    spec = BlockSpec(layers=decoder.layers, groups=decoder.groups, tokens=grid.tokens, dim=decoder.dim, dtype=decoder.dtype)
    return Answering(model, config, model.prefix(), grid, spec, _fitting_policy(options, spec, name))


def load_file_answering(
    options: ReKVOptions, name: str, device: torch.device
) -> Callable[[Sequence[tuple[BlockQuestion, SharedBlocks]]], list[BlockAnswer]]:
    """Load the model in a process of its own; return what answers questions there from the files of the operator's bank."""
    answering = load_answering(options, name, device)

    def answer(asked: Sequence[tuple[BlockQuestion, SharedBlocks]]) -> list[BlockAnswer]:
        readers = [FileReader(blocks, device=answering.model.decoder.device) for _, blocks in asked]
        return answering([question for question, _ in asked], readers)

    return answer


def load_gate(options: ReKVOptions, answering: Answering) -> FrameGate | None:
    """Return what tells when standing questions are to be answered; None for a checkpoint without a matcher."""
    model, decoder = answering.model, answering.model.decoder
    is_small = weights_place(options.checkpoint, SMALL_WEIGHTS).resolve() == SMALL_WEIGHTS
    table_VW: torch.Tensor = decoder.module.get_input_embeddings().weight.detach()  # type: ignore[operator]
    return open_gate(
        options,
        SMALL_MATCHER if is_small else None,
        frame_width=answering.grid.tokens * table_VW.shape[1],
        words_VW=table_VW,
        words=lambda text: decoder.embed(model.ids(text)),
    )


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
