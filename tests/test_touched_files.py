"""How many of the project's files a reader has to know to follow one frame; the figures stand in docs/architecture.md.

Counted with ``sys.setprofile`` from the first ``VideoReader.read`` until ``SinkTask.commit`` has returned, in a run of five
frames on the local runner: source ``video``, the small detector of the demo as operator ``mamba``, sink ``parquet``. Start-up
and what comes after the commit are left out. Version 0.1 came to 42 files by this measure, to 47 with the report at the end.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from touched_files import ROOT, Touched, documented, touched

from pipelines.api import Pipeline


def follow_a_frame(folder: Path) -> Touched:
    clip = folder / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    values = {
        "name": "frames",
        "state": str(folder / "state"),
        "sources": {"clips": {"type": "video", "path": str(clip)}},
        "operators": {
            "detect": {
                "type": "mamba",
                "input": "clips",
                "checkpoint": str(ROOT / "models/mamba/weights/shapes.safetensors"),
                "max_length": 600,
                "key_length": 120,
                "write_topk": 12,
            }
        },
        "sinks": {"rows": {"type": "parquet", "input": "detect", "path": str(folder / "rows")}},
    }
    pipeline = Pipeline.from_dict(values)
    with touched(start="VideoReader.read", stop="SinkTask.commit") as found:
        result = pipeline.run()
    assert result.table().num_rows > 0
    return found


def test_a_frame_passes_no_more_files_than_documented(tmp_path: Path) -> None:
    found = follow_a_frame(tmp_path)
    assert {"pipelines/runtime/operator_task.py", "connectors/sinks/parquet.py"} <= set(found.files)
    found.require_at_most(documented("**A frame**"))


def test_only_what_runs_between_start_and_stop_is_counted() -> None:
    from connectors.records import key_schema, schema_name
    from pipelines.runtime.keys import shard_of

    with touched(start="shard_of", stop="key_schema") as found:
        schema_name(key_schema("before", 1))
        shard_of("a", 2)
        schema_name(key_schema("between", 1))
    assert found.functions["pipelines/runtime/keys.py"] == {"shard_of"}
    assert found.functions["connectors/records.py"] == {"key_schema"}
