"""Claim: a Flight subscriber that reads one batch a second lowers a pipeline's rows/s by less than 5 %.

JSON lines → running mean per key → Parquet and Flight, on ``local``; the subscriber is another process. Runs with and without
it alternate, and the medians are compared.

    python -m benchmarks.flight_subscriber [--events 6000000] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.keyed_stream import write_events
from benchmarks.machine import write

_FLOOR = 0.95
_ROOT = Path(__file__).resolve().parent.parent

_RUN = """
import json, sys
from pipelines import Pipeline
report = Pipeline.from_dict(json.loads(sys.argv[1])).run().report
print(report.seconds)
"""

_SUBSCRIBE = """
import json, sys, time
import pyarrow.flight as fl
while True:
    client = fl.connect(sys.argv[1])
    try:
        batches = rows = dropped = 0
        for chunk in client.do_get(fl.Ticket(b"{}")):
            batches += 1
            rows += chunk.data.num_rows
            dropped = json.loads(chunk.app_metadata.to_pybytes())["dropped"]
            time.sleep(1)
        break
    except fl.FlightUnavailableError:
        if batches:
            break  # the run has ended
        time.sleep(0.02)
print(json.dumps({"batches": batches, "rows": rows, "dropped": dropped}))
"""


def run(lines: Path, folder: Path, *, subscriber: bool) -> tuple[float, dict[str, Any] | None]:
    """Return the seconds of a run, and what the subscriber had."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    columns = {"v": "double"}
    events = {
        "type": "jsonl",
        "path": str(lines),
        "stream_id": "k",
        "event_time": "t",
        "event_time_unit": "s",
        "columns": columns,
    }
    mean = {"type": "pipelines.testing.running_mean:RunningMean", "input": "events", "max_batch": 4096, "max_wait_ms": 0}
    values = {
        "name": "means",
        "state": str(folder / "state"),
        "epoch_s": 1.0,
        "sources": {"events": events},
        "operators": {"mean": mean},
        "sinks": {
            "rows": {"type": "parquet", "input": "mean", "path": str(folder / "rows")},
            "live": {"type": "flight", "input": "mean", "port": port, "queue_mib": 8},
        },
    }
    reader = None
    if subscriber:
        reader = subprocess.Popen(
            [sys.executable, "-c", _SUBSCRIBE, f"grpc://127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True
        )
    command = [sys.executable, "-W", "ignore", "-c", _RUN, json.dumps(values)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    had = None
    if reader is not None:
        try:
            had = json.loads(reader.communicate(timeout=90)[0])
        finally:
            reader.kill()
    return float(done.stdout), had


def main() -> int:
    """Run both sides, print the table, write the JSON; return 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=6_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    readers = []
    with tempfile.TemporaryDirectory() as temporary:
        lines = Path(temporary) / "in.jsonl"
        write_events(lines, options.events)
        for n in range(options.repeat):
            for subscriber in (False, True):
                took, had = run(lines, Path(temporary) / f"{n}-{subscriber}", subscriber=subscriber)
                seconds[subscriber].append(took)
                if had is not None:
                    readers.append(had)
    rates = {name: options.events / statistics.median(seconds[flag]) for name, flag in (("without", False), ("with", True))}
    ratio = rates["with"] / rates["without"]
    held = ratio >= _FLOOR and all(had["batches"] > 0 for had in readers)
    for name, rate in rates.items():
        print(f"{name:8} a subscriber: {rate:12,.0f} rows/s")
    print(f"ratio {ratio:.3f}, floor {_FLOOR}: {'held' if held else 'NOT held'}; subscribers had {readers}")
    write(
        "flight_subscriber", {"events": options.events, "rows_per_s": rates, "ratio": ratio, "readers": readers, "held": held}
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
