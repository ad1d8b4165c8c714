"""Sizes of the three networks of SpecVQGAN and the time base that they share. Defaults: the released VGGSound models.

One latent column stands for 16 mel frames, a mel frame for 256 samples at 22,050 Hz; a column has 5 tokens, from low to high
frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

from connectors.errors import ConfigError
from models.settings import Settings

__all__ = [
    "BANDS",
    "COLUMN_FRAMES",
    "FEATURE_FRAMES",
    "FEATURE_RATE",
    "HOP",
    "RATE",
    "ROWS",
    "WINDOW_COLUMNS",
    "AutoencoderConfig",
    "TransformerConfig",
    "VocoderConfig",
]

RATE = 22050
"""Samples per second of everything that is heard."""
HOP = 256
"""Samples per mel frame."""
BANDS = 80
"""Bands of the mel spectrogram."""
COLUMN_FRAMES = 16
"""Mel frames per latent column."""
ROWS = 5
"""Tokens per column: the bands, 16 at a time."""
WINDOW_COLUMNS = 53
"""Columns that the transformer sees at once: 9.85 s."""
FEATURE_FRAMES = 4
"""Mel frames per visual feature."""
FEATURE_RATE = 21.5
"""Visual features per second of video."""

_GROUPS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes(Settings):
    def _require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(f"{type(self).__name__}: {name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig(_Sizes):
    """Everything that fixes the codebook autoencoder (spec 5)."""

    channels: int = 128  # of the first level
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # of the levels; each but the last halves both axes
    blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more
    attention_levels: tuple[int, ...] = (4,)
    z_channels: int = 256  # between encoder and quantizer
    code_width: int = 256  # D of the codebook
    codes: int = 1024  # K of the codebook: 1024 (VGGSound) or 128 (VAS)

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        self._require_positive("channels", "blocks", "z_channels", "code_width", "codes")
        if self.channels % _GROUPS:
            raise ConfigError(f"AutoencoderConfig: channels is {self.channels}; it must be a multiple of {_GROUPS}")
        if 2 ** (len(self.multipliers) - 1) != COLUMN_FRAMES or min(self.multipliers, default=0) < 1:
            raise ConfigError(f"AutoencoderConfig: multipliers are {self.multipliers}; five whole numbers above 0 are needed")
        if not set(self.attention_levels) <= set(range(len(self.multipliers))):
            raise ConfigError(f"AutoencoderConfig: attention_levels are {self.attention_levels}; levels are 0 to 4")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * factor for factor in self.multipliers)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig(_Sizes):
    """Everything that fixes the transformer (spec 6)."""

    codes: int = 1024  # K of the codebook whose tokens it predicts
    layers: int = 24
    heads: int = 16
    width: int = 1024
    features: int = 5  # F, visual features of a window: 1, 5 or 212 in the released models
    feature_width: int = 2048  # of a visual feature
    columns: int = WINDOW_COLUMNS

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        self._require_positive("codes", "layers", "heads", "width", "features", "feature_width", "columns")
        if self.width % self.heads:
            raise ConfigError(f"TransformerConfig: width {self.width} is not a multiple of heads={self.heads}")

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return ROWS * self.columns

    @property
    def positions(self) -> int:
        """Positions of a window: features, then tokens."""
        return self.features + self.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class VocoderConfig(_Sizes):
    """Everything that fixes the MelGAN generator (spec 9)."""

    channels: int = 32  # of the last stage; each stage before has twice as many
    residual_blocks: int = 3  # per stage, of dilation 1, 3, 9, …

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        self._require_positive("channels", "residual_blocks")
