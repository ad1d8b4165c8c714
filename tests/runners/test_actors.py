"""Parts of the Ray runner that need no Ray."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from engine_workload import pipeline, value_batch, write_lines

from connectors.errors import DeviceError, SinkError
from pipelines.api import Pipeline
from pipelines.graph import Graph
from pipelines.runners import cluster
from pipelines.runners.actors import _detached, _portable


def test_keys_kept_from_big_rows_do_not_keep_the_rows() -> None:
    keys = value_batch(["camera"] * 4)
    image = pa.array([np.zeros(1 << 20, np.uint8).tobytes()] * 4, pa.binary())
    batch = pa.RecordBatch.from_arrays([*keys.columns, image], names=[*keys.schema.names, "image"])
    detached = _detached(batch)
    assert detached.equals(batch)
    for name, copied in [("stream_id", True), ("sequence", True), ("image", False)]:
        before, after = (rows.column(name).buffers()[-1].address for rows in (batch, detached))
        assert (before != after) == copied, name


class TwoArguments(Exception):
    """Cannot be pickled, as exceptions with their own constructors cannot."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)


def test_errors_survive_the_way_to_the_driver() -> None:
    ours = pickle.loads(pickle.dumps(_portable(SinkError("disk full"))))
    assert (type(ours), str(ours)) == (SinkError, "disk full")
    theirs = pickle.loads(pickle.dumps(_portable(ZeroDivisionError("oh"))))
    assert isinstance(theirs, ZeroDivisionError)
    assert "ZeroDivisionError: oh" in theirs.__notes__[0]
    assert "TwoArguments: what" in str(_portable(TwoArguments("what", "why")))


def test_a_gpu_that_this_machine_lacks_is_told_before_ray_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    write_lines(tmp_path / "lines", 1)
    graph = Graph(Pipeline.from_dict(pipeline(tmp_path / "lines", tmp_path, operators__mean__device="cuda")).spec)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(DeviceError, match="mean"):
        cluster.check_local_gpus(graph)
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere")
    cluster.check_local_gpus(graph)  # the cluster may have one
