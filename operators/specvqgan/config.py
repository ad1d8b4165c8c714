"""Options of the operator ``specvqgan``, and the lengths that follow from them and the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from connectors.errors import ConfigError
from connectors.options import option
from models.specvqgan.config import COLUMN_FRAMES, FEATURE_FRAMES, FEATURE_RATE, HOP, RATE, TransformerConfig
from operators.precision import CompileOptions
from operators.streams import StreamOptions

__all__ = ["ROWS_PER_COLUMN", "Geometry", "SpecVQGANOptions"]

ROWS_PER_COLUMN = COLUMN_FRAMES // FEATURE_FRAMES
"""Visual features beside a column of sound."""

_AUTO_PRECISE = 20_000_000  # parameters


@dataclass(frozen=True, kw_only=True)
class SpecVQGANOptions(CompileOptions, StreamOptions):
    """What a user can set for ``type: specvqgan`` (arXiv 2110.08791)."""

    checkpoint: str | None = option(
        None,
        "Folder with autoencoder, transformer, vocoder and features (.safetensors, or official .ckpt, .pt and .pth), or "
        "hf://ORG/NAME[@REVISION]; without it the small ones that come with the package.",
        path=True,
    )
    given_features: bool = option(
        False,
        "Rows bring their feature in a column `feature` (list of float) instead of an image: for BN-Inception and others.",
    )
    temperature: float = option(1.0, "Of the soft-max that tokens are drawn from; 0: always the most likely one.", ge=0)
    top_k: int | None = option(
        None, "Only so many of the most likely tokens are drawn; 0: all. Default: half of the codebook, as published.", ge=0
    )
    seed: int = option(0, "Of the noise that tokens are drawn with; each stream has noise of its own.")
    window_hop: int | None = option(
        None,
        "Columns, of 0.186 s, by which a full window moves. Default: half a window. Fewer: more sound is known when a column "
        "is made, at more cost; a window: each begins anew.",
        unit="columns",
        ge=1,
    )
    lookahead_cols: int | None = option(
        None,
        "Columns of video beyond the first new one that a window waits for; behind them the newest frame is repeated. Default: "
        "the whole window, as published. 0 with a small window_hop: for live use.",
        unit="columns",
        ge=0,
    )
    feature_mode: Literal["sliding", "clip"] = option(
        "sliding",
        "Frames that a window sees: `sliding`: its own; `clip`: those of the clip, a window long, it begins in.",
    )
    emit_cols: int | None = option(
        None, "Columns after which sound is made of the newest window. Default: a quarter of a window.", unit="columns", ge=1
    )
    fade_cols: int | None = option(
        None, "Columns over which two windows' spectrograms are faded into each other. Default: 4.", unit="columns", ge=0
    )
    exact: bool = option(
        False,
        "The published procedure: features of the first clip, at 21.5 frames per second, a window that moves by one column, "
        "sound in one pass when the stream ends. For clips.",
    )
    exact_max_s: float = option(60.0, "With `exact`: frames after so long are refused (`too_long`).", unit="s", gt=0, le=600)
    max_gap_s: float = option(
        2.0, "A longer pause between frames ends the sound before it, and a new one begins (status `gap`).", unit="s", gt=0
    )
    on_behind: Literal["block", "drop", "fast"] = option(
        "block",
        "Live, where sound is made more slowly than frames come: `block` the source, `drop` sound (status `behind`), or make "
        "it `fast`: windows that do not overlap.",
    )
    max_lag_s: float = option(
        5.0, "With on_behind drop or fast: how far the clock may be ahead of the newest frame's event time.", unit="s", gt=0
    )
    precision: Literal["auto", "float32", "float64"] = option(
        "auto",
        "Of the transformer. In float64 tokens do not depend on batches or restarts; in float32 rounding may now and then "
        "choose another one. `auto`: float64 for networks of less than 20 million parameters.",
    )
    batch_streams: int = option(
        16,
        "Most streams that go through the transformer together. 1: tokens depend on batches in no bit.",
        unit="streams",
        ge=1,
    )
    batch_frames: int = option(
        1,
        "Most frames, of all streams, in one pass of the frame network. 1: features depend on batches in no bit.",
        unit="frames",
        ge=1,
    )
    bank_gib: float = option(4.0, "Most memory for all streams.", unit="GiB", gt=0)

    def double(self, parameters: int) -> bool:
        """Tell whether a transformer of so many parameters computes in float64."""
        return self.precision == "float64" or (self.precision == "auto" and parameters < _AUTO_PRECISE)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Lengths, in columns unless said otherwise."""

    window: int
    features: int
    """Rows that a window sees."""
    hop: int
    lookahead: int | None
    emit: int
    fade: int
    exact: bool
    clip: bool
    longest: int
    """Of a stream, where everything is made at its end."""

    @staticmethod
    def of(options: SpecVQGANOptions, config: TransformerConfig, name: str) -> Geometry:
        """Raise ``ConfigError`` for lengths that do not go together."""
        window = config.columns
        if config.features > ROWS_PER_COLUMN * window:
            raise ConfigError(
                f"{name}: the transformer sees {config.features} frames of {ROWS_PER_COLUMN * window} of a window"
            )
        hop = options.window_hop or max(1, window // 2)
        emit = options.emit_cols or max(1, window // 4)
        fade = min(4, window // 4) if options.fade_cols is None else options.fade_cols
        if hop > window:
            raise ConfigError(f"{name}: window_hop {hop} is more than a window of {window} columns")
        if emit + fade > window:
            raise ConfigError(f"{name}: emit_cols {emit} and fade_cols {fade} must fit into a window of {window} columns")
        if options.lookahead_cols is not None and options.lookahead_cols > window:
            raise ConfigError(f"{name}: lookahead_cols {options.lookahead_cols} is more than a window of {window} columns")
        longest = max(window, int(options.exact_max_s * RATE / (HOP * COLUMN_FRAMES)))
        return Geometry(
            window,
            config.features,
            hop,
            options.lookahead_cols,
            emit,
            fade,
            options.exact,
            options.feature_mode == "clip",
            longest,
        )

    @property
    def rows(self) -> int:
        """Visual rows of a window."""
        return ROWS_PER_COLUMN * self.window

    @property
    def rows_per_s(self) -> float:
        """Of the feature clock. 1,024 samples each, but for the published procedure, whose clock and sound drift apart."""
        return FEATURE_RATE if self.exact else RATE / (HOP * FEATURE_FRAMES)

    @property
    def ring(self) -> int:
        """Visual rows that are kept of a stream."""
        return (3 if self.clip or self.exact else 2) * self.rows
