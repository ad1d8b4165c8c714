"""The server of a running pipeline as its clients see it: a browser, the clients of OpenAI and of MCP, and many at once."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import Tab, needs_browser
from serving_workload import FILM, FILMS, Server, running, serving, write_pipeline

from connectors.errors import ConfigError
from models import films
from pipelines import Pipeline
from pipelines.asking.questions import ask, withdraw
from pipelines.serving.app import ServeOptions, serve
from pipelines.serving.desk import Busy, Desk

pytestmark = pytest.mark.heavy

PATIENCE_S = 240.0
TOKEN = "a token of the test"
COLORS = set(films.COLORS)
QUESTION = f"what colour was the {FILM.events[0].shape}?"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    made = write_pipeline(tmp_path_factory.mktemp("plant"))
    with running(made):
        yield made


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Server]:
    with serving(pipeline) as one:
        until(lambda: len(fetch(one.url + "/api/state")["streams"]) == len(FILMS) + 1)
        yield one


def until(condition: Callable[[], Any]) -> Any:
    ends_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < ends_s
        time.sleep(0.1)
    return value


def fetch(url: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return json.loads(reply.read())


def status(url: str, body: Any = None, **headers: str) -> int:
    try:
        fetch(url, body, **headers)
    except urllib.error.HTTPError as error:
        return error.code
    except ValueError:
        pass  # no JSON, but it was given
    return 200


def picture(data: str) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


@needs_browser
def test_the_page_shows_frames_that_move_and_answers_with_their_evidence(server: Server, tmp_path: Path) -> None:
    tab = Tab(server.url, tmp_path / "profile")
    try:
        frames = "[...document.querySelectorAll('.tile img')].map(one => one.dataset.frame ?? '').join()"
        first = tab.wait(f"{frames}.split(',').filter(Boolean).length == {len(FILMS)} && {frames}")
        tab.wait(f"{frames} != '{first}'")
        assert tab.value("[...document.querySelectorAll('.tile img')].every(one => one.naturalWidth > 100)")
        tab.wait("document.querySelector('.strip canvas').width > 0 && document.title == 'plant'")
        tab.value("document.querySelector('.tile').click()")
        tab.value(f"document.querySelector('#question').value = {json.dumps(QUESTION)}")
        tab.value("document.querySelector('#ask button').click()")
        tab.wait("document.querySelectorAll('#answers .evidence img').length > 0")
        tab.wait("[...document.querySelectorAll('#answers img')].every(one => one.complete && one.naturalWidth > 0)")
        assert QUESTION in tab.text() and FILMS[0] in tab.text()
        # A click on a strip asks for the state there, and sends it.
        tab.wait(
            "document.querySelector('.strip canvas').clientHeight > 0 && document.querySelector('.strip .facts').textContent"
        )
        tab.wait(
            "document.querySelector('.strip canvas').dispatchEvent(new MouseEvent('click', {bubbles: true})), "
            "document.querySelector('#prompt').open"
        )
        tab.value("document.querySelector('#value').value = 1, document.querySelector('#prompt button[value=label]').click()")
        tab.wait("[...document.querySelectorAll('#answers li')].some(one => /write|replace|reject/.test(one.textContent))")
        tab.screenshot(tmp_path / "page.png")
        shot = cv2.imread(str(tmp_path / "page.png"))
        assert shot is not None and shot.std() > 10  # not an empty page
    finally:
        tab.close()


@needs_browser
def test_a_wrong_token_sees_nothing_and_the_right_one_all(pipeline: Pipeline, tmp_path: Path) -> None:
    with serving(pipeline, token=TOKEN) as one:
        for path in ("/api/state", "/api/frame/cam1", "/v1/models", "/page.js", "/mcp"):
            assert status(one.url + path) == 401
            assert status(one.url + path, Authorization="Bearer wrong") == 401
        assert status(one.url + "/api/ask", {"stream": "cam1", "question": QUESTION}) == 401
        assert status(one.url + "/api/state", Authorization=f"Bearer {TOKEN}") == 200
        tab = Tab(one.url, tmp_path / "profile")
        try:
            sign_in = "document.querySelector('input').value = {}, document.querySelector('form').submit()"
            tab.wait("!!document.querySelector('input[type=password]')")
            tab.value(sign_in.format("'wrong'"))
            tab.wait("document.body.innerText.includes('not the token') && !!document.querySelector('input')")
            assert "cam1" not in tab.text() and tab.value("fetch('/api/state').then(reply => reply.status)") == 401
            tab.value(sign_in.format(json.dumps(TOKEN)))
            tab.wait("document.querySelectorAll('.tile').length > 0")
        finally:
            tab.close()


def test_a_name_of_another_site_is_refused_without_a_token(server: Server) -> None:
    assert status(server.url + "/api/state", Host="evil.example.org") == 403
    assert status(server.url + "/api/ask", {"stream": "cam1"}, **{"Content-Type": "text/plain"}) == 415
    with pytest.raises(ConfigError, match="set a token"):
        ServeOptions(host="0.0.0.0")


PLANT = """\
name: plant
state: state
sources:
  rows: {type: csv, path: rows.csv}
operators:
  keys: {type: "null", input: rows}
sinks:
  live: {type: flight, inputs: [rows, keys], port: 8815}
