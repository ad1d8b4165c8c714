"""Options of the operator ``rekv``. Defaults are the paper's setting for LLaVA-OneVision, or the small model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from connectors.errors import ConfigError
from connectors.options import option
from operators.block_options import BlockBankOptions, OnBankFull, on_bank_full
from operators.precision import NetworkOptions
from operators.questions import QuestionOptions
from operators.rekv.policies import EMLLM, BlockFloat, KVMerger, Scissorhands, ThinK
from operators.streams import StreamOptions

__all__ = ["ReKVOptions"]


@dataclass(frozen=True, kw_only=True)
class ReKVOptions(QuestionOptions, BlockBankOptions, NetworkOptions, StreamOptions):
    """What a user can set for ``type: rekv`` (arXiv 2503.00540)."""

    checkpoint: str | None = option(
        None,
        "Folder of a LLaVA-OneVision, Video-LLaVA, InternVL, Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint, or the file of a "
        "small model, or hf://ORG/NAME[@REVISION]; without it the small model that comes with the package.",
        path=True,
    )
    sample_fps: float | None = option(
        0.5,
        "Frames encoded per second of event time; those between are skipped and counted. null: every frame.",
        unit="1/s",
        gt=0,
    )
    window_tokens: int | None = option(
        None, "Sliding attention window. Default: what a small model was trained with, else 15,000.", unit="tokens", ge=1
    )
    retrieve_frames: int | None = option(
        None, "Frames that each layer retrieves. Default: what a small model was trained with, else 64.", unit="frames", ge=1
    )
    chunk_frames: int = option(
        1, "Neighboring frames scored and retrieved together; divides retrieve_frames.", unit="frames", ge=1
    )
    score: Literal["dot", "cosine"] = option("dot", "`dot`: as published code computes it; `cosine`: as the paper names it.")
    sink_overlap: Literal["official", "exact"] = option(
        "official", "A prompt token inside the window that is a sink already counts twice (`official`) or once (`exact`)."
    )
    rope_mode: Literal["auto", "elapsed", "1d"] = option(
        "auto",
        "`auto`: the model's own positions, retrieved frames follow each other; `elapsed`: they keep the time between them "
        "(Qwen2-VL, Qwen2.5-VL); `1d`: one running index, also for Qwen-VL.",
    )
    frame_tokens: int | None = option(
        None,
        "Qwen-VL: most tokens of a frame, which is scaled to at least half as many. Default: 196.",
        unit="tokens",
        ge=2,
    )
    frames_per_block: int | None = option(
        None,
        "Qwen-VL: frames that are encoded and retrieved as one. Default: 2, as in training on video; 1: each by itself.",
        unit="frames",
        ge=1,
    )
    policy: BlockFloat | KVMerger | Scissorhands | ThinK | EMLLM | None = option(
        None, "How the keys and values of a frame are stored, or which frames are read. null: as they are, and the best ones."
    )
    batch_frames: int = option(
        64,
        "Most frames, of all streams, in one pass. 1: results depend on batches in no bit, but encoding is slower.",
        unit="frames",
        ge=1,
    )
    max_question_tokens: int = option(
        1024, "Longer questions get the status `question_too_long`; never more than window_tokens.", unit="tokens", ge=1
    )
    answerers: int = option(
        0,
        "Processes that answer from the same files while encoding goes on; needs disk_gib. 0: answers are made between frames.",
        unit="processes",
        ge=0,
    )
    on_bank_full: OnBankFull = on_bank_full(was=("on_full",))
    frames_per_stream: int | None = option(
        None, "Frames that one stream keeps. Default: an equal share of the budget.", unit="frames", ge=1
    )

    def __post_init__(self) -> None:
        self.check_tiers()
        self.check_answerers(self.disk_gib)
        if isinstance(self.policy, EMLLM) and self.chunk_frames > 1:
            raise ConfigError(
                f"chunk_frames={self.chunk_frames} with policy em_llm: events take the place of chunks; set chunk_frames to 1"
            )
