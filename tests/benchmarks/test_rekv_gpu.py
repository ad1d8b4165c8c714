"""The GPU measurement at a tiny shape on the CPU, and what it says without a GPU."""

import sys

import pytest
import torch

from benchmarks import rekv_gpu

TINY = rekv_gpu.Shape(
    layers=2, heads=4, groups=2, hidden=32, inner=48, tokens=6, vocabulary=61, dtype=torch.float32, window=40, retrieved=4,
    encode_frames=4, frames=18, questions=3, question_tokens=5, answer_tokens=4,
)  # fmt: skip


def test_every_frame_and_question_is_measured() -> None:
    row = rekv_gpu.measure(TINY, torch.device("cpu"))
    assert (row["frames"], row["answer_tokens"]) == (18, 12)
    assert row["host_bytes"] == 18 * 2 * 2 * 2 * 6 * 8 * 4
    assert row["frames_per_s"] > 0
    assert 0 < row["answer_s"] <= row["answer_worst_s"]


def test_bytes_per_hour_are_those_of_the_paper() -> None:
    per_frame = {name: 2 * s.layers * s.tokens * s.groups * (s.hidden // s.heads) * 2 for name, s in rekv_gpu.SHAPES.items()}
    assert per_frame["7b"] == pytest.approx(11.24e6, rel=1e-3)
    assert per_frame["0.5b"] == pytest.approx(2.41e6, rel=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rekv_gpu"])
    assert rekv_gpu.main() == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
