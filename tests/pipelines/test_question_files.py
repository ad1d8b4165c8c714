"""How many files a question passes on the side of the one who asks: what a reader of the code has to open."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from asking_workload import counting, running

from pipelines.api import Pipeline
from pipelines.asking.questions import Answer, ask

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("connectors", "models", "operators", "pipelines")
_MOST = 15


def test_a_question_passes_few_files_from_asking_to_the_answer(tmp_path: Path) -> None:
    values = counting(tmp_path)
    spec = Pipeline.from_dict(values).spec
    prefixes = tuple(f"{_ROOT / package}/" for package in _PACKAGES)
    files: set[str] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(prefixes):
            files.add(frame.f_code.co_filename[len(str(_ROOT)) + 1 :])

    def asked() -> list[Answer]:
        sys.setprofile(profile)  # of this thread: the run is another one
        try:
            return ask(spec, "how many?", ["a"], at="2019-01-01T00:00:05", values={"digits": 1})
        finally:
            sys.setprofile(None)

    with running(values):
        (answer,) = asked()
    assert answer.text == "20 rows, mean 2.4"
    assert {"pipelines/asking/questions.py", "connectors/sources/requests.py", "connectors/sinks/read.py"} <= files
    assert len(files) <= _MOST, "\n".join(sorted(files))
