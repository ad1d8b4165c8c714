"""The sink ``webhook`` against an endpoint on this machine: nothing is lost, and repeats can be told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from engine_workload import run_process, value_batch

from connectors.errors import ConfigError, SinkError
from connectors.sinks.webhook import WebhookOptions, WebhookSink
from pipelines import Pipeline

Answer = Callable[[int], int]
"""Number of the request, from 0 → status."""


class Endpoint:
    """Keeps what it was sent."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.url = ""
        self.taken: list[tuple[str, list[dict[str, Any]]]] = []
        """Key and rows of each request that got a 2xx."""
        self.headers: list[dict[str, str]] = []

    def rows(self) -> list[dict[str, Any]]:
        """What a receiver that remembers keys has."""
        return [row for rows in dict(self.taken).values() for row in rows]


@contextmanager
def endpoint(answer: Answer = lambda number: 200) -> Iterator[Endpoint]:
    kept = Endpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = kept.answer(len(kept.headers))
            kept.headers.append(dict(self.headers))
            if 200 <= status < 300:
                kept.taken.append((self.headers["Idempotency-Key"], json.loads(body)))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            if status == 403:
                self.wfile.write(b"no such user")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_port}/hook?key=hush"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def opened(kept: Endpoint, folder: Path, **options: Any) -> WebhookSink:
    sink = WebhookSink(WebhookOptions(url=kept.url, path=folder, **{"retry_s": 5.0, **options}))
    sink.open({"events": value_batch([]).schema}, attempt=1, shard=0)
    return sink


def staged_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_rows_are_posted_when_their_epoch_is_committed_and_not_before(tmp_path: Path) -> None:
    with endpoint() as kept:
        sink = opened(kept, tmp_path, batch_rows=4, token="hush")
        sink.write("events", value_batch(list("abcabcabcd")))
        staged = sink.prepare(0)
        assert kept.headers == []
        sink.commit(0, staged)
        sink.commit(0, staged)  # what is gone has been posted
        sink.close()
    assert [len(rows) for _, rows in kept.taken] == [4, 4, 2]
    assert [row["stream_id"] for row in kept.rows()] == list("abcabcabcd")
    assert len({key for key, _ in kept.taken}) == 3
    assert {header["Authorization"] for header in kept.headers} == {"Bearer hush"}
    assert {header["Content-Type"] for header in kept.headers} == {"application/json"}
    assert staged_files(tmp_path) == []


def test_an_endpoint_that_is_busy_is_asked_again_with_the_same_key(tmp_path: Path) -> None:
    with endpoint(lambda number: (503, 429, 200)[number]) as kept:
        sink = opened(kept, tmp_path)
        sink.write("events", value_batch(["a"]))
        sink.commit(0, sink.prepare(0))
        sink.close()
    assert len({header["Idempotency-Key"] for header in kept.headers}) == 1
    assert len(kept.rows()) == 1


@pytest.mark.parametrize(
    ("status", "retry_s", "said"),
    [
        (
            403,
            5.0,
            r"/hook: answers 403 Forbidden \(no such user\)\. Rows of committed epochs wait in .*; correct url or token",
        ),
        (302, 5.0, r"/hook: answers 302 Found\."),
        (500, 0.0, r"/hook: answers 500 Internal Server Error, for 0 s \(retry_s\)\. .* --resume to send them"),
    ],
)
def test_what_is_refused_stays_and_is_posted_by_the_next_run(status: int, retry_s: float, said: str, tmp_path: Path) -> None:
    refuse = [True]
    with endpoint(lambda _: status if refuse[0] else 201) as kept:
        sink = opened(kept, tmp_path, retry_s=retry_s)
        sink.write("events", value_batch(["a", "b"]))
        staged = sink.prepare(0)
        with pytest.raises(SinkError, match=said) as caught:
            sink.commit(0, staged)
        assert "hush" not in str(caught.value)
        sink.close()
        refuse[0] = False
        again = WebhookSink(sink.options)
        again.recover(0, staged)
    assert [row["stream_id"] for row in kept.rows()] == ["a", "b"]
    assert staged_files(tmp_path) == []


def test_an_endpoint_that_is_away_is_said(tmp_path: Path) -> None:
    with endpoint() as kept:
        pass
    sink = opened(kept, tmp_path, retry_s=0.0)
    sink.write("events", value_batch(["a"]))
    staged = sink.prepare(0)
    with pytest.raises(SinkError, match=r"/hook: cannot be reached \(.*refused.*\), for 0 s"):
        sink.commit(0, staged)


def test_what_was_not_committed_is_not_posted(tmp_path: Path) -> None:
    with endpoint() as kept:
        sink = opened(kept, tmp_path)
        sink.write("events", value_batch(["a"]))
        committed = sink.prepare(0)
        sink.write("events", value_batch(["b"]))
        sink.prepare(1)
        WebhookSink(sink.options).recover(0, committed)
    assert [row["stream_id"] for row in kept.rows()] == ["a"]
    assert staged_files(tmp_path) == []


def test_rows_that_were_changed_are_not_posted(tmp_path: Path) -> None:
    with endpoint() as kept:
        sink = opened(kept, tmp_path)
        sink.write("events", value_batch(["a"]))
        staged = sink.prepare(0)
        (tmp_path / staged[0].staged).write_text('{"stream_id": "x"}\n')
        with pytest.raises(SinkError, match="was changed after its epoch was committed"):
            WebhookSink(sink.options).recover(0, staged)
    assert kept.headers == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.org", "must be an address"),
        ("hook", "must be an address"),
        ("http://me:pw@example.org/", "must not hold a user"),
    ],
)
def test_addresses_are_checked(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"url: {said}"):
        WebhookOptions(url=url, path=tmp_path)


def test_it_takes_one_input(tmp_path: Path) -> None:
    sink = WebhookSink(WebhookOptions(url="http://example.org", path=tmp_path))
    with pytest.raises(ConfigError, match="a webhook sink takes one input"):
        sink.examine({"a": value_batch([]).schema, "b": value_batch([]).schema})


def document(folder: Path, url: str) -> dict[str, Any]:
    return {
        "name": "hook",
        "state": str(folder / "state"),
        "epoch_s": 0.5,  # at 20 rows a second every epoch has rows, on a busy machine too
        "sources": {
            "events": {
                "type": "jsonl",
                "path": str(folder / "events.jsonl"),
                "stream_id": "k",
                "event_time": "t",
                "event_time_unit": "s",
                "pace": 20.0,
            }
        },
        "sinks": {"hook": {"type": "webhook", "input": "events", "url": url, "path": str(folder / "waiting"), "batch_rows": 7}},
    }


@pytest.mark.heavy
@pytest.mark.parametrize("point", ["between_renames:epoch=1", "after_manifest:epoch=1", "after_prepare:epoch=1"])
def test_a_killed_run_that_is_resumed_loses_nothing_and_repeats_can_be_told(point: str, tmp_path: Path) -> None:
    lines = [json.dumps({"k": f"k{n % 3}", "v": n, "t": n}) for n in range(60)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    with endpoint() as kept:
        assert run_process(document(tmp_path, kept.url), fault=point) < 0
        Pipeline.from_dict(document(tmp_path, kept.url)).run(resume=True)
    assert sorted(row["v"] for row in kept.rows()) == list(range(60))
    if point.startswith("between_renames"):
        assert len(kept.taken) > len(dict(kept.taken))  # it was sent twice, under one key
