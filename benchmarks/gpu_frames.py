"""From a film to frames on the device: carried in rows and uploaded, or decoded there and kept (``device`` of a source)."""

# F frames, H height, W width

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rekv_gpu import timed
from connectors.device_frames import find, release
from connectors.extras import MissingExtra, missing, need
from connectors.sources.video import VideoOptions, VideoSource
from models.uploads import upload
from operators.frames import decode_row, stack_frames

__all__ = ["film_frames", "why_none"]

_BATCH = 32


def why_none() -> str | None:
    """Say what frames cannot be decoded for here, None where they can."""
    absent = missing(["cv2", "av", "torchcodec"])
    if absent is None:
        try:
            need("torchcodec.decoders", "decoding")
        except MissingExtra as error:
            return str(error).partition("\n")[0]
    return absent


def film_frames(height: int, width: int, frames: int, device: torch.device) -> list[dict[str, Any]]:
    """Return frames per second of both ways, and how far pixels differ from those that were carried (0..255, on average)."""
    with tempfile.TemporaryDirectory() as folder:
        path = _film(Path(folder) / "film.mp4", height, width, frames)
        rows: list[dict[str, Any]] = []
        first_FHW3: Tensor | None = None
        for way, where in (("carried", None), ("kept", str(device))):
            options = VideoOptions(path=str(path), decoder="torchcodec", device=where)
            _read(options, device, 1)  # libraries and decoders are ready then
            seconds, seen_FHW3 = timed(device, lambda options=options: _read(options, device, frames))
            first_FHW3 = seen_FHW3 if first_FHW3 is None else first_FHW3
            difference = (seen_FHW3.float() - first_FHW3.float()).abs().mean().item()
            row = {"frames": way, "height": height, "width": width, "frames_per_s": frames / seconds, "difference": difference}
            rows.append(row)
    return rows


def _read(options: VideoOptions, device: torch.device, frames: int) -> Tensor:
    """Take frames as an operator does, batch by batch; return the first frame on the device, [1, H, W, 3]."""
    source = VideoSource(options)
    reader = source.open(source.splits()[0], None)
    first_FHW3: Tensor | None = None
    seen = 0
    while seen < frames:
        batch = reader.read(min(_BATCH, frames - seen), 64 << 20)
        if batch is None:
            raise RuntimeError(f"the film ended after {seen} of {frames} frames")
        handles = batch.column("image").to_pylist() if options.device is not None else []
        images = [find(handle) for handle in handles] or [decode_row(batch, row)[0] for row in range(batch.num_rows)]
        batch_FHW3 = upload(stack_frames([image for image in images if image is not None]), device)
        release(batch)
        first_FHW3 = batch_FHW3[:1] if first_FHW3 is None else first_FHW3  # batches differ in length
        seen += batch.num_rows
    reader.close()
    assert first_FHW3 is not None
    return first_FHW3


def _film(path: Path, height: int, width: int, frames: int) -> Path:
    import av

    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + frames, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):  # blocks that move to the left
            blocks = np.repeat(np.repeat(noise[:, number : number + width // 8 + 1], 8, axis=0), 8, axis=1)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(blocks[:height, :width]), format="rgb24")
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path
