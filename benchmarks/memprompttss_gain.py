"""Claim: one label prompt brings the states of places that its context never saw from chance to 0.9, and so does one "not k".

``two_frequencies``: which frequency is called 0 is drawn for each sequence, so that nothing but a prompt can tell. Networks of
three seeds are trained by the recipe (a minute or two each) and measured on 128 fresh sequences: prompts stand in the first
quarter, accuracy is that of the last half. ``--shipped`` measures the network of the package alone, in seconds.

    python -m benchmarks.memprompttss_gain [--seeds 0 1 2] [--shipped]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from models.memprompttss.checkpoint import load_network
from models.memprompttss.recipe import measure_frequencies
from models.memprompttss.train import train
from operators.memprompttss.weights import SHIPPED

_COUNTS = (1, 2, 4, 8)


def main() -> int:
    """Train, measure, print and write. Return 1 where the claim does not hold for every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shipped", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {"shipped": measure_frequencies(load_network(SHIPPED), 128)}
    _tell("shipped", found["shipped"])
    for seed in () if given.shipped else given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            result = train(Path(folder) / "out", recipe="two_frequencies", seed=seed)
        found[f"seed {seed}"] = dict(result.metrics)
        _tell(f"seed {seed}", found[f"seed {seed}"])
    print(machine.write("memprompttss_gain", {"remote_accuracy": found}))
    return int(not all(_holds(one) for one in found.values()))


def _tell(name: str, found: dict[str, Any]) -> None:
    for kind, words in (("prompts", '"it is k"'), ("not_prompts", '"it is not k"')):
        told = ", ".join(f"{count}: {found[f'remote_{count}_{kind}']:.3f}" for count in _COUNTS)
        print(f"{name}: without {found['remote_0_prompts']:.3f}; with {words} {told}", flush=True)


def _holds(found: dict[str, float]) -> bool:
    return found["remote_0_prompts"] <= 0.6 and min(found["remote_1_prompts"], found["remote_1_not_prompts"]) >= 0.9


if __name__ == "__main__":
    sys.exit(main())
