"""The ready pipelines as they are: recorded sensors and this machine, prompts from a folder, and a picture of it all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from connectors.sinks.read import read_committed
from connectors.sources.host import HostReader, HostSource
from models.memprompttss.two_frequencies import two_frequencies
from pipelines import Pipeline
from pipelines.registry import ready_pipelines
from pipelines.viewing.view import view


def places(out: Path, *sinks: str) -> list[str]:
    """Return the settings that let a ready pipeline write below ``out``."""
    return [f"state={out}/state", f"prompts.path={out}/prompts", *(f"{name}.path={out}/{name}" for name in sinks)]


SINKS = ("states", "segments", "prompts_done", "signals", "said")


@pytest.mark.heavy
def test_the_ready_pipeline_follows_a_prompt_and_draws_signals_with_states_before_and_after_it(
    tmp_path: Path,
) -> None:
    x_BLC, state_BL = two_frequencies(1, 1500, torch.Generator().manual_seed(3))
    (tmp_path / "pump_3.csv").write_text("pressure\n" + "\n".join(f"{value:.4f}" for value in x_BLC[0, :, 0].tolist()) + "\n")
    (tmp_path / "prompts").mkdir()
    at = 700
    said = {"stream_id": "pump_3", "prompt_id": "mine", "kind": "label", "at_offset_s": at / 100, "state": int(state_BL[0, at])}
    (tmp_path / "prompts" / "one.jsonl").write_text(json.dumps(said) + "\n")
    more = [f"sensors.path={tmp_path}/*.csv", "prompts.stay=false", "segment.device=cpu"]
    sets = [*places(tmp_path, *SINKS), *more]
    assert Pipeline.load(ready_pipelines()["memprompttss_replay"], sets=sets).run().report.all_ok
    last = {row["sequence"]: row for row in read_committed(tmp_path / "states").to_pylist() if row["final"]}
    right = [last[n]["state"] == int(state_BL[0, n]) for n in range(1500)]
    assert sum(right) / 1500 > 0.9
    assert any(row["caused_by"] == ["mine"] for row in last.values())
    written = [path.relative_to(tmp_path).as_posix() for path in view(tmp_path)]
    assert {"_states.html", "_states/pump_3.png"} <= set(written)
    page = (tmp_path / "_states.html").read_text()
    assert all(word in page for word in ("pressure", "before", "after", f"{said['state']}, 1970-01-01 00:00:07"))


@pytest.mark.heavy
def test_the_live_pipeline_tells_states_of_this_machine_and_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    # A row at every second look, however busy the machine is: by the wall clock too few came for a window now and then.
    monkeypatch.setattr(
        HostSource, "open", lambda self, split, at: HostReader(split, self.options, at, lambda: next(looks) * 0.026)
    )
    sets = [*places(tmp_path, *SINKS), "here.interval_s=0.05", "here.duration_s=4.5"]
    assert Pipeline.load(ready_pipelines()["memprompttss_live"], sets=sets).run().report.all_ok
    states = read_committed(tmp_path / "states").to_pylist()
    assert {row["stream_id"] for row in states} == {"here"} and {row["status"] for row in states} <= {"ok", "held"}
    assert sum(row["final"] for row in states) == read_committed(tmp_path / "signals").num_rows
    assert (tmp_path / "_states.html") in view(tmp_path)
    assert "cpu" in (tmp_path / "_states.html").read_text()
