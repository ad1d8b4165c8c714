"""A real Apache Kafka broker (KRaft, one node) for tests and benchmarks: free loopback ports, killed and restarted at will.

Jars come by Maven (``pom.xml``) into ``build/kafka``, once. ``unavailable`` says in one line what is missing, if anything.
Listeners: PLAINTEXT, SSL with a self-signed certificate, SASL_SSL with SCRAM-SHA-512.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewPartitions, NewTopic
from kafka.errors import KafkaError
from ports import free_ports

__all__ = ["MORTAL", "Broker", "committed_records", "unavailable"]

USER, PASSWORD = "alice", "alice-secret"
_POM = Path(__file__).with_name("pom.xml")
_LIBS = Path(__file__).resolve().parents[2] / "build" / "kafka" / "libs"
_START_S = 240.0
_TRIES = 5
"""How often ports are drawn: another process may take one between its choice and the start of the broker."""
MORTAL = {"broker.heartbeat.interval.ms": "300", "broker.session.timeout.ms": "3000"}
"""Settings of a broker that is killed: only after the second it may register again. A busy machine is late with the first."""
_STORE_PASSWORD = "not-a-secret"
_CLUSTER_ID = "-lPZ3MOYS6mBQ3R3qqlBGg"
"""One in 64 random identifiers begins with a dash, which looks like an option: no draw, and always the awkward kind."""


def unavailable() -> str | None:
    """Return why no broker can be started here, in one line that says what to do; None if one can."""
    if shutil.which("java") is None or shutil.which("keytool") is None:
        return "Java 17 is needed for a real Kafka broker: apt-get install openjdk-17-jre-headless"
    try:
        jars()
    except (OSError, subprocess.SubprocessError) as error:
        return f"no Kafka jars in build/kafka/libs and Maven cannot fetch them; apt-get install maven: {error}"
    return None


def jars() -> Path:
    """Return the folder of the broker's jars; let Maven fetch them if they are not there."""
    wanted = _POM.read_bytes()
    made_from = _LIBS / "made-from.xml"
    _LIBS.mkdir(parents=True, exist_ok=True)
    with (_LIBS.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made_from.exists() or made_from.read_bytes() != wanted:
            command = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies"]
            command += [f"-DoutputDirectory={_LIBS}", "-DincludeScope=runtime"]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            made_from.write_bytes(wanted)
    return _LIBS


class Broker:
    """One broker process. ``kill`` and ``start`` keep data and ports; ``settings`` are for its properties."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        self.ports: dict[str, int]
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._has_run = False
        folder.mkdir(parents=True, exist_ok=True)
        self._make_certificate()
        self._draw_ports()
        scram = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
        self._java(
            "kafka.tools.StorageTool", "format", f"--cluster-id={_CLUSTER_ID}", "-c", "server.properties", "--add-scram", scram
        )

    @property
    def address(self) -> str:
        """``host:port`` without encryption."""
        return f"127.0.0.1:{self.ports['PLAINTEXT']}"

    @property
    def tls_address(self) -> str:
        """``host:port`` with TLS."""
        return f"localhost:{self.ports['SSL']}"

    @property
    def sasl_address(self) -> str:
        """``host:port`` with TLS and SCRAM-SHA-512."""
        return f"localhost:{self.ports['SASL_SSL']}"

    def start(self) -> None:
        """Start the process and wait until it answers. The first time, other ports are tried where some are taken."""
        for tries in range(_TRIES):
            log = self._start()
            if log is None:
                self._has_run = True
                return
            if self._has_run or "Address already in use" not in log or tries + 1 == _TRIES:
                raise RuntimeError(f"the Kafka broker did not start; the end of its log:\n{log}")
            self._draw_ports()

    def _start(self) -> str | None:
        """Start the process and wait until it answers; return the end of its log where it does not."""
        log = (self.folder / "broker.log").open("ab")
        command = [*self._command("-Xmx256m"), "kafka.Kafka", "server.properties"]
        self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        log.close()
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.ports["PLAINTEXT"]), 1).close()
                KafkaAdminClient(bootstrap_servers=self.address, bootstrap_timeout_ms=1000).close()
                return None
            except (KafkaError, OSError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    return (self.folder / "broker.log").read_text(errors="replace")[-4000:]
                time.sleep(0.05)

    def kill(self) -> None:
        """End the process as a power cut would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    stop = kill
    """Nothing is kept after the tests, so nothing need be shut down in good order."""

    def create_topic(self, name: str, partitions: int = 1, **settings: str) -> str:
        """Make a topic and return its name. ``settings``: topic configuration with ``_`` for ``.``."""
        configs = {key.replace("_", "."): value for key, value in settings.items()}
        with self.admin() as admin:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
            admin.wait_for_topics([name], timeout_ms=60_000)
        return name

    def add_partitions(self, name: str, total: int) -> None:
        """Give a topic more partitions, and wait until clients see them."""
        with self.admin() as admin:
            admin.create_partitions({name: NewPartitions(total_count=total)})
            deadline = time.monotonic() + 60
            while len(admin.describe_topics([name])[0]["partitions"]) < total and time.monotonic() < deadline:
                time.sleep(0.05)
            admin.wait_for_topics([name], timeout_ms=60_000)

    @contextlib.contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """Give an admin client."""
        client = KafkaAdminClient(bootstrap_servers=self.address)
        try:
            yield client
        finally:
            client.close()

    def _command(self, memory: str) -> list[str]:
        options = [memory, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.apache.logging.log4j.level=WARN"]
        return ["java", *options, "-cp", f"{jars()}/*"]

    def _java(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command("-Xmx128m"), *arguments], cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{arguments[0]} failed:\n{done.stdout}{done.stderr}")

    def _make_certificate(self) -> None:
        store = ["-storetype", "PKCS12", "-keystore", "server.p12", "-storepass", _STORE_PASSWORD, "-alias", "server"]
        names = ["-dname", "CN=localhost", "-ext", "SAN=dns:localhost,ip:127.0.0.1", "-ext", "BC=ca:true"]
        make = ["keytool", "-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "3650", *names, *store]
        subprocess.run(make, cwd=self.folder, check=True, capture_output=True)
        export = ["keytool", "-exportcert", "-rfc", "-file", str(self.ca_file.absolute()), *store]
        subprocess.run(export, cwd=self.folder, check=True, capture_output=True)

    def _draw_ports(self) -> None:
        self.ports = dict(zip(("PLAINTEXT", "SSL", "SASL_SSL", "CONTROLLER"), free_ports(4), strict=True))
        (self.folder / "server.properties").write_text(self._properties())

    def _properties(self) -> str:
        hosts = {name: "localhost" if "SSL" in name else "127.0.0.1" for name in self.ports}
        listeners = {name: f"{name}://{hosts[name]}:{port}" for name, port in self.ports.items()}
        advertised = [listener for name, listener in listeners.items() if name != "CONTROLLER"]
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.ports['CONTROLLER']}",
            "listeners": ",".join(listeners.values()),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str((self.folder / "server.p12").absolute()),
            "ssl.keystore.password": _STORE_PASSWORD,
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "log.dirs": str((self.folder / "data").absolute()),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
            "log.initial.task.delay.ms": "1000",
            "log.retention.ms": "-1",  # messages of tests are of any age
            "log.retention.check.interval.ms": "1000",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
            **self._settings,
        }
        return "".join(f"{key}={value}\n" for key, value in values.items())


def committed_records(broker: Broker, topic: str, *, isolation: str = "read_committed", **settings: object) -> list[tuple]:
    """Read a whole topic by a consumer of its own: ``(partition, offset, key, value, headers, timestamp)``, by partition."""
    consumer = KafkaConsumer(bootstrap_servers=broker.address, isolation_level=isolation, group_id=None, **settings)
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        rows: list[tuple] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=200, max_records=10_000).values():
                rows += [(r.partition, r.offset, r.key, r.value, r.headers, r.timestamp) for r in records]
        return sorted(rows, key=lambda row: row[:2])
    finally:
        consumer.close()
