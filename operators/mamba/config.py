"""Options of the operator ``mamba``. Defaults are the paper's and the official release's; network shapes stand in
:class:`models.mamba.config.MambaConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from connectors.errors import ConfigError
from connectors.options import option
from operators.precision import NetworkOptions
from operators.streams import OnStreamsFull, TimedStreamOptions, on_streams_full

__all__ = ["MAX_REFERENCES", "MambaOptions"]

MAX_REFERENCES = 64
"""Reference frames that one stream may hold until its first frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaOptions(NetworkOptions, TimedStreamOptions):
    """What a user can set for ``type: mamba``."""

    on_streams_full: OnStreamsFull = on_streams_full(was=("on_full",))
    checkpoint: str | None = option(
        None,
        "Weights: a safetensors file of this project or the official .pth, or hf://ORG/NAME[@REVISION][/FILE]; without it the "
        "weights are random.",
        path=True,
    )
    network: dict[str, Any] = option(
        {}, "Fields of MambaConfig that differ from the full-size model; only without `checkpoint`, which brings its own."
    )
    seed: int = option(0, "Seed of the draws from the banks, and of the weights where there is no checkpoint.")
    memory: bool = option(True, "False runs the same detector without any memory, for comparison.")
    levels: Literal["all", "instance", "pixel"] = option(
        "all",
        "Which banks to use: `all` that the weights have, `instance` (proposal features) or `pixel` (map cells) only.",
    )
    init: Literal["self", "spread"] = option(
        "self",
        "First frame of a stream: `self` attends to its own proposals (live); `spread` also to the reference frames that the "
        "source delivers before it (recorded files; set `references: 14` on the source). `spread` is not causal.",
    )
    max_length: int = option(
        20000,
        "Rows of each instance bank; memory reaches back max_length * write_every / write_topk frames.",
        unit="rows",
        ge=1,
    )
    key_length: int = option(2000, "Rows drawn from a bank for each frame; cost per frame grows with it.", unit="rows", ge=1)
    write_topk: int = option(75, "Proposals, best first, that each frame writes into the instance banks.", unit="rows", ge=1)
    write_every: int = option(1, "Write every n-th frame of a stream; raise it to remember longer.", unit="frames", ge=1)
    pixel_max_length: int = option(20000, "Rows of the pixel bank.", unit="rows", ge=1)
    pixel_key_length: int = option(2000, "Rows drawn from the pixel bank for each frame.", unit="rows", ge=1)
    pixel_score: float = option(0.3, "Detections above this score write the map cells inside their box.", ge=0, le=1)
    pixel_per_box: int = option(100, "Cells written per box; of more a random choice.", unit="rows", ge=1)
    pixel_per_frame: int = option(1000, "Cells written per frame, best boxes first.", unit="rows", ge=1)
    pixel_fallback: int = option(50, "Cells of largest norm written where no detection qualifies.", unit="rows", ge=1)
    bank_dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32",
        "Storage of bank rows; 16 bits halve the memory and change scores by about 1e-3.",
    )
    bank_gib: float = option(
        4.0, "Upper bound of all banks of one shard; checked before the start.", unit="GiB", gt=0, was=("bank_budget_gib",)
    )
    on_cut: Literal["keep", "reset"] = option(
        "keep",
        "At a scene cut `keep` the memory (published) or `reset` it (needed for edited video).",
    )
    cut_correlation: float = option(
        0.5, "A cut is where the color histograms of neighboring frames correlate less than this; for `on_cut: reset`.", le=1
    )
    max_long_side: int | None = option(
        None, "Scale frames to at most this long side; default: the weights' own (1000). Smaller is faster.", unit="px", ge=16
    )
    max_short_side: int | None = option(
        None, "Scale frames to at most this short side; default: the weights' own (600).", unit="px", ge=16
    )
    score_threshold: float | None = option(
        None, "Report detections above this score only; default: the weights' own (1e-4, for evaluation).", ge=0, le=1
    )
    classes: list[str] | None = option(
        None, "Report detections of these classes only; what the memory holds stays the same. Default: all of the weights."
    )
    compat: Literal["", "official"] = option(
        "",
        "`official` lets banks overshoot max_length as the published code does (20025 rows; all rows of the reference frames "
        "at the start); default: max_length is the cap.",
    )
    chunk_mpix: float = option(
        4.8, "Pixels that go through the backbone at once; lower it where memory is short.", unit="Mpx", gt=0
    )

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.network:
            raise ConfigError(
                f"network={self.network} and checkpoint={self.checkpoint!r} are both set; the checkpoint brings its own "
                "shapes, so remove network"
            )
        if self.compat == "official":  # banks take whatever is written; see random_replacement
            return
        if self.write_topk > self.max_length:
            raise ConfigError(
                f"write_topk={self.write_topk} rows do not fit into a bank of max_length={self.max_length}; "
                "lower write_topk or raise max_length"
            )
        if self.pixel_per_frame > self.pixel_max_length:
            raise ConfigError(
                f"pixel_per_frame={self.pixel_per_frame} rows do not fit into a bank of "
                f"pixel_max_length={self.pixel_max_length}; lower pixel_per_frame or raise pixel_max_length"
            )
        if self.pixel_fallback > self.pixel_per_frame:
            raise ConfigError(
                f"pixel_fallback={self.pixel_fallback} exceeds pixel_per_frame={self.pixel_per_frame}; lower pixel_fallback"
            )
