"""A Ray cluster on this machine, in a process of its own: with token authentication, a dashboard for jobs, nodes to lose.

``Nodes`` starts it and speaks to it; run as a script, this module is that process.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
# A lost node is found out about in two seconds instead of a quarter of a minute; metrics are exported every second.
QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,  # a lost node refuses at once; one that is merely busy must not count as lost
    "health_check_failure_threshold": 3,
    "metrics_report_interval_ms": 1000,
}


class Nodes:
    """The cluster, seen from a test: a head with the dashboard, and ``others`` that can be lost; ``cpus`` each."""

    def __init__(self, settings: dict[str, int], *, cpus: int = 1, others: int = 2) -> None:
        from ports import free_ports  # the process that this module is run as does without

        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": "30",
            "RAY_raylet_start_wait_time_s": "240",
            "RAY_worker_register_timeout_seconds": "240",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([settings, cpus, others, *free_ports()])],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        told = self._answer()
        self.env["RAY_ADDRESS"] = self.address = told["address"]
        self.jobs_url: str = told["jobs_url"]
        self.metrics_ports: list[int] = told["metrics_ports"]
        self.session = Path(told["session"])
        """The folder with Ray's own files: logs, sockets, what jobs have uploaded."""

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on the nodes."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def lose(self, worker: int, how: str) -> None:
        """Lose a worker: ``remove`` kills all of its processes, ``raylet`` only the one that the others die with."""
        self._ask("lose", worker, how)

    def add(self) -> None:
        """Add a worker."""
        self._ask("add")

    def close(self) -> None:
        """End all nodes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError("the cluster could not be started")


def _serve(settings: dict[str, int], cpus: int, others: int, port: int) -> None:
    from ray.cluster_utils import Cluster

    each = {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": 100 << 20}
    head = {**each, "include_dashboard": True, "dashboard_port": port, "_system_config": settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    workers = [cluster.add_node(**each) for _ in range(others)]
    nodes = [cluster.head_node, *workers]
    told = {
        "address": cluster.address,
        "jobs_url": f"http://127.0.0.1:{port}",
        "metrics_ports": [node.metrics_export_port for node in nodes],
        "session": cluster.head_node.get_session_dir_path(),
    }
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        what, *words = json.loads(line)
        if what == "add":
            workers.append(cluster.add_node(**each))
        elif words[1] == "remove":
            cluster.remove_node(workers.pop(words[0]), allow_graceful=False)
        else:
            raylet = workers[words[0]].all_processes["raylet"][0].process
            raylet.kill()
            raylet.wait()
        print("{}", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))
