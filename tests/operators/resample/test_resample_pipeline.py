"""In a pipeline: a network that was trained at one rate takes files of another one, and its prompts stay about event time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from connectors.sinks.read import read_committed
from models.memprompttss.two_frequencies import two_frequencies
from pipelines import Pipeline

FILE = """
name: resampled
state: state
runner: local
sources:
  waves: {type: csv, path: "*.csv", event_time_unit: rows, row_rate: 400, channels: all}
  prompts:
    type: jsonl
    path: prompts.jsonl
    columns: {prompt_id: string, kind: string, at: "timestamp[us, UTC]", state: int32}
operators:
  even: {type: resample, input: waves, rate_hz: 100, channels: 1, align_s: 1}
  segment: {type: memprompttss, input: even.samples, control: prompts, rate_hz: 100, align_s: 1, device: cpu}
sinks:
  states: {type: parquet, input: segment.states, path: states}
"""


@pytest.mark.heavy
def test_a_network_of_one_rate_segments_files_of_four_times_that_rate(tmp_path: Path) -> None:
    x_BLC, state_BL = two_frequencies(1, 1200, torch.Generator().manual_seed(3))
    four = x_BLC[0].repeat_interleave(4, 0) + 0.2 * torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(1200)[:, None]
    (tmp_path / "wave.csv").write_text("x\n" + "\n".join(f"{value:.5f}" for value in four[:, 0].tolist()) + "\n")
    said = {"stream_id": "wave", "sequence": 0, "event_time": "1970-01-01T00:00:09Z", "prompt_id": "mine", "kind": "label"}
    said |= {"at": "1970-01-01T00:00:07Z", "state": int(state_BL[0, 700])}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(said) + "\n")
    (tmp_path / "pipeline.yaml").write_text(FILE)
    assert Pipeline.load(tmp_path / "pipeline.yaml").run().report.all_ok
    last = {row["sequence"]: row for row in read_committed(tmp_path / "states").to_pylist() if row["final"]}
    assert sorted(last) == list(range(1199))  # whether the last interval is whole, nobody knows
    assert sum(last[n]["state"] == int(state_BL[0, n]) for n in range(1199)) / 1199 > 0.9
