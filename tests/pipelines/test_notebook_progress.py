"""How a run and a training show themselves in a notebook: a line that is rewritten, sent as a kernel sends it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.notebook import in_notebook
from models.training import Progress

# A shell of IPython as a kernel has it, but what it sends to the page is kept and printed at the end.
SHELL = """
import json, sys
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.kernel, shell.display_pub = object(), CapturingDisplayPublisher()
"""
SENT = """
outputs = shell.display_pub.outputs
print(json.dumps([{"update": one["update"], "id": one["transient"]["display_id"], "data": one["data"]} for one in outputs]))
"""
RUN = """
import streambank as sb
result = sb.Pipeline.load("copy.yaml").run()
assert not [name for name in ("ipywidgets", "rich") if name in sys.modules]
assert result.report.status == "finished"
"""
TRAIN = """
import torch
from models.training import Stage, Training

model = torch.nn.Linear(1, 1)
def losses(step):
    yield {"line": model(torch.ones(4, 1)).square().mean()}
for name in ("one", "two"):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stage = {"name": name, "steps": 10, "trained": model, "optimizer": optimizer, "losses": losses}
    Training().run(Stage(**stage, gradient_norm=1.0, report_every=4))
"""


def shown(code: str, folder: Path) -> list[dict[str, object]]:
    pytest.importorskip("IPython")
    command = [sys.executable, "-c", SHELL + code + SENT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    sent: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return sent


def bars(sent: list[dict[str, object]]) -> list[tuple[bool, str, str]]:
    return [(bool(one["update"]), one["data"]["text/plain"], one["data"]["text/html"]) for one in sent]  # type: ignore[index]


@pytest.mark.heavy
def test_a_run_and_each_stage_of_a_training_rewrite_one_line_in_the_output_of_their_cell(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("stream_id,value\n" + "<k0>,1.5\n" * 20)
    (tmp_path / "copy.yaml").write_text(
        "name: copy\nstate: state\nsources:\n"
        "  events: {type: csv, path: events.csv, stream_id: stream_id, event_time_unit: rows}\n"
        "sinks:\n  rows: {type: jsonl, input: events, path: rows}\n"
    )
    all_sent = shown(RUN + TRAIN, tmp_path)
    sent = [one for one in all_sent if one["id"] == all_sent[0]["id"]]
    (first, *_), (*_, last) = bars(sent), bars(sent)
    assert first[:2] == (False, "starting") and "value=" not in first[2]
    assert last[0] and "20 rows" in last[1] and "20 written" in last[1] and 'value="1.0000"' in last[2]

    sent = all_sent[len(sent) :]
    assert len({one["id"] for one in sent}) == 2 and [one["update"] for one in sent] == [False, True, True] * 2
    assert [text.split(" loss")[0] for _, text, _ in bars(sent)] == [f"{s} {n}/10" for s in ("one", "two") for n in (4, 8, 10)]
    assert [page.split('"')[3] for *_, page in bars(sent)] == ["0.4000", "0.8000", "1.0000"] * 2


def test_elsewhere_nothing_is_shown() -> None:
    assert not in_notebook()


def test_a_reading_of_a_training_says_how_long_it_takes_yet() -> None:
    assert str(Progress("heads", 40, 300, 1.23456, eta_s=131.2)) == "heads 40/300 loss 1.235 ETA 2:11"
    assert str(Progress("heads", 300, 300, 0.5, "mAP50 0.9")) == "heads 300/300 loss 0.500 mAP50 0.9"
