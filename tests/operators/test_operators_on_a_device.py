"""Operators whose tensors lie on a device: none is in the wrong place, and a step waits for the device as seldom as it can."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kept_frames import keep
from launches import DEVICE, DeviceTensor, Launches, on_device
from sound_models import write_model
from video_streams import frames, interleaved

from connectors.device_frames import KeptFrames, release
from operators.base import Context, Operator
from pipelines.testing._compare import state_difference

HERE = Path(__file__).parent

Step = tuple[str, pa.RecordBatch]
Made = tuple[Operator, list[Step]]


def streams_of(method: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module with a method's test streams; the operators it makes lie on the device."""
    if (HERE / method).is_dir():
        monkeypatch.setattr(sys, "path", [str(HERE / method), *sys.path])
    streams = "test_specvqgan_operator" if method == "specvqgan" else f"{method}_streams"
    module = importlib.import_module(streams)

    def context(*given: Any, **named: Any) -> Context:
        return Context(*given, **{**named, "device": DEVICE})

    monkeypatch.setattr(module, "Context", context)
    return module


def fourd_vla(module: ModuleType, folder: Path, **options: Any) -> Made:
    features = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    operator = module.given(4, window=2, keep=1, max_streams=3, **options)
    return operator, [("process", module.feature_rows("abc", features[t : t + 1], start=t)) for t in range(3)]


def fourd_vla_acts(module: ModuleType, folder: Path) -> Made:
    policy = module.tiny_policy(folder)
    operator = module.operator(
        mode="act", checkpoint=policy, instruction="point to the red cube", window=5, keep=2, max_streams=3
    )
    return operator, [("process", module.frames("ab", 1, start=t)) for t in range(3)]


def reloop2(module: ModuleType, folder: Path, **options: Any) -> Made:
    operator = module.make(module.save_model(folder / "ctr.safetensors"), micro_batch=32, **options)
    steps: list[Step] = []
    for t in range(4):
        ids, times = list(range(100 * t, 100 * t + 32)), [1000.0 * t + i for i in range(32)]
        steps.append(("process", module.impressions(ids, times_s=times, seed=t)))
        steps.append(("control", module.labels(ids, [i % 2 for i in range(32)], times_s=times)))
    return operator, steps


