"""What ``memprompttss`` knows of a stream besides its memories. All fields are plain, so that they are part of snapshots."""

from __future__ import annotations

from dataclasses import dataclass

from operators.sampling_rate import SampledStream

__all__ = ["SensorStream"]


@dataclass(slots=True)
class SensorStream(SampledStream):
    """One stream. Samples are counted from ``origin``, where it began or went on after a gap."""

    origin: int = 0
    """Samples before it, since the stream's first one."""
    received: int = 0
    """Samples since."""
    windows: int = 0
    """Windows that were run since; the next one ends ``stride`` samples after the last."""
    prompts: int = 0
    """Control rows so far."""
    seen: int = 0
    """Samples that had come at the last ``flush``."""
    opened_us: int = 0
    """When a prompt opened the stream, of which nothing has come yet; 0: one did not."""
