"""How many files a question passes on the side of the one who asks: what a reader of the code has to open."""

from __future__ import annotations

from pathlib import Path

from asking_workload import counting, running
from touched_files import documented, touched

from pipelines.api import Pipeline
from pipelines.asking.questions import ask


def test_a_question_passes_no_more_files_than_documented_from_asking_to_the_answer(tmp_path: Path) -> None:
    values = counting(tmp_path)
    spec = Pipeline.from_dict(values).spec
    with running(values), touched() as found:  # the run is another thread, which has started
        (answer,) = ask(spec, "how many?", ["a"], at="2019-01-01T00:00:05", values={"digits": 1})
    assert answer.text == "20 rows, mean 2.4"
    assert {"pipelines/asking/questions.py", "connectors/sources/requests.py", "connectors/sinks/read.py"} <= set(found.files)
    found.require_at_most(documented("**A question**"))
