"""From options to the model that encodes and answers, the same in every process, and its name. No streams, no banks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from connectors.errors import ConfigError
from models.videostreaming.header import SMALL_MATCHER, SMALL_WEIGHTS
from models.videostreaming.loaders import load_model
from models.videostreaming.steps import CompiledSteps
from operators.banks import FileReader, SharedBlocks
from operators.precision import network_dtype
from operators.standing import FrameGate, open_gate
from operators.videostreaming.answering import Answering, ClipAnswer, ClipQuestion
from operators.videostreaming.config import VideoStreamingOptions
from operators.videostreaming.settings import changed, place

__all__ = ["load_answering", "load_file_answering", "load_gate", "model_id"]

_LATEST_S = 99_999_999.9  # three years: the longest text that a time becomes


def load_answering(options: VideoStreamingOptions, name: str, device: torch.device) -> Answering:
    """Load the model. Raise ``ConfigError`` where clips are longer than its encoder reads, or memories than it answers from."""
    ready = load_model(place(options), device=device, dtype=network_dtype(options), **changed(options))
    side, config = ready.frame_size(), ready.config
    if side is None:
        raise ConfigError(f"{name}: the checkpoint has no vision tower, so frames cannot be encoded; give one that has")
    with torch.inference_mode():
        tokens = ready.model.frame_tokens(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1]
    time_tokens = len(ready.time_ids(_LATEST_S, _LATEST_S, first=False))
    length = time_tokens + config.memory_tokens + config.frames_per_clip * tokens + config.memory_tokens + 1
    positions = getattr(ready.model.streaming_encoder.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ConfigError(
            f"{name}: a clip of {config.frames_per_clip} frames is {length} tokens to the encoder, which reads {positions}; "
            "lower frames_per_clip"
        )
    language = ready.model.language_model
    compiled = CompiledSteps(language) if options.compile and CompiledSteps.fit(language) else None
    answering = Answering(ready, options.max_question_tokens, tokens, compiled)
    most = answering.most_clips(options.max_question_tokens + options.max_answer_tokens)
    if config.select_clips + config.include_newest > most:
        raise ConfigError(
            f"{name}: select_clips={config.select_clips} memories of {config.memory_tokens} tokens with a question of "
            f"{options.max_question_tokens} and an answer of {options.max_answer_tokens} are more than the answering model "
            f"reads; lower select_clips to at most {max(most - config.include_newest, 0)}, or max_question_tokens or "
            "max_answer_tokens"
        )
    return answering


def load_file_answering(
    options: VideoStreamingOptions, name: str, device: torch.device
) -> Callable[[Sequence[tuple[ClipQuestion, SharedBlocks]]], list[ClipAnswer]]:
    """Load the model in a process of its own; return what answers questions there from the files of the operator's bank."""
    answering = load_answering(options, name, device)

    def answer(asked: Sequence[tuple[ClipQuestion, SharedBlocks]]) -> list[ClipAnswer]:
        readers: dict[tuple[Path, int, int, int], FileReader] = {}
        for _, blocks in asked:
            if blocks.name not in readers:  # many may see the same
                readers[blocks.name] = FileReader(blocks, device=device)
        return answering([question for question, _ in asked], [readers[blocks.name] for _, blocks in asked])

    return answer


def load_gate(options: VideoStreamingOptions, answering: Answering) -> FrameGate | None:
    """Return what tells when standing questions are to be answered; None for a checkpoint without a matcher."""
    ready = answering.ready
    return open_gate(
        options,
        SMALL_MATCHER if place(options).resolve() == SMALL_WEIGHTS else None,
        frame_width=answering.frame_tokens * ready.model.feature_width,
        words_VW=ready.model.streaming_encoder.get_input_embeddings().weight.detach(),
        words=lambda text: ready.model.embed(ready.asked_ids(text)),
    )


def model_id(answering: Answering) -> str:
    """Return a name of weights and settings, equal wherever stored memories may be used."""
    encoded = ("frames_per_clip", "clip_seconds", "propagate", "time_prompt", "similarity", "summary_init", "final_norm")
    said = {name: value for name, value in dataclasses.asdict(answering.ready.config).items() if name in encoded}
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=6)
    for name, tensor in sorted(answering.ready.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"videostreaming-{digest.hexdigest()}"
