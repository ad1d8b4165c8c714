"""Evaluation logic without weights, as the published scripts compute it: letters, retrieval scores, frame sampling, slices.

Numbers of the paper's tables depend on these rules, odd ones included; the operator itself works with timestamps.
"""

# N cells of one second, W windows

from __future__ import annotations

from collections.abc import Sequence

from connectors.errors import ConfigError

__all__ = ["answer_letter", "encode_slices", "frame_step", "retrieval_quality", "sampled_frames", "split_sizes"]


def answer_letter(text: str) -> str:
    """Return the chosen letter of a multiple-choice answer: the character before the first ``)``, else the first one.

    White space around the text is ignored; an empty text gives an empty string. The case is kept.
    """
    text = text.strip()
    before = text.find(")") - 1
    return text[before] if before >= 0 else text[:1]


def retrieval_quality(windows: Sequence[tuple[float, float]], chosen: Sequence[int | bool]) -> tuple[float, float, float]:
    """Return recall, precision and F1 of chosen one-second cells against evidence windows (start, stop) in seconds.

    Overlaps of every window with every chosen cell are summed; recall divides by the windows' length, precision by the
    number of chosen cells. Where a denominator is zero the value is zero.
    """
    cells = [second for second, taken in enumerate(chosen) if taken]
    overlap = sum(max(0.0, min(stop, cell + 1) - max(start, cell)) for start, stop in windows for cell in cells)
    length = sum(stop - start for start, stop in windows)
    recall = overlap / length if length > 0 else 0.0
    precision = overlap / len(cells) if cells else 0.0
    return recall, precision, 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def frame_step(average_fps: float, sample_fps: float) -> int:
    """Return every how manieth frame is taken: round(average) / sample, truncated, at least 1. Raises ``ConfigError``."""
    if not average_fps > 0 or not sample_fps > 0:
        raise ConfigError(f"rekv: frame rates must be above 0, got average {average_fps} and sample {sample_fps}")
    return max(int(round(average_fps) / sample_fps), 1)


def sampled_frames(frames: int, average_fps: float, sample_fps: float) -> range:
    """Return the indices of the frames of a video that are encoded."""
    return range(0, frames, frame_step(average_fps, sample_fps))


def encode_slices(end_times_s: Sequence[float], sample_fps: float) -> list[tuple[int, int] | None]:
    """Return which sampled frames [start, stop) are encoded before each question, None where nothing new is due.

    A question at the end of its time window sees the frames up to time x rate, truncated, exclusive.
    """
    slices: list[tuple[int, int] | None] = []
    done_s = done = 0.0
    for end_s in end_times_s:
        if end_s > done_s:
            slices.append((int(done), int(end_s * sample_fps)))
            done_s, done = end_s, end_s * sample_fps
        else:
            slices.append(None)
    return slices


def split_sizes(items: int, workers: int) -> list[int]:
    """Return how many annotations each worker gets: equal runs of ceil(items / workers); workers without any are left out."""
    if workers < 1:
        raise ConfigError(f"rekv: annotations are split over {workers} workers; at least 1 is needed")
    size = max(-(-items // workers), 1)
    return [min(size, items - start) for start in range(0, items, size)]
