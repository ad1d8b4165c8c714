"""``python -m pipelines.demos.load [FOLDER] [cpu|net_send]``: states of this machine while it works, in 90 s.

Runs ``configs/memprompttss_live.yaml`` on the load of this machine, makes slow, fast and again slow waves of it, says which of
them are state 1, and draws signals with states before and after that. Processes of half of the cores make the waves of ``cpu``;
where the cores are busy anyway, ``net_send`` shows the same by traffic that never leaves the machine.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from connectors.errors import ConfigError
from pipelines.demos.runner import take

__all__ = ["FAST", "SLOW", "main", "make_waves", "watch"]

_CHANNELS = ("cpu", "net_send")
_SINKS = ("states", "segments", "prompts_done", "signals", "said")
_PHASE_S = 25.0

SLOW = (1.3, 1.2)
FAST = (0.4, 0.3)
"""Seconds of load, and of none, in turn: at ten samples a second the two frequencies of the package's network."""


def main(arguments: Sequence[str] = ()) -> int:
    """Run the demo and print what it gave; return the exit status."""
    channel = next((each for each in arguments if each in _CHANNELS), "cpu")
    folders = [each for each in arguments if each not in _CHANNELS]
    out = Path(folders[0] if folders else "demo_load")
    if len(folders) > 1 or out.name.startswith("-"):
        print(f"give one folder and one of {', '.join(_CHANNELS)}; got: {' '.join(arguments)}", file=sys.stderr)
        return 2
    try:
        take(out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    watch(out, channel)
    return 0


def watch(out: Path, channel: str = "cpu", *, phase_s: float = _PHASE_S) -> None:
    """Watch this machine for three phases of load into ``out``, say in the third what the second one was, and draw it."""
    from pipelines import Pipeline
    from pipelines.viewing.view import view

    sets = [f"state={out}/state", f"prompts.path={out}/prompts", *(f"{name}.path={out}/{name}" for name in _SINKS)]
    sets += [f"here.channels=[{channel}]", f"here.duration_s={3 * phase_s + 12}"]
    pipeline = Pipeline.load("memprompttss_live", sets=sets)
    print(f"1. Watching {channel} for {3 * phase_s + 12:.0f} s, under slow, fast and again slow waves of load")
    context = multiprocessing.get_context("spawn")
    makers = max(1, (os.cpu_count() or 1) // 2) if channel == "cpu" else 1
    phases = [(SLOW, phase_s), (FAST, phase_s), (SLOW, phase_s)]
    processes = [context.Process(target=make_waves, args=(channel, phases), daemon=True) for _ in range(makers)]

    def say() -> None:
        time.sleep(2.4 * phase_s)
        at = f"-{0.9 * phase_s:.1f}s"  # in the midst of the fast waves
        print(f'2. Saying "the state was 1 {at[1:]} ago"')
        pipeline.prompt("label", 1, stream="here", at=at)

    talker = threading.Thread(target=say, daemon=True)
    for process in processes:
        process.start()
    talker.start()
    try:
        pipeline.run()
    finally:
        for process in processes:
            process.terminate()
            process.join()
    talker.join(30)
    pictures = view(out)
    print("3. Look at the load, and at the states before and after that was said:")
    print(f"  {next(path for path in pictures if path.name == '_states.html')}")


def make_waves(channel: str, phases: Sequence[tuple[tuple[float, float], float]]) -> None:
    """Make load of this machine: for each phase ``on`` and ``off`` seconds in turn, so many seconds long."""
    listener, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with listener, sender:
        listener.bind(("127.0.0.1", 0))
        place, piece = listener.getsockname(), bytes(50_000)
        for (on_s, off_s), seconds in phases:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                rest_s = time.monotonic() + on_s
                while time.monotonic() < rest_s:
                    if channel != "cpu":
                        for _ in range(8):
                            sender.sendto(piece, place)
                        time.sleep(0.01)
                time.sleep(off_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
