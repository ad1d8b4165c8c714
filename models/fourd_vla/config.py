"""Shapes and settings of the 4D-VLA policy. Defaults: InternVL2-4B (InternViT-300M and Phi-3-mini) and the paper's settings.

What the paper leaves open is our reading and a field here. What depends on a stream (window, frames kept, mode) belongs
to the operator's options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from connectors.errors import ConfigError, nearest

__all__ = ["ActionScale", "CoordPool", "DecoderConfig", "FourDVLAConfig", "ResizePolicy", "VisionConfig"]

AddAt = Literal["patch", "pixel_shuffled"]
CoordPool = Literal["mean", "center", "median_depth"]
ResizePolicy = Literal["crop", "stretch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """The frame encoder: a ViT with layer scale, fused q/k/v, a class token and a learned table of positions."""

    width: int = 448  # px of the frames that it is given, from the paper
    height: int = 252
    patch: int = 14  # px
    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    grid: int = 32  # side of the square table of positions; read bicubically at other sizes
    norm_eps: float = 1e-6
    final_norm: bool = False  # DINOv2 has one, InternViT has not
    mean_rgb: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std_rgb: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def rows(self) -> int:
        """Rows of patches of a frame."""
        return self.height // self.patch

    @property
    def columns(self) -> int:
        """Columns of patches of a frame."""
        return self.width // self.patch


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """The language decoder: RMS norms, rotary positions, gated MLP; Phi-3's layout, or Qwen2.5's with ``qkv_bias``."""

    vocabulary: int = 32020
    hidden: int = 3072
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp: int = 8192
    rope_theta: float = 1e4
    norm_eps: float = 1e-5
    qkv_bias: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionScale:
    """What an action of 1 means: targets are divided by it before training, outputs multiplied by it."""

    translation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def is_isotropic(self) -> bool:
        """True where directions do not change by the scale."""
        return len(set(self.translation)) == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FourDVLAConfig:
    """Everything that fixes the policy's shapes and how frames become tokens. JSON-able by ``to_json``."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    offsets: int = 20  # rows of the table of time tokens: the history window n
    coordinates: bool = True  # False: no 3D coordinates, for comparison
    octaves: int = 10  # of the sines and cosines of a coordinate
    center_m: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the workspace
    scale_m: float = 1.0  # of the workspace
    add_at: AddAt = "patch"  # where coordinates are added: at the ViT's output, or after the pixel shuffle
    coord_pool: CoordPool = "mean"
    min_valid: float = 0.05  # a token with a smaller share of valid pixels has no coordinate
    depth_max_m: float = 10.0
    resize: ResizePolicy = "crop"
    action_hidden: int = 1024
    state_dim: int = 0  # numbers of the robot's state that become a token; 0: none
    direction_weight: float = 1.0  # lambda_d of the loss; the paper's value is not known
    action_scale: ActionScale = field(default_factory=ActionScale)

    def __post_init__(self) -> None:
        """Check what the network is built from. Raises ``ConfigError``."""
        vision, decoder = self.vision, self.decoder
        if vision.height % (2 * vision.patch) or vision.width % (2 * vision.patch):
            raise ConfigError(
                f"fourd_vla: frames of {vision.width}x{vision.height} px are no whole number of blocks of two patches of "
                f"{vision.patch} px; use multiples of {2 * vision.patch}"
            )
        for name, heads, width in (
            ("vision.heads", vision.heads, vision.hidden),
            ("decoder.heads", decoder.heads, decoder.hidden),
            ("decoder.kv_heads", decoder.kv_heads, decoder.heads),
        ):
            if heads < 1 or width % heads:
                raise ConfigError(f"fourd_vla: {name}={heads} must divide {width}; choose a divisor")
        for name, allowed in (("add_at", AddAt), ("coord_pool", CoordPool), ("resize", ResizePolicy)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"fourd_vla: {name} is {getattr(self, name)!r}; choose one of {list(get_args(allowed))}")
        if self.offsets < 1 or self.scale_m <= 0 or self.depth_max_m <= 0 or self.octaves < 0 or self.state_dim < 0:
            raise ConfigError("fourd_vla: offsets, scale_m and depth_max_m must be above 0, octaves and state_dim at least 0")

    @property
    def tokens(self) -> int:
        """Spatial tokens of a frame."""
        return self.vision.rows * self.vision.columns // 4

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> FourDVLAConfig:
        """Build a config from JSON values (lists become tuples). Unknown names raise ``ConfigError``."""
        made: FourDVLAConfig = _from_json(FourDVLAConfig, values, "")
        return made


_PARTS: dict[str, type[Any]] = {"vision": VisionConfig, "decoder": DecoderConfig, "action_scale": ActionScale}


def _from_json(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"fourd_vla: {where.rstrip('.') or 'the config'} must be a mapping of settings, got {values!r}")
    known = {each.name for each in dataclasses.fields(kind)}
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"fourd_vla: no setting {where + name!r}{nearest(name, known)}; there are {sorted(known)}")
        if name in _PARTS:
            plain[name] = _from_json(_PARTS[name], value, f"{name}.")
        else:
            plain[name] = tuple(value) if isinstance(value, list) else value
    return kind(**plain)
