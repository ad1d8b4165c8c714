"""Pipelines in Python: load, check, run, and read what the sinks have committed. The command line is built on this."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connectors.errors import ConfigError, nearest
from connectors.extras import need
from connectors.notebook import in_notebook
from pipelines.file import load_spec, spec_from_dict
from pipelines.spec import PipelineSpec, SinkSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.asking.prompts import PromptKind
    from pipelines.asking.putting import Answer
    from pipelines.check import Finding
    from pipelines.fresh import Leftover
    from pipelines.runners.report import Progress, RunReport

__all__ = ["Pipeline", "Result"]


class Pipeline:
    """A checked pipeline, ready to run."""

    def __init__(self, spec: PipelineSpec) -> None:
        self.spec = spec

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        overrides: Mapping[str, Any] | None = None,
        sets: Sequence[str] = (),
        runner: str | None = None,
    ) -> Pipeline:
        """Read a pipeline file, or a ready pipeline by its name.

        ``overrides`` maps dotted keys to values, such as ``{"operators.detect.max_batch": 8}``; ``sets`` holds the same as
        texts for ``--set``. Relative paths in both start from the current folder, those in the file from the file's folder.
        ``runner`` wins over the file's. Raise ``ConfigError`` that lists everything that is wrong.
        """
        return cls(load_spec(path, overrides=overrides, sets=sets, runner=runner))

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, base: Path | str | None = None, overrides: Mapping[str, Any] | None = None
    ) -> Pipeline:
        """Take a pipeline as a dict of the form of a file. Relative paths start from ``base`` (default: the current folder)."""
        return cls(spec_from_dict(values, base=base, overrides=overrides))

    def check(self, *, fresh: bool = False) -> list[Finding]:
        """Look at what the pipeline refers to (files, schemas, checkpoints, devices, folders) without running it.

        ``fresh``: for a run that deletes what earlier runs have left.
        """
        from pipelines.check import check_spec

        return check_spec(self.spec, fresh=fresh)

    def leftovers(self) -> list[Leftover]:
        """Return the files of earlier runs that ``run(fresh=True)`` deletes, by folder; empty where there are none."""
        from pipelines.fresh import leftovers

        return leftovers(self.spec)

    def run(
        self,
        *,
        runner: str | None = None,
        resume: bool = False,
        fresh: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Result:
        """Run to the end of the sources, or until ``stop`` is set or SIGINT or SIGTERM arrives.

        ``runner`` wins over the pipeline's own; ``resume`` goes on from the last committed epoch; ``fresh`` first deletes what
        earlier runs have left (``leftovers`` lists it). ``on_progress`` gets readings on the way; without it a notebook shows
        them in a line with a bar. Raise a ``StreambankError`` where the run fails; what was committed before stays committed.
        """
        from pipelines import runners

        if fresh and resume:
            raise ConfigError("resume goes on with what earlier runs have left, fresh deletes it; choose one of the two")
        spec = self.spec if runner is None else self.spec.with_runner(runner)
        if fresh:
            from pipelines.fresh import start_over

            start_over(spec)
        with contextlib.ExitStack() as shown:
            if on_progress is None and in_notebook():
                from pipelines.commands.progress import STARTING_RAY, notebook_progress

                on_progress = shown.enter_context(notebook_progress(STARTING_RAY if spec.runner == "ray" else "starting"))
            report = runners.run(spec, runner=spec.runner, resume=resume, on_progress=on_progress, stop=stop)
        return Result(spec, report)

    def ask(
        self,
        question: str,
        *,
        stream: str,
        at: datetime | str | float | None = None,
        operator: str | None = None,
        values: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask this pipeline, which another process runs, a question about a stream; wait for the answer.

        ``at`` is the event time that it is about: ISO 8601, seconds since 1970, ``00:05:00`` into the stream, ``-30s`` before
        its newest row; None: now. ``values`` fill other control columns.
        ``pipelines.asking.questions.ask`` takes several streams and a sink to read. Raise ``ConfigError``
        where the pipeline has no way for questions, another ``StreambankError`` where its sink cannot be reached.
        """
        from pipelines.asking.questions import ask

        return ask(self.spec, question, [stream], at=at, operator=operator, values=values, timeout_s=timeout_s)[0]

    def prompt(
        self,
        kind: PromptKind,
        value: int | str | bool | None = None,
        *,
        stream: str,
        at: datetime | str | float | None = None,
        correct: bool = True,
        granularity: int | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Tell this pipeline, which another process runs, what is so in a stream; wait for what becomes of it.

        ``prompt("label", 7, stream="pump")`` says that its state is 7; ``boundary``, ``retract``, ``pin`` and ``reset`` are the
        other kinds. ``at`` as in ``ask``; None: the newest row. ``pipelines.asking.prompts.prompt`` takes several streams,
        ranges and ids. Raise ``ConfigError`` where the pipeline has no way for prompts or the prompt makes no sense.
        """
        from pipelines.asking.prompts import prompt

        about: dict[str, Any] = {"at": at, "correct": correct, "granularity": granularity, "timeout_s": timeout_s}
        return prompt(self.spec, kind, value, streams=[stream], **about)[0]


class Result:
    """What a run has left behind."""

    def __init__(self, spec: PipelineSpec, report: RunReport) -> None:
        self.spec = spec
        self.report = report
        """How the run ended: status, seconds, attempts, epochs."""

    def table(self, sink: str | None = None) -> pa.Table:
        """Return all rows that a table sink has committed, over all runs into its folder.

        ``sink`` may be left out where there is one sink only. Raise ``ConfigError`` for a name that is no sink.
        """
        from connectors.sinks.read import read_committed

        return read_committed(self._sink(sink).options.path)

    def to_pandas(self, sink: str | None = None) -> Any:
        """Return the rows of ``table`` as a pandas ``DataFrame``. Raise ``MissingExtra`` without pandas."""
        need("pandas", "to_pandas")
        return self.table(sink).to_pandas()

    def to_polars(self, sink: str | None = None) -> Any:
        """Return the rows of ``table`` as a polars ``DataFrame``. Raise ``MissingExtra`` without polars."""
        return need("polars", "to_polars").from_arrow(self.table(sink))

    def to_duckdb(self, sink: str | None = None) -> Any:
        """Return the rows of ``table`` as a DuckDB relation, for SQL. Raise ``MissingExtra`` without duckdb."""
        return need("duckdb", "to_duckdb").from_arrow(self.table(sink))

    def detections(self, sink: str | None = None, *, classes: Sequence[str] | None = None, min_score: float = 0.0) -> pa.Table:
        """Return one row per detection, with the name of its class; of ``classes`` only, where they are given."""
        from pipelines.detections import explode

        return explode(self.table(sink), classes=classes, min_score=min_score)

    def to_coco(
        self, sink: str | None = None, *, classes: Sequence[str] | None = None, min_score: float = 0.0
    ) -> dict[str, Any]:
        """Return detections as COCO annotations, ready for ``json.dump``: an image for each row that was looked at."""
        from pipelines.detections import coco

        return coco(self.table(sink), classes=classes, min_score=min_score)

    def to_supervision(
        self, sink: str | None = None, *, classes: Sequence[str] | None = None, min_score: float = 0.0
    ) -> Iterator[tuple[str, int, Any]]:
        """Yield (stream, sequence, ``supervision.Detections``) per frame. Raise ``MissingExtra`` without that package."""
        from pipelines.detections import supervision

        return supervision(self.table(sink), classes=classes, min_score=min_score)

    def __repr__(self) -> str:
        """Return what is said at the end of a run."""
        from pipelines.showing import result_text

        return result_text(self.spec, self.report)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the same, and the first rows of each table."""
        from pipelines.showing import result_html

        return result_html(self.spec, self.report)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def files(self, sink: str | None = None) -> list[Path]:
        """Return the files that a sink has committed, in the order of their epochs."""
        from connectors.sinks.read import committed_files

        return committed_files(self._sink(sink).options.path)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the last counters and gauges of every task, as ``{"detect[0]": {"rows_in": ...}}``."""
        return {str(stats.task): _numbers(stats) for stats in self.report.tasks}

    def _sink(self, name: str | None) -> SinkSpec:
        sinks = {node.name: node for node in self.spec.sinks}
        if name is None and len(sinks) == 1:
            return next(iter(sinks.values()))
        if name not in sinks:
            wrong = f"there is no sink {name!r}{nearest(name, sinks)}" if name is not None else "say which sink"
            raise ConfigError(f"{wrong}; this pipeline has: {', '.join(sinks)}")
        return sinks[name]


def _numbers(stats: Any) -> dict[str, float]:
    """Return the numbers of a task's reading, those of its mappings under ``gauges.x`` and ``dropped.x``."""
    flat: dict[str, float] = {}
    for f in dataclasses.fields(stats):
        value = getattr(stats, f.name)
        if isinstance(value, Mapping):
            flat |= {f"{f.name}.{key}": number for key, number in value.items()}
        elif isinstance(value, int | float):
            flat[f.name] = value
    return flat