"""


def test_ctrl_c_ends_the_server_as_it_should(tmp_path: Path) -> None:
    (tmp_path / "plant.yaml").write_text(PLANT)
    command = [sys.executable, "-m", "pipelines.cli", "serve", "plant.yaml", "--port", "0"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    assert server.stdout.readline().startswith("http://127.0.0.1:")
    server.send_signal(signal.SIGINT)
    said, _ = server.communicate(timeout=240)
    assert (server.returncode, said) == (0, "")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, also where the suite was started with that signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_not_lost_where_python_ignores_exceptions(tmp_path: Path, ctrl_c: None) -> None:
    (tmp_path / "plant.yaml").write_text(PLANT.replace("rows.csv", str(tmp_path / "rows.csv")))
    impatient = threading.Timer(30, os.kill, (os.getpid(), signal.SIGINT))

    def signal_while_ignored(url: str) -> None:
        impatient.start()
        watched = Thing()
        reference = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGINT))
        del watched
        assert reference() is None

    serve(Pipeline.load(tmp_path / "plant.yaml").spec, ServeOptions(port=0), say=signal_while_ignored)
    assert impatient.is_alive()
    impatient.cancel()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Thing:
    """Something that can be watched."""


def test_the_openai_client_lists_streams_and_gets_answers_with_evidence(server: Server) -> None:
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert {*FILMS, "pump"} == {model.id for model in client.models.list()}
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    answer = client.chat.completions.create(model=FILMS[0], messages=messages)
    message = answer.choices[0].message
    assert answer.model == FILMS[0] and answer.choices[0].finish_reason == "stop"
    assert message.content in COLORS
    [first, *_] = message.evidence  # type: ignore[attr-defined]
    assert picture(first["image_url"]["url"].removeprefix("data:image/jpeg;base64,")).shape[2] == 3
    pieces = list(client.chat.completions.create(model=FILMS[0], messages=messages, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) in COLORS
    assert pieces[-1].choices[0].finish_reason == "stop" and pieces[-1].choices[0].delta.evidence  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError, match="frames come from the stream"):
        image = {"type": "image_url", "image_url": {"url": "data:,"}}
        client.chat.completions.create(model=FILMS[0], messages=[{"role": "user", "content": [image]}])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_the_mcp_client_lists_asks_prompts_and_looks(server: Server) -> None:
    from mcp import Client

    async def talk() -> None:
        async with Client(server.url + "/mcp") as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {"list_streams", "ask", "prompt", "get_frame"}
            listed = json.loads((await client.call_tool("list_streams", {})).content[0].text)
            assert {stream["stream"] for stream in listed} == {*FILMS, "pump"}
            said = await client.call_tool("ask", {"stream": FILMS[0], "question": QUESTION})
            assert json.loads(said.content[0].text)["answer"] in COLORS
            assert picture(said.content[1].data).size
            frame = await client.call_tool("get_frame", {"stream": FILMS[1]})
            assert picture(frame.content[1].data).size
            told = await client.call_tool("prompt", {"stream": "pump", "kind": "tell", "value": "1"})
            assert json.loads(told.content[0].text)["op"] == "tell"
            wrong = await client.call_tool("get_frame", {"stream": "nobody"})
            assert wrong.is_error and "nobody" in wrong.content[0].text

    asyncio.run(talk())


def test_a_hundred_questions_at_once_are_answered(server: Server) -> None:
    def answer(number: int) -> Any:
        body = {"model": FILMS[number % 2], "messages": [{"role": "user", "content": QUESTION}]}
        return fetch(server.url + "/v1/chat/completions", body)["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(100) as many:
        answers = list(many.map(answer, range(100)))
    assert len(answers) == 100 and set(answers) <= COLORS
    assert server.desk.load == (0, 0)


def test_a_question_stands_until_it_is_withdrawn(pipeline: Pipeline, server: Server) -> None:
    [standing] = ask(pipeline.spec, QUESTION, [FILMS[0]], standing=True)
    assert standing.ok and standing.row is not None and standing.row["status"] == "standing"
    [gone] = withdraw(pipeline.spec, standing.id, [FILMS[0]])
    assert gone.ok and gone.row is not None and gone.row["status"] == "withdrawn"
    [again] = withdraw(pipeline.spec, standing.id, [FILMS[0]])
    assert not again.ok
    with pytest.raises(ConfigError, match="--debounce: has a meaning for standing questions only"):
        ask(pipeline.spec, QUESTION, [FILMS[0]], debounce_s=3.0)


def test_more_than_may_wait_are_refused_and_a_cancelled_one_frees_its_reader(pipeline: Pipeline) -> None:
    desk = Desk(pipeline.spec, readers=2, waiting=1, timeout_s=PATIENCE_S)

    async def crowd() -> None:
        # About a time that does not come: each holds its reader.
        asked = [asyncio.ensure_future(desk.ask(FILMS[0], QUESTION, at="09:00:00")) for _ in range(3)]
        while desk.load != (3, 2):
            await asyncio.sleep(0.05)
        with pytest.raises(Busy, match="3 questions wait already"):
            await desk.ask(FILMS[0], QUESTION)
        for one in asked:
            one.cancel()
        ends_s = time.monotonic() + PATIENCE_S
        while desk.load != (0, 0) and time.monotonic() < ends_s:
            await asyncio.sleep(0.05)
        assert desk.load == (0, 0)
        assert (await desk.ask(FILMS[0], QUESTION)).text in COLORS

    try:
        asyncio.run(crowd())
    finally:
        desk.close()


def test_a_client_that_goes_away_frees_its_reader(server: Server) -> None:
    import http.client

    host, _, port = server.url.removeprefix("http://").partition(":")
    for stream in (False, True):
        line = http.client.HTTPConnection(host, int(port))
        body = {
            "model": FILMS[0],
            "messages": [{"role": "user", "content": QUESTION}],
            "at_offset_s": 32_400.0,
            "stream": stream,
        }
        line.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        until(lambda: server.desk.load == (1, 1))
        line.close()
        until(lambda: server.desk.load == (0, 0))
