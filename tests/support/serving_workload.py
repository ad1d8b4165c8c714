"""A pipeline with films and a sensor that runs for as long as a test looks at it, and a server of it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import uvicorn
from ports import free_ports

from models.films import make_film, write_mp4
from models.memprompttss.two_frequencies import two_frequencies
from pipelines import Pipeline
from pipelines.serving.app import ServeOptions, make_app

FILMS = ("cam1", "cam2")
FILM = make_film(31, length=600, events=5, shortest=8, longest=9)
LASTS_S = 900  # longer than all tests of a module take on a busy machine


def write_pipeline(folder: Path) -> Pipeline:
    """Write films and samples; return a pipeline over them that shows all of it by Flight."""
    (folder / "films").mkdir()
    write_mp4(replace(FILM, length=3 * LASTS_S), folder / "films" / f"{FILMS[0]}.mp4", scale=2)
    for name in FILMS[1:]:
        shutil.copy(folder / "films" / f"{FILMS[0]}.mp4", folder / "films" / f"{name}.mp4")
    x_L = two_frequencies(1, 20 * LASTS_S, torch.Generator().manual_seed(3))[0][0, :, 0]
    (folder / "pump.csv").write_text("pressure\n" + "\n".join(f"{value:.4f}" for value in x_L.tolist()) + "\n")
    asked = {
        "question_id": "string",
        "question": "string",
        "at": "timestamp[us, UTC]",
        "at_offset_s": "double",
        "max_tokens": "int32",
        "standing": "bool",
    }
    said = {"prompt_id": "string", "kind": "string", "at": "timestamp[us, UTC]", "state": "int32", "target": "string"}
    values: dict[str, Any] = {
        "name": "plant",
        "state": "state",
        "epoch_s": 0.5,
        "sources": {
            "films": {"type": "video", "path": "films/*.mp4", "pace": 3},
            "pump": {
                "type": "csv", "path": "pump.csv", "event_time_unit": "rows", "row_rate": 20, "pace": "realtime",
                "channels": ["pressure"],
            },
            "questions": {"type": "requests", "path": "questions", "stay": True, "columns": asked},
            "prompts": {"type": "requests", "path": "prompts", "stay": True, "columns": said},
        },
        "operators": {
            "watch": {
                "type": "rekv", "input": "films", "control": "questions", "sample_fps": 1, "max_streams": 4,
                "device_gib": 0.1, "max_answer_tokens": 8,
            },
            "segment": {"type": "memprompttss", "input": "pump", "control": "prompts", "stride": 16, "max_streams": 2},
        },
        "sinks": {
            "live": {
                "type": "flight", "port": free_ports()[0], "max_subscribers": 64,
                "inputs": ["films", "watch", "pump", "segment.states", "segment.bank"],
            }
        },
    }  # fmt: skip
    return Pipeline.from_dict(values, base=folder)


@contextlib.contextmanager
def running(pipeline: Pipeline) -> Iterator[None]:
    """Run it in a thread until the block ends; it can be asked from the beginning of the block."""
    stop, failed = threading.Event(), []

    def run() -> None:
        try:
            pipeline.run(stop=stop)
        except Exception as error:  # told by the test's own thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        (port,) = (sink.options.port for sink in pipeline.spec.sinks if sink.type == "flight")
        ends_s = time.monotonic() + 240
        while not failed and not _listens(port) and time.monotonic() < ends_s:
            time.sleep(0.05)
        yield
    finally:
        stop.set()
        thread.join(240)
    assert not failed, failed


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    url: str
    app: Any

    @property
    def desk(self) -> Any:
        """What takes questions."""
        return self.app._app.state.desk


@contextlib.contextmanager
def serving(pipeline: Pipeline, **options: Any) -> Iterator[Server]:
    """Serve it until the block ends."""
    app = make_app(pipeline.spec, ServeOptions(**options))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    listening = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    ends_s = time.monotonic() + 240
    while not server.started and time.monotonic() < ends_s:
        time.sleep(0.05)
    try:
        yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join(60)
