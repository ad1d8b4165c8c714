"""Measure both versions in turns: keyed running mean, decoding, Kafka. Each run is a process of its own checkout's code.

This file is also what runs there: ``python -P speed.py CASE JSON`` prints seconds. It imports its own package only where it
measures, since the other checkout may be from before it was written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["NAMES", "measure"]

NAMES = ("keyed", "decode", "kafka")

Cases = dict[str, Callable[[str], AbstractContextManager[dict[str, Any]]]]

_SLOWER = 0.05
"""By so much the new version may be slower."""
_EVENTS, _FRAMES = 1_000_000, 600
_CLIPS = {"720p": ((1280, 720), 1), "360p": ((640, 360), 4)}
"""Size, and how many times as many frames, as ``benchmarks.decode_throughput`` has them."""


def measure(old: Path, new: Path, names: list[str], repeat: int, scale: float) -> tuple[list[dict[str, Any]], bool]:
    """Run every case ``repeat`` times on each side in turns; return the figures and whether none is slower than allowed.

    The ratio of a case is the median of its turns.
    """
    found = []
    print(f"{'case':28}{'old s':>10}{'new s':>10}{'new/old speed':>16}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            with _inputs(name, Path(scratch), scale) as cases:
                for case, turn_input in cases.items():
                    seconds: dict[str, list[float]] = {"old": [], "new": []}
                    for turn in range(repeat):
                        # Who is first changes, so that neither always finds the machine as the other left it.
                        for side in ("old", "new") if turn % 2 == 0 else ("new", "old"):
                            run = Path(scratch) / "run"
                            with turn_input(f"{side}{turn}") as given:
                                seconds[side].append(_run(old if side == "old" else new, name, {**given, "run": str(run)}))
                            shutil.rmtree(run, ignore_errors=True)
                    # A machine that others use drifts by more than is asked for here, but hardly from one run to the next.
                    turns = [old / new for old, new in zip(seconds["old"], seconds["new"], strict=True)]
                    ratio = statistics.median(turns)
                    middle = {side: statistics.median(values) for side, values in seconds.items()}
                    found.append({"case": case, "median_s": middle, "speed_ratio": ratio, "turns": turns, "seconds": seconds})
                    slow = "" if ratio >= 1 - _SLOWER else "  SLOWER"
                    print(f"{case:28}{middle['old']:10.3f}{middle['new']:10.3f}{ratio:16.3f}{slow}", flush=True)
    held = all(entry["speed_ratio"] >= 1 - _SLOWER for entry in found)
    print(f"{'held' if held else 'NOT held'}: the new version has at least {1 - _SLOWER:.0%} of the old one's speed")
    return found, held


def _run(checkout: Path, name: str, given: dict[str, Any]) -> float:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", str(Path(__file__)), name, json.dumps(given)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed in {checkout.name}:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def _inputs(name: str, folder: Path, scale: float) -> Iterator[Cases]:
    """Yield the cases of one benchmark: name → context that yields what a run is given, from the name of the run."""
    if name == "keyed":
        from benchmarks.keyed_stream import write_events

        write_events(folder / "events.jsonl", max(1000, round(_EVENTS * scale)))
        yield {"keyed": _always({"lines": str(folder / "events.jsonl")})}
    elif name == "decode":
        from benchmarks.decode_throughput import make_clip

        cases: Cases = {}
        for label, (size, times) in _CLIPS.items():
            paths = [folder / f"{label}_{number}.mp4" for number in range(2)]
            for number, path in enumerate(paths):
                make_clip(path, size, max(30, round(_FRAMES * scale) * times), number)
            cases[f"decode_{label}"] = _always({"paths": [str(path) for path in paths]})
        yield cases
    else:
        with _broker(folder, scale) as cases:
            yield cases


def _always(given: dict[str, Any]) -> Callable[[str], AbstractContextManager[dict[str, Any]]]:
    return lambda _: contextlib.nullcontext(given)


@contextlib.contextmanager
def _broker(folder: Path, scale: float) -> Iterator[Cases]:
    from kafka_broker import Broker, unavailable

    from benchmarks import kafka_throughput as bench  # puts the broker of the tests onto the path

    reason = unavailable()
    if reason is not None:
        print(f"kafka: not measured; {reason}")
        yield {}
        return
    broker = Broker(folder / "broker")
    broker.start()
    try:
        cases: Cases = {}
        for number in range(len(bench.cases())):
            case = _case(number, scale)
            read = broker.create_topic(f"read-{case.name}", bench._PARTITIONS)
            bench.run_sink(case, broker, read, folder / read)
            given = {"address": broker.address, "number": number, "scale": scale}
            cases[f"kafka_source_{case.name}"] = _always({**given, "source": read})
            cases[f"kafka_sink_{case.name}"] = partial(_new_topic, broker, bench._PARTITIONS, given)
        yield cases
    finally:
        broker.stop()


@contextlib.contextmanager
def _new_topic(broker: Any, partitions: int, given: dict[str, Any], run: str) -> Iterator[dict[str, Any]]:
    topic = broker.create_topic(f"write-{given['number']}-{run}", partitions)
    yield {**given, "sink": topic}
    with broker.admin() as admin:
        admin.delete_topics([topic])


# In the process of a checkout


def _keyed(given: dict[str, Any]) -> float:
    run = Path(given["run"])
    columns = {"stream_id": "k", "event_time": "t", "event_time_unit": "s", "columns": {"v": "double"}}
    here = importlib.util.find_spec("pipelines.testing.running_mean") is not None
    operator = f"{'pipelines.testing' if here else 'benchmarks'}.running_mean:RunningMean"  # it has moved
    mean = {"type": operator, "input": "events", "max_batch": 16384, "max_wait_ms": 0}
    sink = {"type": "jsonl", "input": "mean", "path": str(run / "rows"), "columns": {"stream_id": "k", "n": "n", "m": "m"}}
    return _pipeline("means", run, {"events": {"type": "jsonl", "path": given["lines"], **columns}}, {"mean": mean}, sink)


def _decode(given: dict[str, Any]) -> float:
    import cv2  # noqa: F401  # the older version loads it while it starts, the newer one when the first frame is read

    run = Path(given["run"])
    null = {"type": "null", "input": "clips", "max_batch": 64, "max_wait_ms": 0}
    sink = {"type": "parquet", "input": "null", "path": str(run / "rows")}
    return _pipeline("decode", run, {"clips": {"type": "video", "path": given["paths"]}}, {"null": null}, sink)


def _pipeline(name: str, run: Path, sources: dict[str, Any], operators: dict[str, Any], sink: dict[str, Any]) -> float:
    """Return the seconds from the first row to the last commit, an epoch each second."""
    from pipelines import Pipeline

    document = {"name": name, "state": str(run / "state"), "runner": "local", "epoch_s": 1.0}
    result = Pipeline.from_dict({**document, "sources": sources, "operators": operators, "sinks": {"rows": sink}}).run()
    return float(result.report.seconds)


def _kafka(given: dict[str, Any]) -> float:
    from benchmarks import kafka_throughput as bench

    case, broker = _case(given["number"], given["scale"]), SimpleNamespace(address=given["address"])
    if "source" in given:
        return float(bench.run_source(case, broker, given["source"]))
    return float(bench.run_sink(case, broker, given["sink"], Path(given["run"])))


def _case(number: int, scale: float) -> Any:
    """Return a payload of the benchmark, or a part of it."""
    from benchmarks import kafka_throughput as bench

    case = bench.cases()[number]
    return dataclasses.replace(case, batches=case.batches[: max(1, round(len(case.batches) * scale))])


if __name__ == "__main__":
    print({"keyed": _keyed, "decode": _decode, "kafka": _kafka}[sys.argv[1]](json.loads(sys.argv[2])))
