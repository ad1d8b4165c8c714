"""What the actors of a pipeline ask of a cluster: CPUs as nodes say, GPUs divided, bundles that Ray can place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_workload import pipeline, write_lines

from connectors.errors import DeviceError
from pipelines.api import Pipeline
from pipelines.graph import Graph
from pipelines.runners.placement import placement
from pipelines.runners.shares import Node, Share, cannot_fit, divide

Bundles = list[dict[str, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shares")
    write_lines(path / "lines", 1)
    return path


def divided(folder: Path, nodes: list[Node], **changes: Any) -> tuple[dict[str, Share], Bundles]:
    graph = Graph(Pipeline.from_dict(pipeline(folder / "lines", folder / "run", **changes)).spec)
    actors = placement(graph)
    shares, bundles = divide(graph, actors, nodes)
    return {str(tasks[0]): share for tasks, share in zip(actors, shares, strict=True)}, bundles


def test_sources_and_sinks_reserve_nothing_unless_asked_and_go_where_their_operator_is(folder: Path) -> None:
    shares, bundles = divided(folder, [Node("a", 8.0)], operators__mean__num_cpus=2)
    assert shares == {"events[0]": Share(0.0), "mean[0]": Share(2.0), "rows[0]": Share(0.0)}
    assert bundles == [{"CPU": 2.0}]
    shares, bundles = divided(folder, [Node("a", 8.0)], sources__events__num_cpus=0.5, sinks__rows__num_cpus=3)
    assert [(share.cpus, share.bundle) for share in shares.values()] == [(0.5, 0), (1.0, 1), (3.0, 2)]
    assert bundles == [{"CPU": 0.5}, {"CPU": 1.0}, {"CPU": 3.0}]


def test_shards_that_reserve_nothing_are_spread_over_those_next_to_them(folder: Path) -> None:
    changes = {"sources__events__parallelism": 4, "operators__mean__shards": 3, "sinks__rows__shards": 2}
    shares, bundles = divided(folder, [Node("a", 8.0)], **changes)
    places = {name: share.bundle for name, share in shares.items()}
    assert bundles == [{"CPU": 1.0}] * 3
    assert [places[f"mean[{shard}]"] for shard in range(3)] == [0, 1, 2]
    assert [places[f"events[{shard}]"] for shard in range(4)] == [0, 1, 2, 0]
    assert [places[f"rows[{shard}]"] for shard in range(2)] == [0, 1]


def test_what_is_asked_for_does_not_shrink_with_the_cluster(folder: Path) -> None:
    _, bundles = divided(folder, [Node("a", 2.0)], operators__mean__shards=6)
    assert bundles == [{"CPU": 1.0}] * 6


@pytest.mark.parametrize(
    ("changes", "nodes", "why"),
    [
        ({}, [Node("a", 1.0)], None),
        ({"operators__mean__shards": 3}, [Node("a", 2.0)], "all actors together ask for 3 CPUs, and all nodes have 2"),
        ({"operators__mean__num_cpus": 3}, [Node("a", 2.0)] * 2, "one actor asks for 3 CPUs, and no node has more than 2"),
        ({"operators__mean__num_cpus": 0.1}, [], "one actor asks for 0.1 CPUs, and no node has more than 0"),
        (
            {"operators__mean__device": "cuda", "operators__mean__num_gpus": 2},
            [Node("a", 2.0, 1.0)] * 2,
            "one actor asks for 2 GPUs, and no node has more than 1",
        ),
    ],
)
def test_what_can_never_fit_is_said(changes: dict[str, Any], nodes: list[Node], why: str | None, folder: Path) -> None:
    assert cannot_fit(divided(folder, nodes, **changes)[1], nodes) == why


def test_no_bundle_is_empty_so_that_no_actor_goes_to_a_node_without_cpus(folder: Path) -> None:
    shares, bundles = divided(folder, [Node("head", 0.0), Node("a", 4.0)], operators__mean__num_cpus=0)
    assert len(bundles) == len(shares) == 3
    assert all(bundle["CPU"] > 0 for bundle in bundles)
    assert sum(bundle["CPU"] for bundle in bundles) < 0.01
    assert [share.bundle for share in shares.values()] == [0, 1, 2]


@pytest.mark.parametrize("gpus", [0, 1])
def test_device_auto_gets_the_cpu_where_there_is_no_gpu(gpus: int, folder: Path) -> None:
    shares, _ = divided(folder, [Node("a", 4.0)], operators__mean__device="auto", operators__mean__num_gpus=gpus)
    assert shares["mean[0]"] == Share(1.0, 0.0, "cpu")


def test_gpus_are_divided_among_the_shards_that_name_no_share(folder: Path) -> None:
    changes = {"operators__mean__device": "auto", "operators__mean__shards": 4}
    shares, bundles = divided(folder, [Node("a", 16.0, 1.0)], **changes)
    assert [shares[f"mean[{shard}]"] for shard in range(4)] == [Share(1.0, 0.25, "auto", shard) for shard in range(4)]
    assert bundles == [{"CPU": 1.0, "GPU": 0.25}] * 4


def test_no_shard_gets_parts_of_two_gpus(folder: Path) -> None:
    nodes = [Node("a", 4.0, 1.0), Node("b", 4.0, 1.0)]
    changes = {"operators__mean__device": "cuda", "operators__mean__num_gpus": 0, "operators__mean__shards": 3}
    shares, _ = divided(folder, nodes, **changes)
    assert [shares[f"mean[{shard}]"].gpus for shard in range(3)] == [0.5] * 3


def test_a_gpu_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(DeviceError, match="asks for 1 GPU, the Ray cluster has 0"):
        divided(folder, [Node("a", 4.0)], operators__mean__device="cuda")
