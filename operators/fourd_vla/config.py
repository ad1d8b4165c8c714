"""Options of the operator ``fourd_vla``. Defaults are the paper's; the policy's shapes come with its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from operators.streams import StreamOptions

__all__ = ["Color", "Dinov2", "FeatureKind", "FourDVLAOptions", "Given", "Torchvision"]


@dataclass(frozen=True, kw_only=True)
class Color:
    """A small grid of colors, less its mean: no weights, thousands of frames per second."""

    type: ClassVar[str] = "color"
    columns: int = option(16, "Columns of the grid.", ge=1, le=64)
    rows: int = option(9, "Rows of the grid.", ge=1, le=64)


@dataclass(frozen=True, kw_only=True)
class Given:
    """The column ``feature`` (list of float) of each row; no image is needed then."""

    type: ClassVar[str] = "given"
    size: int = option(REQUIRED, "Numbers of a feature.", ge=1)


@dataclass(frozen=True, kw_only=True)
class Torchvision:
    """What the last layer but one of a torchvision classifier says, from weights in a file."""

    type: ClassVar[str] = "torchvision"
    model: str = option("resnet18", "Name of the model in torchvision.models.")
    checkpoint: str = option(REQUIRED, "Its state dict: .pth or safetensors; no pickle code is executed.", path=True)
    side: int = option(224, "Frames are scaled to squares of this side.", unit="px", ge=32)


@dataclass(frozen=True, kw_only=True)
class Dinov2:
    """The mean over the tokens of a DINOv2 encoder."""

    type: ClassVar[str] = "dinov2"
    checkpoint: str = option(
        REQUIRED, "A file of weights in the release's or transformers' layout, or a folder with model.safetensors.", path=True
    )
    width: int = option(224, "Frames are scaled to this width, a multiple of the patch.", unit="px", ge=14)
    height: int = option(126, "Frames are scaled to this height, a multiple of the patch.", unit="px", ge=14)


FeatureKind = Color | Given | Torchvision | Dinov2


@dataclass(frozen=True, kw_only=True)
class FourDVLAOptions(StreamOptions):
    """What a user can set for ``type: fourd_vla`` (arXiv 2506.22242)."""

    mode: Literal["select", "act"] = option(
        "select", "`select`: which past frames to see now, for any policy. `act`: the action of the 4D-VLA policy, too."
    )
    sampling: Literal["window", "incremental", "uniform", "last_k", "single"] = option(
        "window",
        "`window`: the paper's rule; `incremental`: drops one frame as each comes; `uniform`, `last_k`, `single`: to compare.",
    )
    window: int = option(20, "Frames of history, the current one included; a longer one helps more than a larger keep.", ge=1)
    keep: int = option(5, "Frames kept, the current one included.", unit="frames", ge=1)
    horizon: Literal["window", "unbounded"] = option(
        "window",
        "With sampling: incremental: frames older than the window go, or stay while nothing is like them.",
    )
    features: Color | Given | Torchvision | Dinov2 | None = option(
        None, "What frames are compared by. null: color in the mode select, the policy's own encoder in the mode act."
    )
    checkpoint: str | None = option(
        None,
        "With mode: act: a policy, one file or a folder, or hf://ORG/NAME[@REVISION]; without it the small one that comes with "
        "the package, which knows rendered scenes only.",
        path=True,
    )
    instruction: str | None = option(None, "With mode: act: what to do, for rows without a column `instruction`.")
    nominal_rate: float | None = option(
        None,
        "With mode: act: frames per second in which offsets are counted; null counts frames.",
        unit="1/s",
        gt=0,
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "With mode: act: type of the policy's weights and tokens; null: the checkpoint's. Geometry stays float32."
    )
    depth_max_m: float = option(10.0, "Larger depth is no reading.", unit="m", gt=0)
    on_camera_change: Literal["reset", "keep"] = option(
        "reset", "When size or camera matrix of a stream change: start over, or keep what is remembered."
    )
    max_gap_s: float | None = option(2.0, "Start a stream over after a longer pause between frames.", unit="s", gt=0)
    bank_gib: float = option(4.0, "Upper bound of the bank of one shard; checked before the start.", unit="GiB", gt=0)
    batch_frames: int = option(64, "Most frames, of all streams, that are encoded at once.", unit="frames", ge=1)

    def __post_init__(self) -> None:
        if self.horizon == "unbounded" and self.sampling != "incremental":
            raise ConfigError(f"horizon='unbounded' needs sampling='incremental'; sampling={self.sampling!r} reads the window")
        if self.mode == "select":
            for name in ("checkpoint", "instruction", "nominal_rate", "dtype"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} has no effect with mode='select'; leave it out, or set mode='act'")
        if self.mode == "act" and self.features is not None:
            raise ConfigError("features: the policy compares frames by its own encoder; leave features out with mode='act'")
