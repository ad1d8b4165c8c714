"""CPUs and GPUs of a cluster, divided among actors so that they fit onto its nodes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engine_workload import pipeline, write_lines
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import DeviceError
from pipelines.api import Pipeline
from pipelines.graph import Graph
from pipelines.runners.placement import placement
from pipelines.runners.shares import Node, Share, divide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shares")
    write_lines(path / "lines", 1)
    return path


def divided(folder: Path, nodes: list[Node], **changes: Any) -> dict[str, Share]:
    graph = Graph(Pipeline.from_dict(pipeline(folder / "lines", folder / "run", **changes)).spec)
    actors = placement(graph)
    return {str(tasks[0]): share for tasks, share in zip(actors, divide(graph, actors, nodes), strict=True)}


def test_actors_get_what_they_ask_for_where_there_is_enough(folder: Path) -> None:
    shares = divided(folder, [Node("a", 8.0)], operators__mean__num_cpus=2)
    assert shares == {"events[0]": Share(1.0), "mean[0]": Share(2.0), "rows[0]": Share(1.0)}


def test_actors_that_ask_for_more_cpus_than_there_are_get_their_part(folder: Path) -> None:
    shares = divided(folder, [Node("a", 2.0)], operators__mean__shards=6)
    assert len(shares) == 8
    assert {share.cpus for share in shares.values()} == {0.25}


def test_parts_fit_onto_nodes_that_no_actor_can_straddle(folder: Path) -> None:
    # Seven of 3/7 CPU would need 3 CPUs, but a node of one holds two of them only.
    shares = divided(folder, [Node(name, 1.0) for name in "abc"], operators__mean__shards=5)
    assert len(shares) == 7
    (cpus,) = {share.cpus for share in shares.values()}
    assert 0.3 < cpus <= 1 / 3


def test_one_that_asks_for_more_than_any_node_has_gets_the_largest_one(folder: Path) -> None:
    shares = divided(folder, [Node("a", 4.0), Node("b", 2.0), Node("c", 2.0)], operators__mean__num_cpus=64)
    assert shares["mean[0]"].cpus == 4.0
    assert shares["rows[0]"].cpus == 1.0


def test_no_actor_goes_to_a_node_without_cpus(folder: Path) -> None:
    assert divided(folder, [Node("head", 0.0), Node("a", 4.0)], sinks__rows__num_cpus=0)["rows[0]"].cpus > 0


@pytest.mark.parametrize("gpus", [0, 1])
def test_device_auto_gets_the_cpu_where_there_is_no_gpu(gpus: int, folder: Path) -> None:
    shares = divided(folder, [Node("a", 4.0)], operators__mean__device="auto", operators__mean__num_gpus=gpus)
    assert shares["mean[0]"] == Share(1.0, 0.0, "cpu")


def test_gpus_are_divided_among_the_shards_that_name_no_share(folder: Path) -> None:
    shares = divided(folder, [Node("a", 16.0, 1.0)], operators__mean__device="auto", operators__mean__shards=4)
    assert [shares[f"mean[{shard}]"] for shard in range(4)] == [Share(1.0, 0.25, "auto")] * 4


def test_no_shard_gets_parts_of_two_gpus(folder: Path) -> None:
    nodes = [Node("a", 4.0, 1.0), Node("b", 4.0, 1.0)]
    shares = divided(folder, nodes, operators__mean__device="cuda", operators__mean__num_gpus=0, operators__mean__shards=3)
    assert [shares[f"mean[{shard}]"].gpus for shard in range(3)] == [0.5] * 3


def test_a_gpu_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(DeviceError, match="asks for 1 GPU, the Ray cluster has 0"):
        divided(folder, [Node("a", 4.0)], operators__mean__device="cuda")


@given(cpus=st.lists(st.integers(1, 64), min_size=1, max_size=6), shards=st.integers(1, 32))
def test_whatever_the_nodes_the_actors_fit_and_little_is_left(cpus: list[int], shards: int, folder: Path) -> None:
    nodes = [Node(str(i), float(n)) for i, n in enumerate(cpus)]
    shares = divided(folder, nodes, operators__mean__shards=shards)
    (each,) = {share.cpus for share in shares.values()}
    assert sum(int(n / each + 1e-9) for n in cpus) >= len(shares)
    bigger = each / 0.96 + 1e-3
    assert each == 1.0 or sum(int(n / bigger) for n in cpus) < len(shares)


def test_more_cpus_never_mean_less_for_each(folder: Path) -> None:
    each = [
        divided(folder, [Node("a", float(n)), Node("b", 1.0)], operators__mean__shards=5)["rows[0]"].cpus for n in range(1, 9)
    ]
    assert all(before <= after for before, after in pairwise(each))
