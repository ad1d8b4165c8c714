"""Options of the operators ``reloop2`` and ``ctr_windows``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from operators.streams import StreamOptions

__all__ = ["CtrWindowsOptions", "ReLoop2Options", "time_cautions"]

IdType = Literal["int64", "string"]
OnTimeout = Literal["negative", "drop"]

LATENESS = (
    "Keep what is due open this much longer: rows may be out of order by that much. With `align_s`, which puts them in order, "
    "give it the same length, since labels come behind the impressions of their span."
)
JUMP = (
    "Without `align_s`: an event time further ahead of all before it counts as this much ahead, for what is due, so that one "
    "wrong clock times nothing out; a longer pause is caught up with in steps. Default: it counts as it is."
)


@dataclass(frozen=True, kw_only=True)
class ReLoop2Options(StreamOptions):
    """Error-memory correction of click-through-rate predictions (ReLoop2, arXiv 2306.08808)."""

    checkpoint: str = option(
        REQUIRED,
        "Base model: a safetensors file of `streambank train reloop2` or converted from FuxiCTR, or hf://ORG/NAME[@REVISION].",
        path=True,
    )
    id_type: IdType = option("int64", "Type of the column `impression_id`, in impressions, labels and predictions.")
    scope: Literal["global", "per_key"] = option(
        "global",
        "`global`: one memory for all rows of a shard, as published. `per_key`: one per stream_id, for `max_streams` of them.",
    )
    max_streams: int = option(1, "Streams with a memory at the same time; only with scope `per_key`.", unit="streams", ge=1)

    mode: Literal["sketch", "knn", "lsh_table", "posting_lists"] = option(
        "sketch",
        "Memory: `sketch` (hashed sums of all labels), `knn` (the latest rows, exact search), `lsh_table` (the latest rows, "
        "search among those that share a bucket), `posting_lists` (the latest rows, on disk, search among the nearest lists).",
    )
    strength: float = option(
        0.4, "λ of the paper: 0 leaves the base prediction, 1 corrects by all of the estimated error. Tune it per model.", ge=0
    )
    gamma: float = option(
        1.0,
        "γ of the paper: 1 measures the error of the labels read against this prediction, 0 against the predictions read.",
        ge=0,
        le=1,
    )
    tau: float = option(0.1, "τ of the paper: temperature of the softmax over similarities.", gt=0)
    similarity: Literal["density", "count", "uniform"] = option(
        "density",
        "Sketch: how arrays are weighted: `density` (softmax of the share of all rows in the bucket, published), `count` (rows "
        "in the bucket; best where buckets are sparse), `uniform`.",
    )
    prior_rows: float = option(
        0.0,
        "Shrink the estimated error as if so many rows without error had been read as well: 0 is published, 20 keeps a memory "
        "that is still sparse from doing harm.",
        unit="rows",
        ge=0,
    )
    arrays: int = option(
        70, "K: hash arrays of the sketch or tables of lsh_table; more lower the variance and cost time.", ge=1
    )
    bits: int = option(16, "L: sign bits per hash, so 2^L buckets per array; below 12 is too coarse.", unit="bits", ge=0, le=24)
    top_k: int = option(70, "Neighbors read; not in mode sketch.", unit="rows", ge=1)
    capacity: int = option(
        20_000, "Rows kept, the oldest goes; in mode posting_lists up to an eighth more. Not in mode sketch.", unit="rows", ge=1
    )
    lists_path: str | None = option(
        None,
        "Mode posting_lists: folder of the files; the state's snapshots name them, so keep it as long as the state.",
        path=True,
    )
    lists_per_query: int = option(
        64, "Mode posting_lists: lists that a prediction reads at most; more find more of the true neighbors.", ge=1
    )
    slots_per_bucket: int = option(64, "Rows that a bucket of lsh_table names; the oldest goes.", unit="rows", ge=1)
    sigma: float = option(
        0.0,
        "Not in mode sketch: write only rows whose |label - y_base| is above this; biases the labels read.",
        ge=0,
        lt=1,
    )
    keep_rate: float = option(1.0, "Not in mode sketch: share of the rows that is written, drawn at random.", gt=0, le=1)
    center: Literal["train_mean", "none"] = option(
        "train_mean",
        "Subtract the hidden vector's training mean before hashing (`train_mean`; a sketch of a ReLU layer needs it) or not "
        "(`none`, published).",
    )
    seed: int = option(0, "Seed of the random projections, fixed for the life of a memory, and of `keep_rate`.")

    forgetting: Literal["half_life", "slices", "reset", "never"] = option(
        "half_life",
        "Sketch: `half_life`, `slices` (an exact sliding window of 8 slices, 9 times the memory), `reset` (published) or "
        "`never`.",
    )
    forget_rows: int = option(
        10_000,
        "Rows written until half of a weight is left, a row leaves the window, or the sketch is reset.",
        unit="rows",
        ge=8,
    )
    on_swap: Literal["clear", "keep"] = option(
        "clear",
        "When a control row brings another model: `clear` the memory, whose rows are not comparable (published), or `keep` it, "
        "for a model that is the last one trained a little further.",
    )
    reset_every_s: float | None = option(None, "Also forget everything whenever so much event time has passed.", unit="s", gt=0)

    micro_batch: int = option(
        512,
        "Impressions that read the same state of the memory; labels are written between two micro-batches. Smaller is fresher, "
        "larger is faster.",
        unit="rows",
        ge=1,
    )
    label_timeout_s: float = option(1800.0, "Wait for an impression's label for so much event time.", unit="s", gt=0)
    on_timeout: OnTimeout = option(
        "negative", "An impression without a label in time counts as not clicked (`negative`) or not at all (`drop`)."
    )
    late_correction_s: float = option(
        0.0,
        "For so long after the timeout a positive label still corrects what was written as negative; sketches that forget "
        "by `never` or `reset`, where that is exact.",
        unit="s",
        ge=0,
    )
    pending_capacity: int = option(
        100_000,
        "Impressions remembered for their label, for duplicates and corrections (per stream with scope `per_key`); of more "
        "the oldest is dropped. Give it at least the impressions of label_timeout_s + late_correction_s.",
        unit="rows",
        ge=1,
    )
    early_label_s: float = option(600.0, "Keep a label that came before its impression for so much event time.", unit="s", ge=0)
    early_capacity: int = option(
        10_000, "Labels kept that came before their impression (per stream with scope `per_key`).", unit="rows", ge=1
    )
    soft_labels: bool = option(False, "Accept labels between 0 and 1, too.")
    allowed_lateness_s: float = option(10.0, LATENESS, unit="s", ge=0)
    max_jump_s: float | None = option(None, JUMP, unit="s", gt=0)
    bank_gib: float = option(
        4.0,
        "Upper bound of memory and waiting impressions of one shard; checked before the start.",
        unit="GiB",
        gt=0,
        was=("memory_budget_gib",),
    )

    def __post_init__(self) -> None:
        if self.mode != "sketch":
            if self.scope == "per_key":
                raise ConfigError(f"scope='per_key' needs mode='sketch', got mode={self.mode!r}; use scope='global'")
            if self.late_correction_s:
                raise ConfigError(
                    f"late_correction_s={self.late_correction_s} needs mode='sketch', whose sums can be corrected exactly, got "
                    f"mode={self.mode!r}; set it to 0"
                )
        else:
            for name, off in (("sigma", 0.0), ("keep_rate", 1.0)):
                if getattr(self, name) != off:
                    raise ConfigError(
                        f"{name}={getattr(self, name)} filters rows of the other modes; a sketch holds every row, "
                        f"so leave it at {off}"
                    )
        if (self.mode == "posting_lists") != (self.lists_path is not None):
            raise ConfigError(
                "mode='posting_lists' needs lists_path, a folder for its files"
                if self.lists_path is None
                else f"lists_path={self.lists_path!r} does nothing in mode={self.mode!r}; remove it"
            )
        if self.late_correction_s and self.forgetting not in ("never", "reset"):
            raise ConfigError(
                f"late_correction_s={self.late_correction_s} needs forgetting='never' or 'reset': under "
                f"{self.forgetting!r} what was written has lost weight since; set one of them"
            )
        if self.late_correction_s and self.on_timeout == "drop":
            raise ConfigError(
                f"late_correction_s={self.late_correction_s} corrects negatives, but on_timeout='drop' writes none; set "
                "on_timeout='negative' or late_correction_s=0"
            )
        if self.scope == "global":
            for name, default in (("max_streams", 1), ("on_streams_full", "evict")):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} does nothing with scope='global'; set scope='per_key' or remove it"
                    )


@dataclass(frozen=True, kw_only=True)
class CtrWindowsOptions:
    """Logloss, AUC and gAUC of click predictions with and without the memory, per window."""

    id_type: IdType = option("int64", "Type of the column `impression_id`.")
    window_s: float = option(600.0, "Length of a window.", unit="s", gt=0)
    label_timeout_s: float = option(1800.0, "Wait for an impression's label for so much event time.", unit="s", gt=0)
    on_timeout: OnTimeout = option(
        "negative", "Without a label in time an impression counts as not clicked (`negative`) or not at all (`drop`)."
    )
    group: Literal["none", "stream_id"] = option(
        "none", "`stream_id`: also AUC per stream (user), averaged by impressions (gAUC); `none`: no gAUC."
    )
    capacity: int = option(200_000, "Predictions that wait for the end of their window; of more the oldest is dropped.", ge=1)
    early_capacity: int = option(10_000, "Labels kept that came before their impression.", unit="rows", ge=1)
    early_label_s: float = option(600.0, "Keep a label that came before its impression for so much event time.", unit="s", ge=0)
    allowed_lateness_s: float = option(10.0, LATENESS, unit="s", ge=0)
    max_jump_s: float | None = option(None, JUMP, unit="s", gt=0)


def time_cautions(options: ReLoop2Options | CtrWindowsOptions, align_s: float | None) -> list[tuple[str, str]]:
    """Return the options whose lengths of event time do not go together, with the reason."""
    found = []
    open_s = options.label_timeout_s + options.allowed_lateness_s
    if align_s is not None and open_s < align_s:
        found.append(
            (
                "label_timeout_s",
                f"labels come behind all impressions of their {align_s:g} s (align_s), but impressions wait {open_s:g} s only "
                "(label_timeout_s + allowed_lateness_s), so that labels in time count as missing; set allowed_lateness_s to "
                f"{align_s:g} or lower align_s",
            )
        )
    if isinstance(options, CtrWindowsOptions) and align_s is not None and options.window_s < align_s:
        found.append(
            (
                "window_s",
                f"windows of {options.window_s:g} s are shorter than align_s ({align_s:g} s), so several are judged at once; "
                "lower align_s",
            )
        )
    return found
