"""How to reach a Kafka cluster: connection options, and the clients of kafka-python made from them.

Knows nothing of messages. Secrets come as plain values here: the pipeline file takes them from the environment or a file only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from connectors.errors import ConfigError, StreambankError
from connectors.extras import need
from connectors.options import REQUIRED, option

if TYPE_CHECKING:
    from kafka import KafkaConsumer, KafkaProducer  # type: ignore[import-untyped, unused-ignore]
    from kafka.admin import KafkaAdminClient  # type: ignore[import-untyped, unused-ignore]

__all__ = ["ConnectionOptions", "admin", "consumer", "kafka_errors", "package", "producer"]

BOOTSTRAP_S = 30.0
"""How long the first connection may take, where the caller does not say."""

_RECONNECT_MAX_MS = 1000  # kafka-python's own 30 s would turn a broker's restart of 3 s into a stall of half a minute
_Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
_RESPONSE_MAX_BYTES = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """Options that the Kafka source and sink have in common."""

    bootstrap_servers: str | list[str] = option(REQUIRED, "Brokers to ask first, as host:port; a list or separated by commas.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = option(
        "PLAINTEXT",
        "Encryption (SSL) and authentication (SASL) of the connection.",
    )
    ssl_cafile: Path | None = option(
        None, "PEM file of the authority that signed the brokers' certificates; nothing: the system's."
    )
    ssl_certfile: Path | None = option(None, "PEM file of this client's certificate, where the brokers ask for one.")
    ssl_keyfile: Path | None = option(None, "PEM file of the private key that belongs to ssl_certfile.")
    ssl_password: str | None = option(None, "Password of the private key.", secret=True)
    ssl_check_hostname: bool = option(True, "Whether the brokers' certificates must be made out to their host names.")
    sasl_mechanism: _Mechanism | None = option(None, "How to authenticate where security_protocol is SASL_….")
    sasl_username: str | None = option(None, "User of SASL.", secret=True)
    sasl_password: str | None = option(None, "Password of SASL.", secret=True)
    client_id: str = option("streambank", "Name of this client in the brokers' logs and quotas.")

    def __post_init__(self) -> None:
        for server in self.servers:
            host, _, port = server.rpartition(":")
            if not host or not port.isdecimal():
                raise ConfigError(f"bootstrap_servers: {server!r} is not host:port; write for example 'kafka1:9092'")
        sasl, tls = "SASL" in self.security_protocol, "SSL" in self.security_protocol
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            given = getattr(self, name) is not None
            if sasl and not given:
                raise ConfigError(f"{name}: is missing; security_protocol {self.security_protocol} needs it")
            if given and not sasl:
                raise ConfigError(f"{name}: has no effect with security_protocol {self.security_protocol}; set SASL_SSL")
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_password"):
            if getattr(self, name) is not None and not tls:
                raise ConfigError(f"{name}: has no effect with security_protocol {self.security_protocol}; set SSL or SASL_SSL")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("ssl_certfile: must come together with ssl_keyfile")

    @property
    def servers(self) -> list[str]:
        """The brokers to ask first."""
        given = self.bootstrap_servers.split(",") if isinstance(self.bootstrap_servers, str) else self.bootstrap_servers
        servers = [server.strip() for server in given if server.strip()]
        if not servers:
            raise ConfigError("bootstrap_servers: is empty; name at least one broker, as host:port")
        return servers


def package(module: str = "kafka") -> Any:
    """Return a module of kafka-python. Raise ``MissingExtra`` where it is not installed."""
    return need(module, "a source or sink of Kafka")


def consumer(options: ConnectionOptions, *, bootstrap_s: float | None = None, **settings: Any) -> KafkaConsumer:
    """Return a consumer outside of all groups, which commits no offsets and never resets one on its own."""
    return package().KafkaConsumer(
        **_connection(options, bootstrap_s),
        metrics_enabled=False,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        allow_auto_create_topics=False,
        receive_message_max_bytes=_RESPONSE_MAX_BYTES,
        **settings,
    )


def producer(options: ConnectionOptions, **settings: Any) -> KafkaProducer:
    """Return an idempotent producer."""
    return package().KafkaProducer(
        **_connection(options),
        metrics_enabled=False,
        acks="all",
        enable_idempotence=True,  # named: kafka-python drops it without a word for settings that do not go with it
        allow_auto_create_topics=False,
        **settings,
    )


def admin(options: ConnectionOptions) -> KafkaAdminClient:
    """Return an admin client."""
    return package("kafka.admin").KafkaAdminClient(**_connection(options))


@contextlib.contextmanager
def kafka_errors(options: ConnectionOptions, kind: type[StreambankError], what: str) -> Iterator[None]:
    """Turn errors of kafka-python into ``kind``, with ``what`` was tried and what to look at."""
    errors = package("kafka.errors")
    try:
        yield
    except (errors.KafkaError, OSError) as error:
        servers = ",".join(options.servers)
        reason = str(error) or type(error).__name__
        if isinstance(error, errors.AuthorizationError):
            advice = "this user may not do that; ask for the permission (ACL), or use another user"
        elif isinstance(error, errors.UnsupportedCodecError):
            advice = "install the codec: pip install 'kafka-python[lz4,zstd,snappy]'"
        elif isinstance(error, errors.KafkaTimeoutError | OSError):
            advice = (
                "check that bootstrap_servers can be reached from here, that security_protocol "
                f"({options.security_protocol}) is that of this port, and certificate, user and password"
            )
        else:
            advice = "see the broker's log"
        raise kind(f"Kafka at {servers}: {what}: {reason}; {advice}") from error


def _connection(options: ConnectionOptions, bootstrap_s: float | None = None) -> dict[str, Any]:
    if importlib.util.find_spec("crc32c") is None:
        logger.warning("kafka-python computes checksums in Python, 10 times slower: pip install 'streambank[kafka]'")
    settings: dict[str, Any] = {
        "bootstrap_servers": options.servers,
        "client_id": options.client_id,
        "security_protocol": options.security_protocol,
        "bootstrap_timeout_ms": int((BOOTSTRAP_S if bootstrap_s is None else bootstrap_s) * 1000),
        "reconnect_backoff_max_ms": _RECONNECT_MAX_MS,
        "ssl_check_hostname": options.ssl_check_hostname,
        "ssl_password": options.ssl_password,
        "sasl_mechanism": options.sasl_mechanism,
        "sasl_plain_username": options.sasl_username,
        "sasl_plain_password": options.sasl_password,
    }
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path: Path | None = getattr(options, name)
        settings[name] = str(path.expanduser()) if path is not None else None
    return settings
