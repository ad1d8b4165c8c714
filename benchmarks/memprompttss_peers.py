"""Measures this operator beside ClaSP, CLaP and ClaSS from their own package: states, boundaries and speed on the same series.

The peers learn nothing and are told nothing; they take one channel (ClaSP and CLaP also several) and give boundaries, CLaP also
states without names, so that accuracy and F1 of states are ours alone. Ours is a trained network that can be told: without
prompts, and with one label prompt for each true state or (TSSB, whose series have no named states) segment. Every figure is a
mean over the series. Times are of the processor, one thread, compilation left out. Beside them stands what ClaSP's authors have
published for the same series of TSSB.

claspy needs an older NumPy than this project, so it gets a folder of its own:

    pip install --target DIR claspy==0.2.8
    python -m benchmarks.memprompttss_peers --claspy DIR [--usc_had network.safetensors] [--found peers.json]

``--usc_had`` is a network of ``streambank train memprompttss --recipe usc_had``; its test files are those of the last subject.
``--found`` keeps what the peers have found, so that a run that was stopped goes on. ``--peers ClaSP ClaSS`` leaves CLaP out,
which takes minutes for a series.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import machine
from connectors import records
from models.memprompttss.header import SMALL_WEIGHTS, network_config
from models.memprompttss.metrics import accuracy, ari, boundaries, boundary_f1, covering_of, macro_f1
from models.memprompttss.two_frequencies import two_frequencies
from operators.base import Context, Output
from operators.memprompttss import MemPromptTSSOperator, MemPromptTSSOptions
from operators.memprompttss.schemas import PROMPT

_PEERS = ("ClaSP", "ClaSS", "CLaP")
_MARGIN = 0.01
_PUBLISHED = {
    "ArrowHead": 0.996,
    "CricketX": 0.986,
    "Crop": 0.986,
    "ECG200": 0.970,
    "EOGVerticalSignal": 0.662,
    "InlineSkate": 0.358,
    "Plane": 0.992,
}
"""Covering of ClaSP, number of segments unknown: github.com/ermshaua/time-series-segmentation-benchmark, notebooks
(segmentation_covering_unknown.csv), of Ermshaus, Schäfer, Leser: ClaSP, Data Mining and Knowledge Discovery 37 (2023)."""
_DATA = Path(os.environ.get("STREAMBANK_DATA") or Path(__file__).resolve().parents[1] / "shared" / "data") / "tss"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Series:
    """One series with what is true of it."""

    group: str
    x_LC: npt.NDArray[np.float32]
    state_L: Ints
    named: bool
    """States have names. Else they alternate, and only their boundaries count."""
    network: str


def main() -> int:
    """Run everything; print a table and write it. Return 2 where claspy is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claspy", type=Path)
    parser.add_argument("--usc_had", type=Path)
    parser.add_argument("--found", type=Path)
    parser.add_argument("--peers", nargs="+", default=list(_PEERS), choices=_PEERS)
    given = parser.parse_args()
    if given.claspy is None:
        print("give --claspy DIR, the folder of `pip install --target DIR claspy==0.2.8`")
        return 2
    torch.set_num_threads(1)
    series = _series(given.usc_had)
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    failed: dict[str, str] = {}
    for name, found in _peers(series, given.claspy, given.found, given.peers).items():
        for method, one in found.items():
            if "error" in one:
                failed[f"{method} on {name}"] = one["error"]
            else:
                scored = _score(series[name], one.get("states"), one["boundaries"], one["seconds"], named=False)
                rows.setdefault(series[name].group, {}).setdefault(method, []).append(scored)
    for one in series.values():
        for method, prompted in (("ours", False), ("ours, told", True)):
            states, found, seconds = _ours(one, prompted)
            scored = _score(one, states, found, seconds, named=one.named)
            rows.setdefault(one.group, {}).setdefault(method, []).append(scored)
    for name in (one for one in series if one in _PUBLISHED):
        rows[series[name].group].setdefault("ClaSP, published", []).append({"covering": _PUBLISHED[name]})
    table = {group: {method: _mean(found) for method, found in methods.items()} for group, methods in rows.items()}
    for group, methods in table.items():
        print(group)
        for method, found in methods.items():
            print(f"  {method:<11} " + "  ".join(f"{name} {value:,.3f}" for name, value in found.items()))
    print(machine.write("memprompttss_peers", {"margin": _MARGIN, "table": table, "failed": failed}))
    return 0


