"""Shapes and settings of MemPromptTSS and PromptTSS. Defaults: those of the released experiments on the pump data.

What depends on a stream (window stride, bank, ring) belongs to the operator's options; what a training fixed about its data
(channels, states, normalization, rate) stands here, beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from connectors.errors import ConfigError
from models.settings import Settings

__all__ = ["Activation", "EncoderAxis", "MemPromptTSSConfig", "PromptTSSConfig", "Sizes"]

EncoderAxis = Literal["time", "batch"]
Activation = Literal["relu", "gelu"]

PATCH = 16
"""Samples of a patch in all released experiments."""

POSITIONS = 5000
"""Rows of the table of positions: the most patches that a window may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes(Settings):
    """What both releases have."""

    channels: int
    classes: int
    width: int = 128  # D
    heads: int = 2
    encoder_layers: int = 3
    decoder_blocks: int = 6
    patch: int = PATCH  # samples
    patch_stride: int = 8  # samples
    activation: Activation = "relu"  # of the encoder; all else is GELU
    encoder_axis: EncoderAxis = "time"  # "batch": as released, attention mixes the windows of a batch (spec 9.1)
    dropout: float = 0.1

    def _check(self) -> None:
        name = type(self).__name__
        for field in ("channels", "classes", "width", "heads", "encoder_layers", "decoder_blocks", "patch", "patch_stride"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{name}: {field} is {getattr(self, field)}; it must be at least 1")
        if self.width % self.heads or self.width % 2:
            raise ConfigError(f"{name}: width {self.width} must be even and a multiple of heads={self.heads}")
        if self.patch_stride > self.patch:
            raise ConfigError(
                f"{name}: patch_stride {self.patch_stride} leaves samples out; it must be at most patch={self.patch}"
            )
        for field, allowed in (("activation", Activation), ("encoder_axis", EncoderAxis)):
            if getattr(self, field) not in get_args(allowed):
                raise ConfigError(f"{name}: {field} is {getattr(self, field)!r}; choose one of {list(get_args(allowed))}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{name}: dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemPromptTSSConfig(Sizes):
    """Everything that fixes the network, and what its training knew of the data. JSON-able by ``to_json``."""

    memory_layers: int = 2
    window: int = 256  # T, samples
    context: int = 256  # samples around a prompt that become part of its memory token
    stride: int = 64  # between windows in training; what an operator takes where it is not told
    channel_names: tuple[str, ...] = ()  # in order; empty: not known
    state_names: tuple[str, ...] = ()  # of the ids 0..K-1; empty: not known
    granularities: tuple[int, ...] = (0,)  # levels that were trained
    mean: tuple[float, ...] = ()  # per channel, of the training data; empty: 0
    std: tuple[float, ...] = ()  # per channel, of the training data; empty: 1
    rate_hz: float | None = None  # of the training data

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        self._check()
        if self.memory_layers < 1 or self.stride < 1:
            raise ConfigError("MemPromptTSSConfig: memory_layers and stride must be at least 1")
        self.patches_of(self.window, "window")
        if self.context < self.patch:
            raise ConfigError(f"MemPromptTSSConfig: context {self.context} is shorter than a patch of {self.patch} samples")
        if self.stride > self.window:
            raise ConfigError(f"MemPromptTSSConfig: stride {self.stride} leaves samples out; at most window={self.window}")
        for name, wanted in (
            ("channel_names", self.channels),
            ("mean", self.channels),
            ("std", self.channels),
            ("state_names", self.classes),
        ):
            given = len(getattr(self, name))
            if given not in (0, wanted):
                raise ConfigError(f"MemPromptTSSConfig: {name} has {given} entries, there are {wanted}; give all or none")
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"MemPromptTSSConfig: std is {self.std}; all must be above 0")

    def patches_of(self, samples: int, what: str) -> int:
        """Return the patches of so many samples. Raise ``ConfigError`` where they do not end with the last sample."""
        count = (samples - self.patch) // self.patch_stride + 1
        if samples < self.patch or (count - 1) * self.patch_stride + self.patch != samples:
            near = max(1, round((samples - self.patch) / self.patch_stride) + 1)
            raise ConfigError(
                f"MemPromptTSSConfig: {what} of {samples} samples does not end with a patch of {self.patch} samples every "
                f"{self.patch_stride}; choose {(near - 1) * self.patch_stride + self.patch}"
            )
        if count > POSITIONS:
            raise ConfigError(f"MemPromptTSSConfig: {what} of {samples} samples has {count} patches; at most {POSITIONS}")
        return count

    @property
    def patches(self) -> int:
        """Patches of a window."""
        return self.patches_of(self.window, "window")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTSSConfig(Sizes):
    """Everything that fixes the predecessor's network."""

    hidden: int = 256  # of the decoder's feed-forward layers
    positions: int = 2048  # rows of the decoder's table of positions: the longest window

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        self._check()
        if self.hidden < 1 or self.positions < 1:
            raise ConfigError("PromptTSSConfig: hidden and positions must be at least 1")
