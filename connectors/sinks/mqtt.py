"""Sink: a JSON message for each row to an MQTT broker, once the row's epoch is committed (MQTT 3.1.1, quality of service 1).

A message that is sent again has the same ``message_id``: repeats do no harm to a subscriber that keeps the ids.
"""

from __future__ import annotations

import json
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from connectors.errors import ConfigError, SinkError
from connectors.extras import optional
from connectors.options import REQUIRED, option
from connectors.sinks.delivered import DeliveringOptions, DeliveringSink

mqtt = optional("paho.mqtt.client")

__all__ = ["ID", "MqttOptions", "MqttSink"]

ID = "message_id"
"""Key of every message."""

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_REFUSED = ("Bad user name or password", "Not authorized", "Client identifier not valid", "Unsupported protocol version")
"""What a broker says that will not pass on its own."""
_IN_FLIGHT = 200
_PLACE = "{stream_id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MqttOptions(DeliveringOptions):
    """Options of the sink ``mqtt``."""

    url: str = option(REQUIRED, "The broker: mqtt://HOST[:PORT], or mqtts://HOST[:PORT] with TLS.")
    topic: str = option("streambank/{stream_id}", "Topic of a row; `{stream_id}` stands for its stream.")
    user: str | None = option(None, "User name.")
    password: str | None = option(None, "Password.", secret=True)
    ca: Path | None = option(None, "File of the authority that signed the broker's certificate. Default: the system's.")
    retain: bool = option(False, "The broker keeps the last message of each topic for those that subscribe later.")

    def __post_init__(self) -> None:
        DeliveringOptions.__post_init__(self)
        parts = urllib.parse.urlsplit(self.url)
        try:
            sound = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/")
        except ValueError:
            sound = False
        if not sound:
            raise ConfigError("url: must be an address such as mqtt://broker.example.org:1883")
        if parts.username or parts.password:
            raise ConfigError("url: must not hold a user or password; give user and password")
        if not self.topic or set("+#\0") & set(self.topic) or self.topic.startswith("$"):
            raise ConfigError(f"topic: {self.topic!r} cannot be published to; leave out +, # and a $ at its beginning")
        if self.password is not None and self.user is None:
            raise ConfigError("password: needs a user")
        if ID in self.written_names():
            raise ConfigError(f"columns: {ID} is the name of what tells repeats apart; call the column something else")
        if _PLACE in self.topic and (
            "stream_id" in self.exclude or (self.columns is not None and "stream_id" not in self.columns)
        ):
            raise ConfigError("topic: has {stream_id}, so the column stream_id must be among those that are sent")


class MqttSink(DeliveringSink):
    """Publishes JSON objects."""

    Options: ClassVar[type] = MqttOptions
    kind = "mqtt"
    options: MqttOptions  # type: ignore[assignment]

    def __init__(self, options: MqttOptions) -> None:
        super().__init__(options)  # type: ignore[arg-type]
        named = options.columns if isinstance(options.columns, dict) else {}
        self._stream_key = named.get("stream_id", "stream_id")

    def address(self) -> str:
        """Return the broker's address."""
        return self.options.url.rstrip("/")

    def deliver(self, path: Path, identity: str) -> None:
        """Publish the file's lines, all of them again where the broker was lost in between."""
        self.until_taken(lambda: self._publish(path, identity), self.options.retry_s)

    def _publish(self, path: Path, identity: str) -> str | None:
        """Connect and publish; return what is wrong where it may pass. Raise ``SinkError`` otherwise."""
        sending = _Connection(self.options)
        try:
            problem = sending.open()
            if problem is None:
                with path.open("rb") as lines:
                    problem = sending.send(self._messages(lines, identity))
        finally:
            sending.close()
        if problem is not None and problem.startswith(_REFUSED):
            then = "correct user or password, then run again with --resume"
            raise SinkError(f"{self.address()}: the broker says: {problem}. {self.held(then)}")
        return problem

    def _messages(self, lines: Any, identity: str) -> Iterator[tuple[str, bytes]]:
        """Yield topic and payload of each line."""
        place = _PLACE in self.options.topic
        for number, line in enumerate(lines):
            text = line.rstrip(b"\n")
            topic = self.options.topic
            if place:
                topic = topic.replace(_PLACE, _level(str(json.loads(text)[self._stream_key])))
            rest = b"," + text[1:] if text != b"{}" else b"}"
            yield topic, b'{"%s":"%s-%d"' % (ID.encode(), identity.encode(), number) + rest


class _Connection:
    """A client for one file, with a thread of the library's own."""

    def __init__(self, options: MqttOptions) -> None:
        self._options = options
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.max_inflight_messages_set(_IN_FLIGHT)
        if options.user is not None:
            self._client.username_pw_set(options.user, options.password)
        if options.url.startswith("mqtts:"):
            context = ssl.create_default_context(cafile=None if options.ca is None else str(options.ca))
            self._client.tls_set_context(context)
        self._answered, self._lost = threading.Event(), threading.Event()
        self._refusal: str | None = None
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._lost.set()

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._refusal = str(reason) if reason.is_failure else None
        self._answered.set()

    def open(self) -> str | None:
        """Connect; return what is wrong."""
        parts = urllib.parse.urlsplit(self._options.url)
        self._client.connect_timeout = self._options.timeout_s
        try:
            self._client.connect(parts.hostname, parts.port or _PORTS[parts.scheme])
        except (OSError, ValueError) as error:
            return f"cannot be reached ({error})"
        self._client.loop_start()
        if not self._answered.wait(self._options.timeout_s):
            return f"did not answer within {self._options.timeout_s:g} s"
        return self._refusal

    def send(self, messages: Iterator[tuple[str, bytes]]) -> str | None:
        """Publish messages and wait until the broker has taken all of them; return what is wrong."""
        waiting: list[Any] = []
        for topic, payload in messages:
            waiting.append(self._client.publish(topic, payload, qos=1, retain=self._options.retain))
            if len(waiting) >= _IN_FLIGHT and (problem := self._wait(waiting)) is not None:
                return problem
        return self._wait(waiting)

    def _wait(self, waiting: list[Any]) -> str | None:
        """Wait for what was published, which leaves the list."""
        for sent in waiting:
            try:
                sent.wait_for_publish(self._options.timeout_s)
            except (RuntimeError, ValueError) as error:
                return f"did not take a message ({error})"
            if not sent.is_published():
                return (
                    "lost the connection" if self._lost.is_set() else f"did not take a message in {self._options.timeout_s:g} s"
                )
        waiting.clear()
        return None

    def close(self) -> None:
        """Part from the broker; the thread ends."""
        self._client.disconnect()
        self._client.loop_stop()


def _level(stream_id: str) -> str:
    """Return a stream's name as a part of a topic: what topics cannot hold is escaped as in URLs."""
    return "".join(urllib.parse.quote(one, safe="") if one in "+#\0%" else one for one in stream_id)
