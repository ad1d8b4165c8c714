"""How video is decoded and in what form its frames go on: options that files and cameras share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from connectors.device_frames import KeptFrames
from connectors.errors import ConfigError
from connectors.options import option

__all__ = ["DecodingOptions", "kept_frames"]

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options of sources of video."""

    decoder: Literal["opencv", "torchcodec"] = option(
        "opencv", "opencv: fastest on a CPU; torchcodec: FFmpeg's own libraries with all their codecs (extra `torchcodec`)."
    )
    device: str | None = option(
        None,
        "With decoder torchcodec: decode on cpu, cuda or cuda:N, and leave the frames there for the one operator that reads "
        "them. Default: decode on the CPU; rows carry the pixels.",
    )
    device_mib: int = option(
        512, "With device: frames that wait for their operator; the source then waits, too.", unit="MiB", ge=1
    )
    encode: Literal["raw", "jpeg"] = option("raw", "raw: pixels (raw_bgr8), no copy; jpeg: for transport between machines.")
    jpeg_quality: int = option(90, "Quality of encode: jpeg; lower is smaller.", ge=1, le=100)

    def __post_init__(self) -> None:
        if self.jpeg_quality != 90 and self.encode != "jpeg":
            raise ConfigError(f"jpeg_quality: {self.jpeg_quality} needs encode: jpeg; it is {self.encode!r}")
        if self.device is None:
            if self.device_mib != 512:
                raise ConfigError(f"device_mib: {self.device_mib} does nothing without device; give both, or remove it")
            return
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"device: {self.device!r} is no device; allowed: cpu, cuda, cuda:N (such as cuda:1)")
        if self.decoder != "torchcodec":
            raise ConfigError(f"device: {self.device!r} needs decoder: torchcodec; it is {self.decoder!r}")
        if self.encode != "raw":
            raise ConfigError(f"device: {self.device!r} leaves frames as they are; remove encode: {self.encode!r}, or device")


def kept_frames(options: DecodingOptions) -> KeptFrames | None:
    """Return where frames are kept that stay on a device, None where rows carry them."""
    return KeptFrames(options.device_mib << 20) if options.device is not None else None
