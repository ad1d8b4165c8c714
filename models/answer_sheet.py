"""Questions about a person's own videos with the right answers and a model's: the picture that a training leaves on the way."""

# F frames, H rows, W columns

from __future__ import annotations

from collections.abc import Sequence

from connectors.charts import Picture, sheet
from models.video_samples import Sample, sample_frames

__all__ = ["SHOWN", "answer_sheet"]

SHOWN = 6
"""Questions in a picture."""
_FRAMES, _MOST_LETTERS = 4, 60


def answer_sheet(samples: Sequence[Sample], said: Sequence[str]) -> Picture:
    """Show each question with its right answer, what the model says, and a few frames of the sample's time."""
    rows = []
    for sample, told in zip(samples, said, strict=True):
        lines = (sample.question, f"right: {sample.answer}", f"says:  {told}")
        frames = [(frame_HW3, "") for frame_HW3 in sample_frames(sample, _FRAMES).numpy()]
        rows.append(("\n".join(line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}..." for line in lines), frames))
    return sheet(rows, height=72, left=440)
