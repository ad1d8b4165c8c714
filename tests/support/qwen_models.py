"""Tiny random models of the Qwen-VL family, their folders, and the library's own reading of a video."""

# F frames, H rows, W columns, n tokens, C hidden size, V vocabulary, K blocks

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.rekv.config import ReKVConfig
from models.rekv.encoding import encode_frames
from models.rekv.families import FAMILIES
from models.rekv.loaders import VideoLanguageModel, wrap_model
from models.rekv.session import StreamState, open_stream
from models.rekv.store import TensorStore
from models.tokenizers import FolderTokenizer

__all__ = ["CELL", "QWEN", "Noted", "film", "model_folder", "qwen_model", "stock_inputs", "tokenizer_of", "watched", "wrapped"]

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CELL = 8
"""Pixels of a side of what becomes one token."""

_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_WORDS = "system user assistant you are a helpful . < > seconds what is this which color it when did red circle come".split()
_VOCABULARY = 64

_TEXT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}
_VISION = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
    "qwen3_vl": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
}


def qwen_model(family: str, *, tied: bool = False, seed: int = 0) -> Any:
    """Return a random model whose output depends on all of its input."""
    import transformers

    name = FAMILIES[family].class_name.replace("ForConditionalGeneration", "Config")
    rope = _ROPE | ({"mrope_interleaved": True} if family == "qwen3_vl" else {})
    config = getattr(transformers, name)(
        text_config=_TEXT | {"rope_parameters": rope},
        vision_config=_VISION | _TOWERS[family],
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=2,
        vision_end_token_id=3,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, FAMILIES[family].class_name)(config)
        for parameter in model.parameters():
            wide = parameter.dim() > 1
            parameter.data = torch.randn_like(parameter) * (0.25 if wide else 0.1) + (0 if wide else 1)
        if tied:
            model.tie_weights()
    return model.eval().requires_grad_(False)


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of words and single digits, with the family's special tokens."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*_SPECIAL, "<unknown>", *_WORDS, *"0123456789"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    kinds = {"eos_token": "<|im_end|>", "unk_token": "<unknown>", "additional_special_tokens": list(_SPECIAL)}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **kinds).save_pretrained(folder)


def model_folder(folder: Path, family: str, *, seed: int = 0) -> str:
    """Write a checkpoint with its tokenizer as the library writes it."""
    qwen_model(family, seed=seed).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@cache
def tokenizer_of(folder: Path) -> FolderTokenizer:
    """Return the tokenizer."""
    save_tokenizer(folder)
    return FolderTokenizer(folder)


def wrapped(
    family: str, config: ReKVConfig, tokenizer: FolderTokenizer, *, frame_tokens: int = 20, **given: Any
) -> VideoLanguageModel:
    """Return a random model with ReKV's attention."""
    return wrap_model(
        given.pop("model", None) or qwen_model(family), family, config, tokenizer, frame_tokens=frame_tokens, **given
    )


def film(count: int, rows: int = 5, columns: int = 4, seed: int = 1) -> list[np.ndarray]:
    """Return noise of ``rows`` x ``columns`` tokens."""
    noise = np.random.default_rng(seed)
    return [noise.integers(0, 256, (rows * CELL, columns * CELL, 3), np.uint8) for _ in range(count)]


class Noted:
    """What is noted of the blocks of a stream."""

    def __init__(self) -> None:
        self.rows_KW = np.zeros((0, 6), np.int64)

    def at(self, blocks_K: np.ndarray) -> np.ndarray:
        return self.rows_KW[blocks_K]


