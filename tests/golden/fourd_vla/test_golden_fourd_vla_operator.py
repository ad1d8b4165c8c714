"""Golden: the operator keeps the frames of the recorded traces, fed in batches of several streams."""

from pathlib import Path

import fourd_vla_cases
import numpy as np
import pyarrow as pa
import pytest
from golden_cases import golden, read_npz

from connectors.records import TIME_TYPE
from operators.base import Context
from operators.fourd_vla import FourDVLAOperator, FourDVLAOptions
from operators.fourd_vla.config import Given
from operators.fourd_vla.schemas import FEATURE


@pytest.mark.heavy
@golden("fourd_vla", ".npz", *fourd_vla_cases.SAMPLING)
def test_operator_keeps_the_frames_of_the_traces(path: Path) -> None:
    """All features go in together, as streams of one operator: zeros that make them as wide as the widest change no angle."""
    arrays = read_npz(path)
    groups: dict[tuple[str, int, int], list[str]] = {}
    for mode, name, n, k in fourd_vla_cases.traces(arrays):
        groups.setdefault((mode, n, k), []).append(name)
    width = max(values.shape[1] for name, values in arrays.items() if name.startswith("feat_"))
    features = {
        name: np.pad(arrays[f"feat_{name}"], ((0, 0), (0, width - arrays[f"feat_{name}"].shape[1])))
        for name in {name for names in groups.values() for name in names}
    }
    for (mode, n, k), names in groups.items():
        options = FourDVLAOptions(
            sampling=mode, window=n, keep=k, features=Given(size=width), max_streams=len(names), max_gap_s=None
        )
        made = FourDVLAOperator(options, Context())
        table = pa.Table.from_batches(made.process(feature_batch({name: features[name] for name in names})))
        for name in names:
            rows = table.filter(pa.compute.equal(table.column("stream_id"), name)).to_pylist()
            wanted = [[int(i) for i in row if i >= 0] for row in arrays[f"{mode}_{name}_n{n}_k{k}"]]
            assert [row["selected_sequences"] for row in rows] == wanted, f"{mode} of {name}, n={n}, k={k}"
            assert [row["offsets"] for row in rows] == [[t - i for i in held] for t, held in enumerate(wanted)]


def feature_batch(features: dict[str, np.ndarray]) -> pa.RecordBatch:
    """Return FEATURE rows in the order of time."""
    rows = sorted((t, name) for name, values in features.items() for t in range(len(values)))
    columns = [
        pa.array([name for _, name in rows]),
        pa.array([t for t, _ in rows], pa.int64()),
        pa.array([t * 100_000 for t, _ in rows], TIME_TYPE),
        pa.array([features[name][t].tolist() for t, name in rows], pa.list_(pa.float32())),
        pa.nulls(len(rows), pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FEATURE)