def _series(usc_had: Path | None) -> dict[str, Series]:
    found = {}
    for seed in range(3):
        x_BLC, state_BL = two_frequencies(1, 4000, torch.Generator().manual_seed(1000 + seed))
        found[f"waves{seed}"] = Series("two_frequencies", x_BLC[0].numpy(), state_BL[0].numpy(), True, str(SMALL_WEIGHTS))
    told = _DATA / "tssb" / "desc.txt"
    for line in told.read_text().split() if told.exists() else ():
        name, _, *changes = line.split(",")
        x_L = np.loadtxt(_DATA / "tssb" / f"{name}.txt", dtype=np.float32)
        state_L = np.searchsorted(np.array(changes, np.int64), np.arange(len(x_L)), side="right") % 2
        found[name] = Series("TSSB", x_L[:, None], state_L, False, str(SMALL_WEIGHTS))
    files = sorted((_DATA / "usc_had").glob("*.parquet"))[-2:]
    for file in files if usc_had is not None else ():
        table = pq.read_table(file)
        config = network_config(str(usc_had), {})
        by = round(100 / (config.rate_hz or 100))
        values = np.stack([column.to_numpy() for column in table.columns[:-1]], 1).astype(np.float32)
        length = len(values) // by * by
        x_LC = values[:length].reshape(-1, by, values.shape[1]).mean(1)
        label_L = table.columns[-1].to_numpy()[by // 2 : length : by]
        state_L = np.array([config.state_names.index(str(label)) for label in label_L])
        found[file.stem] = Series("USC-HAD, unseen subject", x_LC, state_L, True, str(usc_had))
    return found


def _peers(series: Mapping[str, Series], folder: Path, found: Path | None, peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    worker = Path(__file__).with_name("memprompttss_claspy.py")
    with tempfile.TemporaryDirectory() as place:
        kept = Path(place) / "found.json" if found is None else found.absolute()
        np.savez(f"{place}/series.npz", **{name: one.x_LC.squeeze() for name, one in series.items()})
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(worker), f"{place}/series.npz", str(kept), *peers]
        subprocess.run(command, env=environment, cwd=place, check=True)
        every = json.loads(kept.read_text(encoding="utf-8"))
        return {name: {peer: every[name][peer] for peer in peers} for name in series}


def _ours(one: Series, prompted: bool) -> tuple[Ints, Ints, float]:
    """Run a stream through the operator; return final states, boundaries of segments, and seconds of the data."""
    length = len(one.x_LC)
    window = network_config(one.network, {}).window
    options = MemPromptTSSOptions(
        checkpoint=one.network, stride=window // 4, history=length + window, provisional=False, max_streams=1
    )
    operator = MemPromptTSSOperator(options, Context(name="states"))
    number = np.arange(length)
    flat = pa.array(one.x_LC.reshape(-1))
    values = pa.ListArray.from_arrays(pa.array(np.arange(length + 1, dtype=np.int32) * one.x_LC.shape[1]), flat)
    columns = [pa.repeat("s", length), pa.array(number), pa.array(number * 10_000).cast(records.TIME_TYPE), values]
    batch = pa.RecordBatch.from_arrays([*columns, pa.nulls(length, pa.string())], schema=records.SAMPLE)
    began = time.process_time()
    out = [each for first in range(0, length, 4096) for each in operator.process(batch.slice(first, 4096))]
    seconds = time.process_time() - began
    if prompted:
        rows = [
            {"stream_id": "s", "sequence": n, "event_time": 0, "kind": "label", "state": int(one.state_L[at])}
            | {"at": int(at) * 10_000, "prompt_id": str(n)}
            for n, at in enumerate(_places(one))
        ]
        said = [pa.array([row.get(field.name) for row in rows], field.type) for field in PROMPT]
        out += operator.control(pa.RecordBatch.from_arrays(said, schema=PROMPT))
    operator.close_stream("s")
    out += operator.flush()
    states_L = np.zeros(length, np.int64)
    segments: dict[int, dict[str, Any]] = {}
    for each in out:
        assert isinstance(each, Output)
        if each.name == "states":
            final = each.batch.filter(each.batch.column("final"))
            states_L[final.column("sequence").to_numpy()] = final.column("state").to_numpy()
        elif each.name == "segments":
            segments |= {row["segment_id"]: row for row in each.batch.to_pylist()}
    starts = sorted(row["sequence"] for row in segments.values() if row["n_samples"])
    return states_L, np.array(starts[1:], np.int64), seconds


def _places(one: Series) -> Ints:
    """Return the middles of the longest segment of each state; without names those of all segments."""
    starts = np.concatenate([[0], boundaries(one.state_L), [len(one.state_L)]])
    middles, lengths = (starts[1:] + starts[:-1]) // 2, np.diff(starts)
    if not one.named:
        return middles
    order = np.argsort(-lengths, kind="stable")
    _, first = np.unique(one.state_L[middles[order]], return_index=True)
    return np.sort(middles[order][first])


def _score(one: Series, states: Any, found: Any, seconds: float, *, named: bool) -> dict[str, float]:
    length, true = len(one.state_L), boundaries(one.state_L)
    scored = {"covering": covering_of(true, found, length), "boundary_f1": boundary_f1(true, found, round(_MARGIN * length))}
    if states is not None and one.named:
        states_L = np.asarray(states, np.int64)
        scored["ari"] = ari(one.state_L, states_L)
        if named:
            scored |= {"acc": accuracy(one.state_L, states_L), "mf1": macro_f1(one.state_L, states_L)}
    return scored | {"samples_per_s": length / seconds}


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found if name in one])) for name in found[0]} | {"series": len(found)}


if __name__ == "__main__":
    sys.exit(main())
