"""Claim: on unseen films of ten minutes the small model finds the right event (recall in the retrieved frames ≥ 0.9) and
answers at least 20 points more questions right than from as many frames spread evenly over the film.

600 frames, one per second; five events of five to nine seconds; twenty questions per film: which colour, which shape, when,
how many. Each question is answered four times: from 16 frames that every layer retrieves from all (memory), from 16 evenly
spread frames (uniform), from the 16 newest (recent), from none (blind); "guess" is the commonest answer to each kind of
question. Encoded frames lie in a BlockBank that holds them in host memory and 64 of them on the device. Three sets of films,
none of which the recipe's own figures come from; the claim must hold on each.

    python -m benchmarks.rekv_memory_gain [--films 20] [--weights FILE | --train 0,1,2 [--folder FOLDER]]
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.film_models import choose, parse
from models.films import make_film
from models.rekv.decoder import TextDecoder
from models.rekv.evaluate import MODES, FilmBlocks, film_quality
from models.rekv.header import SMALL_WEIGHTS
from models.rekv.loaders import load_model
from models.rekv.small import load_small
from models.rekv.train import train
from models.weight_files import read_safetensors
from operators.banks.block_bank import BlockBank
from operators.banks.blocks.reader import BlockReader
from operators.banks.blocks.spec import BlockSpec

NEEDED_GAIN, NEEDED_RECALL = 0.20, 0.9
FIRST_FILMS = (1000, 2000, 3000)
FRAMES, DEVICE_FRAMES = 600, 64


class OneFilm:
    """Slot 0 of a bank."""

    def __init__(self, bank: BlockBank, readers: contextlib.ExitStack) -> None:
        self._bank, self._readers = bank, readers

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor) -> None:
        self._bank.append_layer(layer, [0], keys_NGTD[None], values_NGTD[None], representatives_NGD[None])

    def reader(self) -> BlockReader:
        return self._readers.enter_context(self._bank.reader(0))


@contextlib.contextmanager
def bank_blocks(decoder: TextDecoder, tokens: int) -> Iterator[FilmBlocks]:
    """Open a bank for one film; the device has room for few of its blocks."""
    spec = BlockSpec(layers=decoder.layers, groups=decoder.groups, tokens=tokens, dim=decoder.dim)
    means = spec.layers * spec.representative.bytes
    block = spec.layers * 2 * spec.groups * spec.tokens * spec.dim * spec.dtype.itemsize
    bank = BlockBank(spec, slots=1, device_bytes=FRAMES * means + DEVICE_FRAMES * block, host_bytes=FRAMES * block)
    with contextlib.closing(bank), contextlib.ExitStack() as readers:
        bank.open([0], [0])
        yield OneFilm(bank, readers)


def measure(weights: Path, films: int) -> list[dict[str, Any]]:
    """Return the figures of a model on each set of films."""
    rekv, rows = load_small(weights).rekv, []
    model = load_model(weights, rekv)
    for first in FIRST_FILMS:
        quality = film_quality(model, rekv, (make_film(first + n, length=FRAMES) for n in range(films)), blocks=bank_blocks)
        rows.append({"first_film": first, **dataclasses.asdict(quality)})
    return rows


def same_weights(first: Path, second: Path) -> bool:
    """Tell whether two files hold the same tensors, bit for bit."""
    a, b = read_safetensors(first)[0], read_safetensors(second)[0]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def report(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Print the table of one model and return what does not hold."""
    print(f"\n{name:>12} " + " ".join(f"{mode:>8}" for mode in MODES) + "    guess   recall by layer")
    for kind in rows[0]["accuracy_by_kind"]:
        means = [statistics.mean(row["accuracy_by_kind"][kind][mode] for row in rows) for mode in MODES]
        print(f"{kind:>12} " + " ".join(f"{value:8.3f}" for value in means))
    failures = []
    for row in rows:
        accuracy, where = row["accuracy"], f"films {row['first_film']}.."
        layers = ", ".join(f"{value:.3f}" for value in row["recall_by_layer"])
        print(f"{where:>12} " + " ".join(f"{accuracy[mode]:8.3f}" for mode in MODES) + f" {row['guess']:8.3f}   {layers}")
        gain = accuracy["memory"] - accuracy["uniform"]
        if gain < NEEDED_GAIN:
            failures.append(f"{name}, {where}: memory gains {gain:.3f} over uniform, {NEEDED_GAIN} is needed")
        if row["recall"] < NEEDED_RECALL:
            failures.append(f"{name}, {where}: recall is {row['recall']:.3f}, {NEEDED_RECALL} is needed")
    return failures


def main() -> int:
    """Measure, print the tables, write the result; return 1 if the claim does not hold."""
    arguments = parse(__doc__, films=20, weights=SMALL_WEIGHTS)
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, weights, training_s in choose(arguments, train, Path(scratch)):
            began = time.process_time()
            rows = measure(weights, arguments.films)
            seconds = (time.process_time() - began) / (arguments.films * len(rows))
            failures += report(name, rows)
            shipped = same_weights(weights, SMALL_WEIGHTS)
            print(f"{name}: {'the same as' if shipped else 'other than'} the weights in the package")
            models[name] = {
                "training_processor_s": training_s,
                "processor_s_per_film": round(seconds, 2),
                "same_as_package": shipped,
                "sets": rows,
            }
    every = [row for model in models.values() for row in model["sets"]]
    gains = [row["accuracy"]["memory"] - row["accuracy"]["uniform"] for row in every]
    summary = {
        "gain": {"mean": statistics.mean(gains), "least": min(gains)},
        "recall": {"mean": statistics.mean(row["recall"] for row in every), "least": min(row["recall"] for row in every)},
        "accuracy": {mode: statistics.mean(row["accuracy"][mode] for row in every) for mode in MODES},
    }
    print(
        f"\ngain over uniform {summary['gain']['mean']:+.3f}, least of the sets {summary['gain']['least']:+.3f} (needed "
        f"{NEEDED_GAIN:+.2f}); recall {summary['recall']['mean']:.3f}, least {summary['recall']['least']:.3f} (needed "
        f"{NEEDED_RECALL}); {sum(row['questions'] for row in every)} questions"
    )
    for failure in failures:
        print("FAILED:", failure)
    document = {
        "films_per_set": arguments.films,
        "frames_per_film": FRAMES,
        "needed": {"gain": NEEDED_GAIN, "recall": NEEDED_RECALL},
        **summary,
        "models": models,
        "holds": not failures,
    }
    print("written:", machine.write("rekv_memory_gain", document))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
