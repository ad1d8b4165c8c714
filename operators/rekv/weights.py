"""From options to the model that encodes and answers, the same in every process, and its name. No streams, no banks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from connectors.errors import ConfigError
from models.hub import weights_place
from models.rekv.header import SMALL_MATCHER, SMALL_WEIGHTS
from models.rekv.loaders import load_model
from models.rekv.qwen_vision import QwenVision
from models.rekv.steps import CompiledSteps
from operators.banks import BlockSpec, FileReader, SharedBlocks
from operators.precision import network_dtype
from operators.rekv.answering import Answering, BlockAnswer, BlockQuestion, one_grid
from operators.rekv.block_policies import BlockPolicy, block_policy
from operators.rekv.config import ReKVOptions
from operators.rekv.settings import settings
from operators.standing import FrameGate, open_gate

__all__ = ["load_answering", "load_file_answering", "load_gate", "model_id"]


def _fitting_policy(options: ReKVOptions, spec: BlockSpec, name: str) -> BlockPolicy:
    policy = block_policy(options.policy, spec)
    try:
        policy.codec.fields(spec)
    except ConfigError as error:
        raise ConfigError(f"{name}: policy: {error}") from error
    return policy


def load_answering(options: ReKVOptions, name: str, device: torch.device) -> Answering:
    """Load the model and encode its prompt prefix. Raise ``ConfigError`` for options that do not fit the family."""
    config = settings(options, name)
    path = weights_place(options.checkpoint, SMALL_WEIGHTS)
    model = load_model(
        path,
        config,
        device=device,
        dtype=network_dtype(options),
        frame_tokens=options.frame_tokens,
        frames_per_block=options.frames_per_block,
    )
    model.decoder.pack()
    grid = one_grid(model)
    tokens = grid.tokens if grid is not None else model.video.most_tokens if model.video is not None else 0
    config.check_block(tokens)
    decoder = model.decoder
    spec = BlockSpec(layers=decoder.layers, groups=decoder.groups, tokens=tokens, dim=decoder.dim, dtype=decoder.dtype)
    policy = _fitting_policy(options, spec, name)
    if grid is None and policy.tokens != tokens:
        raise ConfigError(
            f"{name}: policy {options.policy.type if options.policy else ''} makes the tokens of a frame fewer, whose places "
            f"on the axes of {model.family} are not stored; use block_float, think, em_llm or none"
        )
    compiled = CompiledSteps(decoder, config) if options.compile and decoder.is_plain else None
    return Answering(model, config, model.prefix(), grid, spec, policy, compiled)


def load_file_answering(
    options: ReKVOptions, name: str, device: torch.device
) -> Callable[[Sequence[tuple[BlockQuestion, SharedBlocks]]], list[BlockAnswer]]:
    """Load the model in a process of its own; return what answers questions there from the files of the operator's bank."""
    answering = load_answering(options, name, device)

    def answer(asked: Sequence[tuple[BlockQuestion, SharedBlocks]]) -> list[BlockAnswer]:
        readers: dict[tuple[Path, int, int, int], FileReader] = {}
        for _, blocks in asked:
            if blocks.name not in readers:  # many may see the same
                readers[blocks.name] = FileReader(blocks, device=answering.model.decoder.device)
        return answering([question for question, _ in asked], [readers[blocks.name] for _, blocks in asked])

    return answer


def load_gate(options: ReKVOptions, answering: Answering) -> FrameGate | None:
    """Return what tells when standing questions are to be answered; None for a checkpoint without a matcher."""
    if answering.grid is None:
        if options.standing_matcher is not None:
            raise ConfigError(f"standing_matcher: no matcher reads frames of any size, as {answering.model.family} has them")
        return None
    model, decoder = answering.model, answering.model.decoder
    is_small = weights_place(options.checkpoint, SMALL_WEIGHTS).resolve() == SMALL_WEIGHTS
    table_VW: torch.Tensor = decoder.module.get_input_embeddings().weight.detach()  # type: ignore[operator]
    return open_gate(
        options,
        SMALL_MATCHER if is_small else None,
        frame_width=answering.spec.tokens * table_VW.shape[1],
        words_VW=table_VW,
        words=lambda text: decoder.embed(model.ids(text)),
    )


def model_id(answering: Answering) -> str:
    """Return a name of weights and settings, equal wherever stored blocks may be used."""
    config = {
        k: v for k, v in dataclasses.asdict(answering.config).items() if k in ("window_tokens", "sink_overlap", "rope_mode")
    }
    if isinstance(answering.model.frames, QwenVision):
        config |= {name: getattr(answering.model.frames, name) for name in ("frame_tokens", "frames_per_block")}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=6)
    for name, tensor in sorted(answering.model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"rekv-{digest.hexdigest()}"
