"""The option ``policy``: what it stores and reads, in pipeline files, in snapshots, and with processes that answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rekv_streams import STEP_US, frames, interleaved, operator, question, questions, rows_of

from connectors.errors import ConfigError, RecoveryError
from models.rekv.config import ReKVConfig
from operators.banks import BlockSpec
from operators.rekv import ReKVOperator, ReKVOptions
from operators.rekv.block_policies import block_policy
from operators.rekv.policies import EMLLM, BlockFloat, KVMerger, Policy, Scissorhands, ThinK
from pipelines import Pipeline
from pipelines.commands.describe import describe
from pipelines.options import parse_options

COLOR = "which colour is it?"
SPEC = BlockSpec(layers=3, groups=2, tokens=4, dim=24)
LOSSY: list[Policy] = [BlockFloat(), KVMerger(), Scissorhands(), ThinK()]


def ask(made: Any, **more: Any) -> list[dict[str, Any]]:
    return rows_of(made.control(questions([question("a", COLOR, **more)])))


@pytest.mark.parametrize("policy", LOSSY, ids=lambda policy: policy.type)
def test_a_policy_that_loses_something_takes_fewer_bytes_and_still_answers(policy: Policy, tiny_rekv: str) -> None:
    plain, smaller = operator(tiny_rekv, max_streams=1), operator(tiny_rekv, max_streams=1, policy=policy)
    for made in (plain, smaller):
        assert made.process(frames(interleaved("a", 9))) == []
    row = ask(smaller)[0]
    assert (row["status"], row["frames_seen"], [len(layer) for layer in row["retrieved"]]) == ("ok", 9, [4, 4, 4])
    assert smaller._encoding.bank.block_bytes < plain._encoding.bank.block_bytes
    # The window is exact, so the keys of the last layer, from which representatives are made, are the same.
    assert [f["score"] for f in row["retrieved"][0]] == [f["score"] for f in ask(plain)[0]["retrieved"][0]]


@pytest.mark.heavy
def test_policies_that_lose_nothing_answer_as_none_does(tiny_rekv: str) -> None:
    made = [operator(tiny_rekv, policy=policy) for policy in (None, KVMerger(keep=1.0), Scissorhands(keep=1.0), ThinK(ratio=0))]
    for one in made:
        one.process(frames(interleaved("a", 9)))
    first, *others = [ask(one) for one in made]
    assert others == [first] * 3


@pytest.mark.parametrize("policy", LOSSY, ids=lambda policy: policy.type)
@pytest.mark.heavy
def test_a_share_may_be_smaller_than_a_window_that_no_blocks_are_needed_for(policy: Policy, tiny_rekv: str) -> None:
    small = {"frames_per_stream": 3, "max_streams": 1}
    with pytest.raises(ConfigError, match="window of 24 tokens needs"):
        operator(tiny_rekv, **small)
    first, second = operator(tiny_rekv, policy=policy, **small), operator(tiny_rekv, policy=policy, **small)
    first.process(frames(interleaved("a", 8)))
    second.restore(first.snapshot())
    for made in (first, second):
        made.process(frames(interleaved("a", 8, start=8)))
    assert ask(second) == ask(first)
    assert ask(first)[0]["frames_seen"] == 16


@pytest.mark.parametrize(
    "policy",
    [
        *(policy if policy.type == "kv_merger" else pytest.param(policy, marks=pytest.mark.slow) for policy in LOSSY),
        EMLLM(shortest=1, longest=3, contiguity=0.3),
    ],
    ids=lambda policy: policy.type,
)
@pytest.mark.heavy
def test_streams_go_on_from_files_whatever_the_policy(policy: Policy, tiny_rekv: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_streams": 2, "policy": policy}
    files: dict[str, Any] = {"disk_gib": 0.01, "disk_path": str(tmp_path / "blocks"), "device_gib": 0.002, **options}
    undisturbed, first, second = operator(tiny_rekv, **options), operator(tiny_rekv, **files), operator(tiny_rekv, **files)
    for made in (undisturbed, first):
        made.process(frames(interleaved("ab", 9)))
    state = first.snapshot()
    first.process(frames(interleaved("ab", 3, start=9)))  # lost with the process
    second.restore(state)
    for made in (undisturbed, second):
        made.process(frames(interleaved("ab", 9, start=9)))
    assert ask(second) == ask(undisturbed)


@pytest.mark.slow
def test_processes_answer_by_the_same_policy(tiny_rekv: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"policy": KVMerger(), "disk_gib": 0.01, "device_gib": 0.002}
    alone = operator(tiny_rekv, disk_path=str(tmp_path / "one"), **options)
    beside = operator(tiny_rekv, disk_path=str(tmp_path / "two"), answerers=1, **options)
    for made in (alone, beside):
        made.process(frames(interleaved("a", 9)))
    assert ask(beside) == []
    assert rows_of(beside.flush()) == ask(alone)
    beside.close()
    alone.close()


@pytest.mark.parametrize(("of", "to"), [(None, ThinK()), (ThinK(), None), (ThinK(), ThinK(ratio=0.2)), (ThinK(), BlockFloat())])
def test_a_snapshot_of_another_policy_is_refused(of: Policy | None, to: Policy | None, tiny_rekv: str) -> None:
    made = operator(tiny_rekv, policy=of)
    made.process(frames(interleaved("a", 3)))
    with pytest.raises(RecoveryError, match=r"was made with policy .* resume with the same .* and policy"):
        operator(tiny_rekv, policy=to).restore(made.snapshot())


# Events


class Means:
    """Random means of a film's frames."""

    def __init__(self, first: int = 0, below: int = 600) -> None:
        self.first, self.below = first, below

    def representatives(self, layer: int) -> torch.Tensor:
        drawn = torch.randn(self.below, 2, 8, generator=torch.Generator().manual_seed(layer)).add_(5)
        return drawn[self.first :]


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("contiguity", [0.0, 0.25])
def test_em_llm_reads_at_most_as_many_frames_as_allowed_from_events_that_score_high(refine: bool, contiguity: float) -> None:
    policy = block_policy(EMLLM(longest=16, refine=refine, contiguity=contiguity), SPEC)
    assert policy.select is not None and policy.is_exact
    scores = torch.zeros(600)
    scores[100:140] = 1
    chosen = policy.select(Means(), ReKVConfig(window_tokens=4000, retrieve_frames=16))(0, scores)  # type: ignore[arg-type]
    assert len(chosen) <= 16 and len(chosen) >= 12
    assert (chosen.diff() > 0).all()
    assert ((chosen >= 100 - 16) & (chosen < 140 + 16)).all()


