from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from connectors.base import Staged
from connectors.errors import RecoveryError, SourceError
from pipelines.graph import Graph
from pipelines.runtime.coordinator import Coordinator, EpochTimeout
from pipelines.runtime.manifest import Manifest, StateFolder
from pipelines.runtime.messages import Exhausted, OperatorAck, SinkAck, SourceAck, SplitState, TaskId
from pipelines.runtime.recovery import Listing, assign_splits, options_of, starting_point
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec
from pipelines.testing import FakeClock, ListSinkOptions, MemoryOptions, RowStore
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

STAGED = Staged("s", "f", 7, 70, "")


class FakeFleet:
    """Writes down what it is asked, in order with what happens to the state folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[Any] = []

    def request_barrier(self, epoch: int, *, final: bool) -> None:
        self.log.append(("barrier", epoch, final))

    def commit(self, epoch: int, staged: Mapping[TaskId, Sequence[Staged]]) -> None:
        durable = (self.root / "epochs" / f"{epoch:06d}.json").exists()
        self.log.append(("commit", epoch, dict(staged), durable))


def make_spec(root: Path, **changes: Any) -> PipelineSpec:
    values: dict[str, Any] = {
        "name": "p",
        "state": root,
        "epoch_s": 10.0,
        "sources": (
            SourceSpec(
                name="src",
                type="pipelines.testing:MemorySource",
                options=MemoryOptions(splits={}, schema=RunningMean.input_schema),
                parallelism=2,
            ),
        ),
        "operators": (
            OperatorSpec(
                name="op", type="pipelines.testing.running_mean:RunningMean", options=RunningMeanOptions(), inputs=("src",)
            ),
        ),
        "sinks": (
            SinkSpec(name="out", type="pipelines.testing:ListSink", options=ListSinkOptions(store=RowStore()), inputs=("op",)),
        ),
    }
    return PipelineSpec(**{**values, **changes})


class Rig:
    def __init__(self, root: Path, base: Manifest | None = None, attempt: int = 1) -> None:
        self.clock = FakeClock(1000.0)
        self.folder = StateFolder(root)
        self.folder.open()
        self.fleet = FakeFleet(root)
        self.graph = Graph(make_spec(root))
        self.coordinator = Coordinator(
            self.graph, self.folder, self.fleet, self.clock, base=base, attempt=attempt, timeout_s=60.0
        )

    def acknowledge(self, epoch: int, *, skip: str | None = None, done: bool = False) -> None:
        for task in self.graph.tasks:
            if task.node == skip:
                continue
            if task.node == "src":
                self.coordinator.report(SourceAck(task, epoch, {f"s{task.shard}": SplitState({"row": epoch}, done, 5)}, 5))
            elif task.node == "op":
                self.coordinator.report(OperatorAck(task, epoch, ()))
            else:
                self.coordinator.report(SinkAck(task, epoch, (STAGED,)))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    yield rig
    rig.folder.close()


def test_an_epoch_begins_when_it_is_due_and_not_before(rig: Rig) -> None:
    rig.coordinator.tick()
    assert rig.fleet.log == []
    assert rig.coordinator.idle_s() == 10.0
    rig.clock.advance(10.0)
    rig.coordinator.tick()
    assert rig.fleet.log == [("barrier", 0, False)]


def test_sinks_publish_only_after_every_answer_and_the_durable_manifest(rig: Rig) -> None:
    rig.clock.advance(10.0)
    rig.coordinator.tick()
    rig.acknowledge(0, skip="op")
    rig.coordinator.tick()
    assert len(rig.fleet.log) == 1
    rig.acknowledge(0)
    rig.coordinator.tick()
    assert rig.fleet.log[1] == ("commit", 0, {TaskId("out", 0): (STAGED,)}, True)
    manifest = rig.folder.newest()
    assert manifest is not None
    assert manifest.sources == {"src": {"s0": SplitState({"row": 0}, False, 5), "s1": SplitState({"row": 0}, False, 5)}}
    assert manifest.rows == {"src": 10, "out": 7}
    assert not manifest.finished


def test_only_one_epoch_is_under_way_at_a_time(rig: Rig) -> None:
    rig.clock.advance(10.0)
    rig.coordinator.tick()
    rig.clock.advance(30.0)
    rig.coordinator.tick()
    assert rig.fleet.log == [("barrier", 0, False)]
    rig.acknowledge(0)
    rig.coordinator.tick()
    rig.coordinator.tick()
    assert [entry[:2] for entry in rig.fleet.log] == [("barrier", 0), ("commit", 0), ("barrier", 1)]


def test_an_epoch_that_hangs_is_given_up_and_the_silent_tasks_are_named(rig: Rig) -> None:
    rig.clock.advance(10.0)
    rig.coordinator.tick()
    rig.acknowledge(0, skip="op")
    rig.clock.advance(61.0)
    with pytest.raises(EpochTimeout, match=r"epoch 0 is not complete after 60 s; no answer from op\[0\]"):
        rig.coordinator.tick()
    assert rig.folder.newest() is None


def test_answers_to_another_epoch_do_not_count(rig: Rig) -> None:
    rig.clock.advance(10.0)
    rig.coordinator.tick()
    rig.acknowledge(7)
    rig.coordinator.tick()
    assert len(rig.fleet.log) == 1


def test_the_last_epoch_begins_when_all_sources_are_exhausted(rig: Rig) -> None:
    rig.coordinator.report(Exhausted(TaskId("src", 0)))
    rig.coordinator.tick()
    assert rig.fleet.log == []
    rig.coordinator.report(Exhausted(TaskId("src", 1)))
    rig.coordinator.tick()
    assert rig.fleet.log == [("barrier", 0, True)]
    rig.acknowledge(0, done=True)
    rig.coordinator.tick()
    assert rig.coordinator.done
    manifest = rig.folder.newest()
    assert manifest is not None
    assert manifest.finished


def test_a_stop_ends_with_one_more_epoch_that_is_not_called_finished(rig: Rig) -> None:
    rig.coordinator.stop()
    rig.coordinator.tick()
    assert rig.fleet.log == [("barrier", 0, True)]
    rig.acknowledge(0)
    rig.coordinator.tick()
    assert rig.coordinator.done
    manifest = rig.folder.newest()
    assert manifest is not None
    assert not manifest.finished


def test_a_new_attempt_goes_on_counting_epochs_and_rows(tmp_path: Path) -> None:
    first = Rig(tmp_path)
    first.coordinator.stop()
    first.coordinator.tick()
    first.acknowledge(0)
    first.coordinator.tick()
    first.folder.close()
    second = Rig(tmp_path, base=first.coordinator.manifest, attempt=2)
    second.coordinator.stop()
    second.coordinator.tick()
    assert second.fleet.log == [("barrier", 1, True)]
    second.acknowledge(1)
    second.coordinator.tick()
    assert second.coordinator.manifest is not None
    assert second.coordinator.manifest.rows["out"] == 14
    second.folder.close()


# -- starting points


def stopped(root: Path) -> tuple[StateFolder, Manifest]:
    rig = Rig(root)
    rig.coordinator.stop()
    rig.coordinator.tick()
    rig.acknowledge(0)
    rig.coordinator.tick()
    assert rig.coordinator.manifest is not None
    return rig.folder, rig.coordinator.manifest


def test_a_folder_with_epochs_is_not_started_over_by_accident(tmp_path: Path) -> None:
    folder, _ = stopped(tmp_path)
    with pytest.raises(
        RecoveryError, match=r"holds a run of pipeline 'p' that stands at epoch 0\. Go on with --resume, or start"
    ):
        starting_point(folder, make_spec(tmp_path), resume=False)
    assert starting_point(folder, make_spec(tmp_path), resume=True) is not None
    folder.close()


def test_changed_options_are_refused_by_name_and_value(tmp_path: Path) -> None:
    folder, _ = stopped(tmp_path)
    spec = make_spec(tmp_path)
    changed = OperatorSpec(name="op", type=spec.operators[0].type, options=RunningMeanOptions(slow_s=1.5), inputs=("src",))
    with pytest.raises(RecoveryError, match=r"options have changed since epoch 0: op\.slow_s: 0\.0 then, 1\.5 now\. Put them"):
        starting_point(folder, make_spec(tmp_path, operators=(changed,)), resume=True)
    with pytest.raises(RecoveryError, match="belongs to pipeline 'p', this is 'q'"):
        starting_point(folder, make_spec(tmp_path, name="q"), resume=True)
    folder.close()


def test_shards_and_pace_may_change() -> None:
    spec = make_spec(Path("state"))
    operator = OperatorSpec(
        name="op", type=spec.operators[0].type, options=RunningMeanOptions(), inputs=("src",), shards=3, max_batch=7
    )
    assert options_of(spec) == options_of(make_spec(Path("elsewhere"), operators=(operator,), epoch_s=1.0))


def test_unreadable_manifests_are_no_fresh_start(tmp_path: Path) -> None:
    folder, _ = stopped(tmp_path)
    (tmp_path / "epochs" / "000000.json").write_text("torn")
    with pytest.raises(RecoveryError, match="has manifests, but none is readable"):
        starting_point(folder, make_spec(tmp_path), resume=True)
    folder.close()


def test_splits_are_shared_out_with_their_positions(tmp_path: Path) -> None:
    folder, manifest = stopped(tmp_path)
    folder.close()
    tasks = assign_splits("src", Listing(splits=["s0", "s1", "new"], known=manifest.sources["src"]), 2)
    assert tasks == [
        {"s0": SplitState({"row": 0}, False, 5), "new": SplitState()},
        {"s1": SplitState({"row": 0}, False, 5)},
    ]
    with pytest.raises(SourceError, match=r"source 'src': 's1' was being read .* is no longer there"):
        assign_splits("src", Listing(splits=["s0"], known=manifest.sources["src"]), 2)
    camera = Listing(splits=["s0"], known=manifest.sources["src"], replayable=False)
    (live,) = assign_splits("src", camera, 1)  # a camera that was taken away
    assert "s1" not in live
