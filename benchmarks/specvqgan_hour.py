"""Claim: an hour of film gets its sound at four times its own pace or faster, in memory that does not grow, and where pieces of
sound meet there is no jump that the vocoder does not make everywhere.

One stream of a bouncing ball at 25 frames per second, the small networks of the package, one thread. Seconds are those of the
processor within the operator; rendering the film is left out. Jumps are second differences of samples at the borders of mel
frames: those between two rows against all others. Of the others 1 % is above their 99th percentile; of the borders at most 2 %
may be.

    python -m benchmarks.specvqgan_hour [--minutes 60]
"""

# N samples

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from benchmarks import machine
from connectors.records import FRAME, TIME_TYPE
from models.specvqgan.bounces import Clip, make_clip
from models.specvqgan.config import HOP, RATE
from operators.base import Context
from operators.specvqgan import SpecVQGANOperator, SpecVQGANOptions

NEEDED = {"pace": 4.0, "grown_bytes": 16 << 20, "share_of_jumps": 0.02}

OPTIONS: dict[str, Any] = {"precision": "float32", "emit_cols": 4}
"""Half a window of sound at a time; by default a quarter, and small networks compute in float64."""

_FPS, _CLIP = 25, 1 << 45
_SAMPLES = 12
"""Readings of memory; the first one is after a twelfth, when everything has been allocated."""


def second(clip: Clip, number: int) -> pa.RecordBatch:
    """Return the frames of one second of a film of clips of a minute, of which ``clip`` is shown."""
    at = range(number * _FPS, (number + 1) * _FPS)
    pixels = [clip.frame(n / _FPS % 60) for n in at]
    columns = {
        "stream_id": pa.array(["film"] * _FPS),
        "sequence": pa.array(at, pa.int64()),
        "event_time": pa.array(np.array(at) * (1_000_000 // _FPS)).cast(TIME_TYPE),
        "image": pa.array([one.tobytes() for one in pixels], pa.binary()),
        "encoding": pa.array(["raw_rgb8"] * _FPS),
        "height": pa.array([pixels[0].shape[0]] * _FPS, pa.int32()),
        "width": pa.array([pixels[0].shape[1]] * _FPS, pa.int32()),
        "error": pa.nulls(_FPS, pa.string()),
    }
    return pa.RecordBatch.from_arrays([columns[one.name] for one in FRAME], schema=FRAME)


def measure(seconds: int) -> dict[str, Any]:
    """Make the sound of a film; return what it took."""
    operator = SpecVQGANOperator(SpecVQGANOptions(max_streams=1, **OPTIONS), Context(name="sound"))
    process, spent_s, memory = psutil.Process(), 0.0, list[int]()
    sound = Sound.of(seconds)
    for number in range(seconds):
        if number % 60 == 0:
            clip = make_clip(_CLIP + number // 60, 60.0)
        batch = second(clip, number)
        began = time.process_time()
        out = operator.process(batch)
        spent_s += time.process_time() - began
        sound.keep(out)
        if (number + 1) % max(1, seconds // _SAMPLES) == 0:
            memory.append(process.memory_info().rss)
            print(f"{number + 1:5d} s of film: {spent_s:7.1f} s, {memory[-1] / 2**20:.0f} MiB", flush=True)
    began = time.process_time()
    operator.close_stream("film")
    out = operator.flush()
    spent_s += time.process_time() - began
    sound.keep(out)
    operator.close()
    return {
        "seconds": seconds,
        "options": OPTIONS,
        "processor_s": spent_s,
        "pace": seconds / spent_s,
        "memory_bytes": memory,
        "grown_bytes": memory[-1] - memory[0],
        "statuses": sorted(sound.statuses),
        "sound_s": sound.count / RATE,
        **jumps(sound.samples_N[: sound.count].astype(np.float64), np.array(sound.borders[:-1])),
    }


@dataclass(slots=True)
class Sound:
    """What an operator has made so far, in memory that is there from the beginning."""

    samples_N: np.ndarray
    count: int = 0
    borders: list[int] = field(default_factory=list)
    """Ends of rows."""
    statuses: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, seconds: int) -> Sound:
        """Make room for so many seconds."""
        return cls(np.full((seconds + 1) * RATE, 1, np.int16))  # not zeros, whose memory comes with the first use

    def keep(self, out: list[Any]) -> None:
        """Take the sound out of what an operator gave."""
        for one in out:
            if one.name != "sound":
                continue
            self.statuses |= set(one.batch.column("status").to_pylist())
            for number in range(one.batch.num_rows):
                samples = one.batch.column("samples")[number].values
                if samples is not None and len(samples):
                    self.samples_N[self.count : self.count + len(samples)] = samples.to_numpy()
                    self.count += len(samples)
                    self.borders.append(self.count)


def jumps(sound_N: np.ndarray, borders: np.ndarray) -> dict[str, float]:
    """Return the share of borders between rows with a second difference above the 99th percentile of other frame borders."""
    bent_N = np.abs(np.diff(sound_N, 2))
    frames = np.arange(HOP, len(sound_N) - HOP, HOP)
    others = np.setdiff1d(frames, borders)
    # The two second differences that reach over a border.
    at_borders, at_others = (np.maximum(bent_N[at - 2], bent_N[at - 1]) for at in (borders, others))
    above = np.percentile(at_others, 99)
    return {"borders": len(borders), "share_of_jumps": float((at_borders > above).mean()), "percentile_99": float(above)}


def main() -> int:
    """Measure, print, write the result; return 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    torch.set_num_threads(1)
    found = measure(60 * parser.parse_args().minutes)
    failures = []
    if found["pace"] < NEEDED["pace"]:
        failures.append(f"the pace is {found['pace']:.1f}, {NEEDED['pace']:g} is needed")
    for name in ("grown_bytes", "share_of_jumps"):
        if found[name] > NEEDED[name]:
            failures.append(f"{name} is {found[name]:.4g}, at most {NEEDED[name]:.4g} is allowed")
    if found["statuses"] != ["ok"] or abs(found["sound_s"] - found["seconds"]) > 0.1:
        failures.append(f"{found['sound_s']:.2f} s of sound for {found['seconds']} s of film, statuses {found['statuses']}")
    grown, jumping = found["grown_bytes"] / 2**20, found["share_of_jumps"]
    print(f"{found['pace']:.1f} times its own pace; {grown:+.1f} MiB; {jumping:.2%} of the borders jump")
    for failure in failures:
        print("FAILED:", failure)
    print("written:", machine.write("specvqgan_hour", {**found, "needed": NEEDED, "holds": not failures}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