def watched(
    model: VideoLanguageModel,
    config: ReKVConfig,
    frames: Sequence[np.ndarray],
    *,
    fps: float = 2.0,
    start_s: float = 0.0,
    cuts: Sequence[int] = (),
    stream: StreamState | None = None,
) -> StreamState:
    """Return a stream of these frames, two to a block, encoded in calls that end with the blocks ``cuts``."""
    video, vision = model.video, model.frames
    assert video is not None
    blocks, shapes, times = [], [], []
    for i in range(0, len(frames), 2):
        pair = torch.from_numpy(np.stack([vision.resize(frame) for frame in frames[i : i + 2]]))[None]
        features_TC = vision(pair)[0]
        last = min(i + 1, len(frames) - 1)
        block, shape = video.block(features_TC, *pair.shape[2:4], start_s + (i + last) / 2 / fps)
        blocks.append(block)
        shapes.append(shape)
        times.append(round((start_s + i / fps) * 1e6))
    noted = Noted()
    if stream is None:
        store = TensorStore(model.decoder.layers, video.most_tokens)
        stream = open_stream(model.decoder, config, model.prefix(), video.layout(noted), store)
    noted = stream.grid.numbers  # type: ignore[attr-defined]
    rows = stream.grid.rows(stream.frames, shapes, times)  # type: ignore[attr-defined]
    noted.rows_KW = np.concatenate([noted.rows_KW, rows])
    for first, stop in zip([0, *cuts], [*cuts, len(blocks)], strict=True):
        if stop > first:
            encode_frames(model.decoder, config, [stream], [blocks[first:stop]])
    return stream


def stock_inputs(
    family: str, tokenizer: FolderTokenizer, frames: Sequence[np.ndarray], prompt: str, fps: float = 2.0
) -> dict[str, Any]:
    """Return what the library's own model takes for a video of frames of one size and a prompt behind it."""
    import transformers

    qwen3 = family == "qwen3_vl"
    kind = transformers.Qwen3VLVideoProcessor if qwen3 else transformers.Qwen2VLVideoProcessor
    processor = kind(patch_size=4, merge_size=2, temporal_patch_size=2, do_resize=False, do_sample_frames=False)
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    pixels = processor([video], return_tensors="pt", do_sample_frames=False)
    grid = pixels["video_grid_thw"]
    per_block, blocks = int(grid[0, 1:].prod()) // 4, int(grid[0, 0])
    pad = "<|video_pad|>" * per_block
    if qwen3:
        seconds = [(2 * i + min(2 * i + 1, len(frames) - 1)) / 2 / fps for i in range(blocks)]
        text = "".join(f"<{at:.1f} seconds><|vision_start|>{pad}<|vision_end|>" for at in seconds)
    else:
        text = pad * blocks
    ids = torch.tensor(tokenizer.encode(FAMILIES[family].prompts.prefix + text + prompt))
    times = {} if family != "qwen2_5_vl" else {"second_per_grid_ts": torch.tensor([2 / fps])}
    return {
        "input_ids": ids[None],
        "pixel_values_videos": pixels["pixel_values_videos"],
        "video_grid_thw": grid,
        "mm_token_type_ids": (ids == 5).int()[None] * 2,
        **times,
    }


def published_positions(family: str, inputs: dict[str, Any], fps: float = 2.0) -> Tensor:
    """Number tokens word for word as the model was trained (arXiv 2409.12191, 2502.13923, and Qwen3-VL's report), [3, 1, n]."""
    kinds = inputs["mm_token_type_ids"][0].tolist()
    _, rows, columns = (int(x) for x in inputs["video_grid_thw"][0])
    rows, columns, per_block = rows // 2, columns // 2, rows * columns // 4
    out: list[tuple[int, int, int]] = []
    largest, block = -1, 0
    i = 0
    base = None
    while i < len(kinds):
        if kinds[i] == 0:
            largest += 1
            out.append((largest,) * 3)
            base = None if family == "qwen3_vl" else base
            i += 1
            continue
        if base is None:
            base = largest + 1
        time = {"qwen2_vl": block, "qwen2_5_vl": math.floor(block * 2 / fps * 2), "qwen3_vl": 0}[family]
        for token in range(per_block):
            out.append((base + time, base + token // columns, base + token % columns))
        largest = max(largest, *(max(position) for position in out[-per_block:]))
        block, i = block + 1, i + per_block
    return torch.tensor(out).t()[:, None]