def test_em_llm_counts_frames_from_the_first_that_is_still_there() -> None:
    policy = block_policy(EMLLM(), SPEC)
    assert policy.select is not None
    scores = torch.zeros(500)
    scores[30:50] = 1
    chosen = policy.select(Means(first=100), ReKVConfig(window_tokens=4000, retrieve_frames=8))(0, scores)  # type: ignore[arg-type]
    assert ((chosen >= 100 + 30 - 16) & (chosen < 100 + 50 + 16)).all()


# In pipeline files


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({"type": "kvmerger"}, "policy.type", "did you mean 'kv_merger'?"),
        ({"type": "kv_merger", "kept": 0.5}, "policy.kept", "unknown option of kv_merger 'kept' (did you mean 'keep'?)"),
        ({"type": "kv_merger", "heavy": 0.6}, "policy.heavy", "must be below keep=0.5"),
        ({"type": "think", "ratio": 1.0}, "policy.ratio", "must be below 1"),
        ({"type": "em_llm", "shortest": 20}, "policy.shortest", "must not be above longest=16"),
        ("think", "policy", "must be a mapping with a type"),
    ],
)
def test_what_is_wrong_with_a_policy_is_named_by_its_key(values: Any, path: str, message: str) -> None:
    options, wrong = parse_options(ReKVOptions, {"policy": values})
    assert options is None
    assert [".".join(map(str, problem.path)) for problem in wrong] == [path]
    assert message in wrong[0].message


def test_combinations_that_cannot_be_are_refused_before_the_run(tiny_rekv: str) -> None:
    with pytest.raises(ConfigError, match="chunk_frames=2 with policy em_llm"):
        ReKVOptions(policy=EMLLM(), chunk_frames=2)
    wide = ReKVOptions(checkpoint=tiny_rekv, policy=BlockFloat(block=16))
    with pytest.raises(ConfigError, match="watch: policy: block=16 with heads of 24"):
        ReKVOperator.examine(wide, "watch")
    ReKVOperator.examine(ReKVOptions(checkpoint=tiny_rekv, policy=BlockFloat(block=12)), "watch")


def document(tmp_path: Path, **options: Any) -> dict[str, Any]:
    (tmp_path / "films").mkdir(exist_ok=True)
    return {
        "name": "policies",
        "state": str(tmp_path / "state"),
        "sources": {"films": {"type": "images", "path": str(tmp_path / "films")}},
        "operators": {"watch": {"type": "rekv", "input": "films", **options}},
        "sinks": {"rows": {"type": "jsonl", "input": "watch", "path": str(tmp_path / "rows")}},
    }


def test_a_pipeline_file_gives_a_policy_and_is_printed_with_all_its_options(tmp_path: Path) -> None:
    given = document(tmp_path, policy={"type": "kv_merger", "keep": 0.25})
    spec = Pipeline.from_dict(given, overrides={"operators.watch.policy.scale_values": True}).spec
    assert spec.operators[0].options.policy == KVMerger(keep=0.25, scale_values=True)
    printed = spec.to_dict()
    assert printed["operators"]["watch"]["policy"] == {"type": "kv_merger", "keep": 0.25, "heavy": 0.0, "scale_values": True}
    assert Pipeline.from_dict(printed).spec == spec


def test_errors_of_a_pipeline_file_name_the_key_within_the_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"operators\.watch\.policy\.kept: unknown option of kv_merger 'kept'"):
        Pipeline.from_dict(document(tmp_path, policy={"type": "kv_merger", "kept": 0.25}))
    with pytest.raises(ConfigError, match=r"operators\.watch\.on_full: was renamed to on_bank_full"):
        Pipeline.from_dict(document(tmp_path, on_full="refuse"))


def test_describe_shows_every_policy_with_its_options() -> None:
    text = describe("rekv")
    for wanted in (
        "type: block_float:",
        "type: kv_merger:",
        "type: scissorhands:",
        "type: think:",
        "type: em_llm:",
        "contiguity: ",
    ):
        assert wanted in text


def test_a_question_about_the_past_reads_the_events_of_that_time(tiny_rekv: str) -> None:
    made, earlier = (operator(tiny_rekv, policy=EMLLM(shortest=1, longest=3)) for _ in range(2))
    made.process(frames(interleaved("a", 9)))
    earlier.process(frames(interleaved("a", 6)))
    wanted, got = ask(earlier)[0], ask(made, at_us=5 * STEP_US)[0]
    assert got["retrieved"] == wanted["retrieved"] and got["answer"] == wanted["answer"]
