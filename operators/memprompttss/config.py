"""Options of the operator ``memprompttss``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from connectors.errors import ConfigError
from connectors.options import option
from models.memprompttss.config import MemPromptTSSConfig
from operators.sampling_rate import RateOptions
from operators.streams import StreamOptions

__all__ = ["Geometry", "MemPromptTSSOptions"]


@dataclass(frozen=True, kw_only=True)
class MemPromptTSSOptions(StreamOptions, RateOptions):
    """What a pipeline file can set. Defaults: the paper's windows, and our design of the stream around them."""

    checkpoint: str | None = option(
        None,
        "A file of `streambank train memprompttss` or of a release, or hf://ORG/NAME[@REVISION][/FILE]. Default: the "
        "package's: two frequencies of one channel.",
        path=True,
    )
    settings: dict[str, Any] = option(
        {}, "What a release's file does not tell: heads, patch, patch_stride, activation, encoder_axis, window, context."
    )
    stride: int | None = option(
        None, "Samples between windows, at most a window. Default: as trained. A window long: cheapest, final at once.", ge=1
    )
    history: int | None = option(
        None, "Newest samples that a prompt can be about and that follow one. Default: 16 windows.", unit="samples", ge=1
    )
    granularities: list[int] = option([0], "Levels of states to emit; each has a bank of its own.")
    capacity: int = option(
        256, "Prompts that a bank holds; then the oldest one that is not pinned makes room.", unit="prompts", ge=1
    )
    max_age_s: float | None = option(
        None, "Prompts that were said longer ago are forgotten, unless they are pinned. Default: none is.", unit="s", gt=0
    )
    min_segment: int | None = option(
        None, "Shorter runs of a state start no segment. Default: 2 strides of patches.", unit="samples", ge=0
    )
    provisional: bool = option(True, "Also emit states that later windows may change, as soon as there are any.")
    pad_short: bool = option(
        False, "A stream that ends with less than a window is padded with its first sample, status `padded`."
    )
    wrong_rate: Literal["mark", "reject"] = option(
        "mark",
        "Samples of a stream that comes at another rate than `rate_hz`: `mark` gives them states and the status `wrong_rate`, "
        "`reject` runs no window over them.",
    )
    max_hold: int = option(16, "Samples for which a missing value is replaced by the last one.", unit="samples", ge=0)
    max_gap_s: float | None = option(
        None, "A longer pause ends the segment; windows start over, the bank stays.", unit="s", gt=0
    )
    lateness_s: float = option(
        0.0,
        "Samples out of order by up to this much are put where they belong, unless a window has run over the place. A second "
        "sample of one time replaces the first. 0: both are refused as `late`.",
        unit="s",
        ge=0,
    )
    max_waiting: int = option(
        1024, "Prompts per stream that wait for the next window, or for their time.", unit="prompts", ge=1
    )
    prompt_ttl_s: float = option(
        3600.0, "Prompts about a stream of which nothing comes for so long are refused.", unit="s", gt=0
    )
    batch_windows: int = option(128, "Most windows that go through the network together.", unit="windows", ge=1)
    bank_gib: float = option(4.0, "Most memory for all streams.", unit="GiB", gt=0)

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        levels = self.granularities
        if not levels or len(set(levels)) != len(levels) or not all(0 <= level < 128 for level in levels):
            raise ConfigError(f"granularities is {levels}; give different levels between 0 and 127")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Lengths in samples that follow from the options and the network."""

    window: int
    stride: int
    context: int
    min_segment: int
    kept: int
    """Samples, and their states, that are remembered."""
    cached: int
    """Encoded windows that are remembered."""

    @property
    def ahead(self) -> int:
        """Windows that are taken in behind one before it is settled: what it is about is still remembered then."""
        about = self.window + max(self.min_segment, 1) + 1
        return min((self.cached - 1) // 2, (self.kept - about) // self.stride)

    @staticmethod
    def of(options: MemPromptTSSOptions, config: MemPromptTSSConfig, name: str) -> Geometry:
        """Raise ``ConfigError`` for lengths that do not go together."""
        window, stride = config.window, options.stride or min(config.stride, config.window)
        if stride > window:
            raise ConfigError(f"{name}: stride {stride} leaves samples out; it must be at most the window, {window}")
        history = options.history or 16 * window
        if history < max(window, config.context):
            raise ConfigError(
                f"{name}: history {history} is shorter than a window ({window}) or the context of a prompt ({config.context})"
            )
        min_segment = 2 * config.patch_stride if options.min_segment is None else options.min_segment
        cached = -(-max(history, window) // stride)
        # Behind the last window up to a stride of samples has come; a run before the first revised sample is looked at.
        kept = max(cached * stride, window + stride) + stride + max(min_segment, 1) + 1
        return Geometry(window, stride, config.context, min_segment, kept, cached)
