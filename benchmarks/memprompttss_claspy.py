"""The peers of ``benchmarks.memprompttss_peers``: ClaSP, CLaP and ClaSS of the package claspy. Imports NumPy and claspy only.

Run as a file of its own with claspy's folder first on the path, since claspy needs an older NumPy than this project:

    PYTHONPATH=DIR python memprompttss_claspy.py series.npz found.json ClaSP ClaSS CLaP

What ``found.json`` has already is not run again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from claspy.segmentation import BinaryClaSPSegmentation
from claspy.state_detection import AgglomerativeCLaPDetection
from claspy.streaming.segmentation import StreamingClaSPSegmentation

_BUFFER = 10_000


def main(series: str, out: str, *methods: str) -> None:
    """Segment every array of ``series``; write boundaries, states and times of these methods, with the package's defaults."""
    data = np.load(series)
    found: dict[str, Any] = json.loads(Path(out).read_text(encoding="utf-8")) if Path(out).exists() else {}
    wanted = [(method, name) for method in methods for name in data.files if method not in found.setdefault(name, {})]
    warm = np.sin(np.arange(1200) ** 1.2 / 9)
    for run in (_clasp, _class) if wanted else ():  # compiled once, out of the times
        run(warm)
    for method, name in wanted:
        run = {"ClaSP": _clasp, "ClaSS": _class, "CLaP": _clap}[method]
        began = time.process_time()
        try:
            found[name][method] = run(data[name].astype(np.float64)) | {"seconds": time.process_time() - began}
        except Exception as error:  # what a peer cannot do is part of the outcome
            found[name][method] = {"error": f"{type(error).__name__}: {error}"}
        print(name, method, {key: value for key, value in found[name][method].items() if key != "states"}, flush=True)
        Path(out).write_text(json.dumps(found), encoding="utf-8")


def _clasp(x: np.ndarray) -> dict[str, Any]:
    return {"boundaries": [int(at) for at in BinaryClaSPSegmentation(n_jobs=1).fit_predict(x)]}


def _clap(x: np.ndarray) -> dict[str, Any]:
    boundaries = BinaryClaSPSegmentation(n_jobs=1).fit_predict(x)
    if not len(boundaries):  # CLaP refuses a series of one segment
        return {"boundaries": [], "states": [0] * len(x)}
    states = AgglomerativeCLaPDetection(n_jobs=1).fit_predict(x, change_points=boundaries)
    return {"boundaries": [int(at) for at in np.flatnonzero(np.diff(states)) + 1], "states": [int(s) for s in states]}


def _class(x: np.ndarray) -> dict[str, Any]:
    if x.ndim > 1 and x.shape[1] > 1:
        raise ValueError("ClaSS takes one channel")
    x = x.ravel()
    warmup = min(_BUFFER, max(200, len(x) // 10))
    stream = StreamingClaSPSegmentation(n_timepoints=min(_BUFFER, len(x)), n_warmup=warmup, log_cps=True)
    for value in x:
        stream.update(value)
    return {"boundaries": sorted({int(at) for at in stream.change_points})}


if __name__ == "__main__":
    main(*sys.argv[1:])