def memprompttss(module: ModuleType, folder: Path, *, prompted: bool = False, size: int = 8) -> Made:
    """Return steps of so many samples; a window ends with every fourth. Prompts are about the past and about what will come."""
    operator = module.operator(module.network(folder))
    waves = [module.wave(64, seed) for seed in (0, 1)]

    def part(first: int) -> Step:
        rows = [module.samples(name, x[first : first + size], first=first) for name, x in zip("ab", waves, strict=True)]
        return "process", module.together(*rows)

    steps = [part(first) for first in range(0, 64, size)]
    if prompted:
        asked = [{"at": at, "state": at % 4, "prompt_id": f"p{at}", "stream_id": "ab"[at % 2]} for at in (12, 13, 25, 30, 40)]
        steps[16 // size : 16 // size] = [("control", module.prompts(*asked))]
    return operator, steps


def prompttpp(module: ModuleType, folder: Path) -> Made:
    events = module.stream(3, 4)
    return module.operator(module.network(folder)), [("process", events.slice(first, 3)) for first in (0, 3)]


def rekv(module: ModuleType, folder: Path, **options: Any) -> Made:
    operator = module.operator(module.tiny(folder), batch_frames=8, **options)
    return operator, [("process", module.frames(module.interleaved("ab", 2, start=t))) for t in (0, 2, 4)]


def videostreaming(module: ModuleType, folder: Path, **options: Any) -> Made:
    """Return steps in which clips end, with and without a memory before them."""
    operator = module.operator(module.tiny(folder), batch_frames=8, batch_clips=4, **options)
    return operator, [("process", frames(interleaved("ab", 2, start=t))) for t in range(0, 14, 2)]


def specvqgan(module: ModuleType, folder: Path, *, unbounded: bool = False) -> Made:
    """Return steps of two streams in which windows move, columns are drawn and sound is made.

    ``unbounded``: nothing is known of how large the features of frames are, as with ResNet-50.
    """
    operator = module.operator(write_model(folder, columns=3))  # a window of half a second
    if unbounded:
        network = operator._looking._run
        operator._looking._run = lambda pixels_B: network(pixels_B).exp().log()
    steps: list[Step] = []
    for t in range(4):
        clips = [module.clip(name, seed, 12, start=12 * t, start_us=400_000 * t) for seed, name in enumerate("ab")]
        steps.append(("process", pa.Table.from_batches(clips).combine_chunks().to_batches()[0]))
    return operator, steps


CASES = [
    pytest.param("fourd_vla", fourd_vla, {}, 0, id="fourd_vla"),
    pytest.param("fourd_vla", fourd_vla, {"sampling": "incremental", "horizon": "unbounded"}, 0, id="fourd_vla, unbounded"),
    pytest.param("fourd_vla", fourd_vla_acts, {}, 0, id="fourd_vla, which acts"),
    pytest.param("reloop2", reloop2, {}, 0, id="reloop2"),
    pytest.param("reloop2", reloop2, {"forgetting": "slices", "forget_rows": 64}, 0, id="reloop2, slices"),
    pytest.param("reloop2", reloop2, {"mode": "ring", "capacity": 64}, 0, id="reloop2, ring"),
    pytest.param("reloop2", reloop2, {"mode": "lsh_table", "capacity": 64, "top_k": 4}, 0, id="reloop2, lsh_table"),
    pytest.param("reloop2", reloop2, {"mode": "ring", "capacity": 64, "sigma": 0.1}, 0, id="reloop2, sigma"),
    pytest.param("rekv", rekv, {}, 0, id="rekv"),
    pytest.param("videostreaming", videostreaming, {"clip_events": True}, 0, id="videostreaming"),
    pytest.param("specvqgan", specvqgan, {}, 0, id="specvqgan"),
    pytest.param(
        "specvqgan", specvqgan, {"unbounded": True}, 0, marks=pytest.mark.slow, id="specvqgan, features without a bound"
    ),
    pytest.param("memprompttss", memprompttss, {}, 0, id="memprompttss"),
    pytest.param("memprompttss", memprompttss, {"prompted": True, "size": 4}, 0, id="memprompttss, prompted"),
    pytest.param("memprompttss", memprompttss, {"prompted": True, "size": 64}, 0, id="memprompttss, prompted, many windows"),
    pytest.param("prompttpp", prompttpp, {}, 0, id="prompttpp"),
]


FIRST = {"reloop2": 1, "rekv": 1, "videostreaming": 2, "specvqgan": 2}
"""Steps in which networks are proved to give finite numbers, as far as they are."""


def waits(launches: Launches) -> Iterator[str]:
    """Yield where the host waits for the device, which has more to do afterwards; reads in a row are one wait."""
    last = max((i for i, event in enumerate(launches.events) if event.kind == "kernel"), default=-1)
    before = "kernel"
    for event in launches.events[:last]:
        if event.kind == "read" and before != "read":
            yield event.place
        before = before if event.kind == "upload" and not event.waits else event.kind


@pytest.mark.parametrize(("method", "make", "options", "most"), CASES)
def test_between_upload_and_download_a_step_waits_for_nothing_but_what_the_host_must_know(
    method: str,
    make: Callable[..., Made],
    options: dict[str, Any],
    most: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    module = streams_of(method, monkeypatch)
    with on_device() as launches:
        operator, steps = make(module, tmp_path, **options)
        kernels = 0
        for number, (kind, batch) in enumerate(steps):
            if number < FIRST.get(method, 0):  # frames of a size, a clip, a window: what is proved of them is proved once
                getattr(operator, kind)(batch)
                continue
            launches.clear()
            getattr(operator, kind)(batch)
            kernels = max(kernels, launches.kernels)
            found = list(waits(launches))
            assert len(found) <= most, found
            assert not [event for event in launches.events if event.waits], launches.places("upload")
        assert kernels > 50


@pytest.mark.parametrize(("method", "make"), [("rekv", rekv), ("videostreaming", videostreaming)])
def test_the_pixels_of_a_frame_cross_to_the_device_once_as_bytes_and_nothing_of_them_comes_back(
    method: str, make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = streams_of(method, monkeypatch)
    with on_device() as launches:
        operator, steps = make(module, tmp_path)
        for number, (kind, batch) in enumerate(steps):
            launches.clear()
            getattr(operator, kind)(batch)
            if number < FIRST[method]:
                continue
            pixels = sum(len(image.as_py()) for image in batch.column("image"))
            large = [event.bytes for event in launches.of("upload") if event.bytes >= pixels // batch.num_rows]
            assert large == [pixels], launches.places("upload")  # all frames of a call in one piece, one byte per color
            # The rest are places and counts.
            assert (
                launches.uploaded() - pixels < pixels // 4 and sum(event.bytes for event in launches.of("read")) < pixels // 8
            )


def mamba(module: ModuleType, folder: Path) -> Made:
    return module.operator(), [("process", module.frames(module.interleaved("ab", 1, start=t))) for t in (0, 1)]


@pytest.mark.parametrize(
    ("method", "make"), [("mamba", mamba), ("rekv", rekv), ("videostreaming", videostreaming), ("specvqgan", specvqgan)]
)
def test_frames_that_are_kept_on_the_device_are_not_copied_and_give_what_pixels_give(
    method: str, make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, kept = streams_of(method, monkeypatch), KeptFrames(1 << 30)
    with on_device() as launches:
        operator, steps = make(module, tmp_path)
        steps = steps[: FIRST.get(method, 1) + 1]
        wanted, uploaded, came_back = [], [], []
        for kind, batch in steps:
            launches.clear()
            wanted.append(getattr(operator, kind)(batch))
            uploaded.append(launches.uploaded())
            came_back.append(sum(event.bytes for event in launches.of("read")))
        other, _ = make(module, tmp_path)
        for number, (kind, batch) in enumerate(steps):
            rows = keep(batch, kept, DeviceTensor)
            pixels = sum(len(image.as_py()) for image in batch.column("image"))
            launches.clear()
            got = getattr(other, kind)(rows)
            release(rows)
            assert [row.drop_columns(["latency_ms"]) if method == "mamba" else row for row in got] == [
                row.drop_columns(["latency_ms"]) if method == "mamba" else row for row in wanted[number]
            ]
            if number < FIRST.get(method, 0):
                continue
            # What an operator uploads besides is the same; specvqgan takes frames that it looks at, made small on the host.
            saved = uploaded[number] - launches.uploaded()
            assert saved == pixels or (method == "specvqgan" and saved > 0), launches.places("upload")
            assert sum(event.bytes for event in launches.of("read")) == came_back[number]
        assert len(kept) == 0
        found = [one.snapshot() for one in (operator, other)]
    assert state_difference(*found) is None
