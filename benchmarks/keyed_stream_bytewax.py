"""The other side of ``benchmarks.keyed_stream``: the same running means as a bytewax dataflow. Needs bytewax only.

python -m bytewax.run "keyed_stream_bytewax:flow('in.jsonl', 'out.jsonl', 'times.json')" -r RECOVERY -s 1 -b 0
"""

from __future__ import annotations

import atexit
import json
import time
from pathlib import Path

import bytewax.operators as op
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow

_BATCH = 1000


def flow(lines: str, out: str, times: str) -> Dataflow:
    """Build the dataflow; note when the first line was seen and when the process ended."""
    first: list[float] = []

    def parse(line: str) -> tuple[str, float]:
        if not first:
            first.append(time.time())
        record = json.loads(line)
        return record["k"], record["v"]

    def mean(state: tuple[int, float] | None, value: float) -> tuple[tuple[int, float], tuple[int, float]]:
        n, total = state or (0, 0.0)
        state = (n + 1, total + value)
        return state, (state[0], state[1] / state[0])

    def text(keyed: tuple[str, tuple[int, float]]) -> tuple[str, str]:
        key, (n, m) = keyed
        return key, json.dumps({"k": key, "n": n, "m": m})

    atexit.register(lambda: Path(times).write_text(json.dumps({"first": first[0], "end": time.time()})))
    graph = Dataflow("means")
    lines_read = op.input("read", graph, FileSource(lines, batch_size=_BATCH))
    keyed = op.map("parse", lines_read, parse)
    means = op.stateful_map("mean", keyed, mean)
    op.output("write", op.map("text", means, text), FileSink(Path(out)))
    return graph
