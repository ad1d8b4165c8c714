"""The files that people hand to `ray up`, kubectl and Grafana: what Ray's own validators and our own names say of them."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.runners import ray_metrics

ROOT = Path(__file__).resolve().parents[2]
CLUSTER_FILES = ["ray_cluster.yaml", "docs/cluster/on_prem.yaml"]


def load(name: str) -> dict[str, Any]:
    values = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(values, dict)
    return values


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", CLUSTER_FILES)
def test_ray_accepts_the_cluster_file(name: str) -> None:
    config = prepare_config(load(name))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]


def test_ray_refuses_a_cluster_file_with_a_wrong_key() -> None:
    config = deepcopy(load("ray_cluster.yaml"))
    config["workers"] = {}
    with pytest.raises(Exception, match="workers"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLUSTER_FILES)
def test_every_node_starts_with_token_authentication_and_time_for_a_last_epoch(name: str) -> None:
    config = load(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_JOB_STOP_WAIT_TIME_S=30" in start
    assert any("auth_token" in path for path in config["file_mounts"])


def test_the_cloud_workers_have_a_gpu_and_the_head_has_none() -> None:
    types = load("ray_cluster.yaml")["available_node_types"]
    assert types["gpu_worker"]["resources"]["GPU"] >= 1
    assert "GPU" not in types["head"]["resources"]


def test_images_have_the_pinned_ray() -> None:
    assert f"ray:{pinned('ray')}-" in load("ray_cluster.yaml")["docker"]["image"]
    assert load("docs/cluster/kuberay.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")


def test_the_kubernetes_job_resumes_and_its_pods_share_a_volume_for_the_state() -> None:
    job = load("docs/cluster/kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["entrypoint"].startswith("streambank run ")
    assert job["spec"]["entrypoint"].endswith(" --runner ray --resume")
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:
        spec = pod["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert set(mounts) == volumes
        assert mounts["shared"] == "/mnt/streambank"
    assert "nvidia.com/gpu" in pods[1]["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_dashboard_asks_for_metrics_and_tags_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, set[str]] = {}

    def metric(name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        made[f"ray_{name}"] = set(tag_keys)

    monkeypatch.setattr(ray_metrics, "Counter", metric)
    monkeypatch.setattr(ray_metrics, "Gauge", metric)
    ray_metrics.TaskMetrics("p", ray_metrics.TaskId("detect", 0))
    ray_metrics.RunMetrics("p")

    dashboard = json.loads((ROOT / "docs/cluster/grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for expression in asked:
        names = re.findall(r"ray_streambank_\w+", expression)
        assert names
        grouped = [tag.strip() for tags in re.findall(r"by \(([^)]*)\)", expression) for tag in tags.split(",")]
        tags = {*grouped, *re.findall(r"(\w+)=~?\"", expression)}
        for name in names:
            assert name in made
            assert tags <= made[name]
