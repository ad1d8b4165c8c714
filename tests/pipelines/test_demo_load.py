"""``python -m pipelines.demos.load``: waves of load, and a picture of the states that a network tells in them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from connectors.sinks.read import read_committed
from pipelines.demos.load import main, make_waves, watch


def test_waves_of_traffic_stay_on_this_machine_and_are_counted_there() -> None:
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    make_waves("net_send", [((0.05, 0.01), 0.1)])
    assert psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before >= 8 * 50_000


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    assert main([str(tmp_path), "net_send"]) == 2
    assert "holds other things than a demo" in capsys.readouterr().err
    assert main(["a", "b"]) == 2
    assert (tmp_path / "letters.txt").read_text() == "dear"


@pytest.mark.slow
def test_what_is_said_about_fast_waves_renames_slow_ones_too(tmp_path: Path) -> None:
    watch(tmp_path / "demo", "net_send", phase_s=16.0)
    states = [row for row in read_committed(tmp_path / "demo" / "states").to_pylist() if row["final"]]
    assert any(row["caused_by"] for row in states)
    assert read_committed(tmp_path / "demo" / "prompts_done").to_pylist()[0]["op"] == "write"
    assert (tmp_path / "demo" / "_states" / "here.png").stat().st_size > 1000
