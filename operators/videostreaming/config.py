"""Options of the operator ``videostreaming``. Defaults are the model's own, which for published sizes are the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from connectors.options import option
from operators.block_options import BlockBankOptions
from operators.precision import NetworkOptions
from operators.questions import QuestionOptions
from operators.streams import StreamOptions

__all__ = ["VideoStreamingOptions"]


@dataclass(frozen=True, kw_only=True)
class VideoStreamingOptions(QuestionOptions, BlockBankOptions, NetworkOptions, StreamOptions):
    """What a user can set for ``type: videostreaming`` (arXiv 2405.16009)."""

    checkpoint: str | None = option(
        None,
        "File of a model, or a folder with vision_tower, streaming_encoder and language_model, or hf://ORG/NAME[@REVISION]; "
        "without it the small model that comes with the package.",
        path=True,
    )
    clip_seconds: float | None = option(None, "Length of a clip. Default: the model's own, 8 as published.", unit="s", gt=0)
    frames_per_clip: int | None = option(
        None,
        "Frames of a clip; those between are skipped and counted. Default: the model's own, 16 as published.",
        unit="frames",
        ge=1,
    )
    clip_gap_s: float = option(10.0, "A longer pause between frames ends the clip before it.", unit="s", gt=0)
    select_clips: int | None = option(
        None, "Clips that a question selects. Default: the model's own, 4 as published.", unit="clips", ge=1
    )
    include_open: bool = option(
        False, "Questions also see the clip that is not complete yet; without a complete one they do in any case."
    )
    include_newest: bool | None = option(None, "Add the newest clip where it is not selected. Default: the model's own.")
    propagate: bool | None = option(None, "Clips see the memory of the clip before; false is the paper's ablation.")
    llm_time_text: bool | None = option(None, "Tell the answering model the time of each clip. Default: the model's own.")
    similarity: Literal["cosine", "dot"] | None = option(
        None, "How clips are compared with a question. Default: the model's own."
    )
    clip_events: bool = option(False, "Give a row for each clip, with its indicator: for a search of your own.")
    on_long_question: Literal["cut", "refuse"] = option(
        "cut", "A question of more than max_question_tokens: `cut` its beginning off, or `refuse` it (`question_too_long`)."
    )
    max_question_tokens: int = option(256, "Longest question; see on_long_question.", unit="tokens", ge=1)
    batch_frames: int = option(
        64,
        "Most frames, of all streams, in one pass of the vision tower. 1: results depend on batches in no bit.",
        unit="frames",
        ge=1,
    )
    batch_clips: int = option(
        16,
        "Most clips, of all streams, in one pass of the encoder. 1: results depend on batches in no bit.",
        unit="clips",
        ge=1,
    )
    answerers: int = option(
        0,
        "Processes that answer from the same files while encoding goes on; needs disk_gib. 0: answers are made between frames.",
        unit="processes",
        ge=0,
    )
    clips_per_stream: int | None = option(
        None, "Clips that one stream keeps. Default: an equal share of the budget.", unit="clips", ge=1
    )

    def __post_init__(self) -> None:
        self.check_tiers()
        self.check_answerers(self.disk_gib)
