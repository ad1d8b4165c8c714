"""Claim: Kafka → MAMBA → Kafka and Parquet, whatever is killed: the committed rows are those of an undisturbed run.

A real broker, 4 partitions, 8 streams of JPEG frames that keep coming while ``kill -9`` hits, at random moments, the driver of
the local runner; the source, operator and sink actors of Ray and the driver there, in which the coordinator lives; and the
broker in both. Kills overlap: many fall while the run still recovers from the one before. Rows are read back by a plain
kafka-python consumer of committed messages and by plain pyarrow.

    python -m benchmarks.kafka_soak [--kills 20] [--seed 0] [--minutes 10] [--runners local,ray]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from kafka_broker import MORTAL, Broker, unavailable

from benchmarks.kafka_soak_rows import Cameras, compare, kafka_rows, parquet_rows
from benchmarks.kafka_soak_run import PipelineRun
from benchmarks.machine import write

PARTITIONS = 4
KINDS = {"local": ("driver",), "ray": ("source", "operator", "sink", "coordinator")}
_WINDOW_S = {"local": 2.0, "ray": 4.0}
"""The kills of a round fall within this time after its first commit: long enough for some to meet the recovery of others."""

_ROUND_S = 240.0
"""How long a run may go without a commit; and an undisturbed run in all:"""

_FINISH_S = 300.0
_FOR_THE_END = 0.25
"""Share of the minutes that is kept for catching up and for the undisturbed runs."""


class Grim:
    """Kills the broker and has it back at once, beside the thread that kills the rest."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def away(self) -> bool:
        """Whether the broker has not come back yet."""
        return self._thread is not None and self._thread.is_alive()

    def kill(self) -> None:
        """Kill the broker; it starts again on its data and ports."""
        self.wait()
        self._broker.kill()
        self._thread = threading.Thread(target=self._start)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the broker is back."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        try:
            self._broker.start()
        except RuntimeError as error:
            self._error = error


def soak(
    broker: Broker,
    folder: Path,
    runner: str,
    *,
    rounds: int,
    broker_kills: int,
    draw: random.Random,
    until: float,
    hz: float = 1.5,
) -> dict[str, Any]:
    """Kill each kind once a round, and the broker in ``broker_kills`` rounds, then compare with an undisturbed run.

    ``until`` is the time (``time.monotonic``) after which no round starts. Raise ``RuntimeError`` where the run ends.
    """
    began = time.monotonic()
    topics = {name: broker.create_topic(f"{runner}-{name}", PARTITIONS) for name in ("frames", "rows", "undisturbed")}
    with_broker = set(draw.sample(range(rounds), min(broker_kills, rounds)))
    kinds = KINDS[runner]
    made = dict.fromkeys((*kinds, "broker"), 0)
    recovering = dict.fromkeys(made, 0)
    grim = Grim(broker)
    run = PipelineRun(broker.address, topics["frames"], topics["rows"], folder / runner, runner=runner)
    with Cameras(broker.address, topics["frames"], partitions=PARTITIONS, hz=hz) as cameras, contextlib.ExitStack() as stack:
        stack.callback(run.end)
        stack.callback(grim.wait)
        run.start()
        for number in range(rounds):
            if time.monotonic() > until:
                break
            run.wait_for_commit(_ROUND_S)
            moments = sorted((draw.uniform(0.0, _WINDOW_S[runner]), kind) for kind in kinds)
            if number in with_broker:
                moments = sorted([*moments, (draw.uniform(0.0, _WINDOW_S[runner]), "broker")])
            round_began = time.monotonic()
            for moment, kind in moments:
                time.sleep(max(0.0, round_began + moment - time.monotonic()))
                unsettled = grim.away or not run.settled()
                if kind == "broker":
                    grim.kill()
                else:
                    run.kill(kind, _ROUND_S)
                made[kind] += 1
                recovering[kind] += unsettled
        grim.wait()
        frames = cameras.stop()
        run.wait_for_rows(sum(frames.values()), _ROUND_S)
        run.stop()
    attempts = run.attempts()
    whole = PipelineRun(
        broker.address, topics["frames"], topics["undisturbed"], folder / f"{runner}-undisturbed", runner="local"
    )
    whole.finish(_FINISH_S)
    return {
        "kills": made,
        "of_these_while_recovering": recovering,
        "attempts": attempts,
        "epochs": run.epochs(),
        "frames": sum(frames.values()),
        "kafka": compare(kafka_rows(broker.address, topics["rows"]), kafka_rows(broker.address, topics["undisturbed"]), frames),
        "parquet": compare(parquet_rows(run.rows), parquet_rows(whole.rows), frames),
        "staged_files_left": run.staged_files(),
        "seconds": round(time.monotonic() - began, 1),
    }


def held(result: dict[str, Any]) -> bool:
    """Return whether nothing was lost, doubled, changed or left behind."""
    return bool(result["kafka"]["equal"] and result["parquet"]["equal"] and not result["staged_files_left"])


@contextlib.contextmanager
def _ray_for(runners: list[str]) -> Any:
    """Hold a Ray cluster that outlives the drivers that are killed, and make it known to them."""
    if "ray" not in runners:
        yield
        return
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()


def main() -> int:
    """Soak, print the table, write the JSON; return 1 where a row is lost, doubled or different, or a kill was not made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills per kind")
    parser.add_argument("--runners", default="local,ray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    reason = unavailable()
    if reason is not None:
        raise SystemExit(reason)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    runners = options.runners.split(",")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="soak") as temporary, _ray_for(runners):
        broker = Broker(Path(temporary) / "broker", settings=MORTAL)
        try:
            broker.start()
            for number, runner in enumerate(runners):
                draw = random.Random(f"{options.seed}{runner}")
                broker_kills = (options.kills + number) // len(runners)
                folder = Path(temporary)
                share = options.minutes * 60 * (number + 1 - _FOR_THE_END) / len(runners)
                results[runner] = soak(
                    broker, folder, runner, rounds=options.kills, broker_kills=broker_kills, draw=draw, until=began + share
                )
        finally:
            broker.stop()
    kills: dict[str, int] = {}
    for result in results.values():
        for kind, made in result["kills"].items():
            kills[kind] = kills.get(kind, 0) + made
    seconds = round(time.monotonic() - began, 1)
    equal, complete = all(map(held, results.values())), all(made >= options.kills for made in kills.values())
    for runner, result in results.items():
        print(f"{runner}: {result}")
    print(f"kills: {kills}, {seconds} s")
    document = {
        "kills": kills,
        "seed": options.seed,
        "seconds": seconds,
        "runners": results,
        "held": equal,
        "all_kills_made": complete,
    }
    write("kafka_soak", document)
    if not equal:
        print("NOT held: see benchmarks/results/kafka_soak.json")
    elif not complete:
        print(f"held, but not all kills fell within {options.minutes:g} minutes")
    else:
        print("held")
    return 0 if equal and complete else 1


if __name__ == "__main__":
    sys.exit(main())
