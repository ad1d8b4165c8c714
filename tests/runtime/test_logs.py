import logging

from pipelines.runtime.logs import Repeats


def record(name: str, line: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "file.py", line, text, None, None)


def test_a_line_that_a_client_library_repeats_comes_once_a_minute() -> None:
    repeats = Repeats()
    told = []
    for second in range(150):
        said = record("kafka.net.manager", 248, f"Connection failed in second {second}")
        said.created = 1000.0 + second
        if repeats.filter(said):
            told.append(second)
    assert told == [0, 60, 120]


def test_other_lines_of_the_library_and_all_lines_of_ours_pass() -> None:
    repeats = Repeats()
    lines = [
        record("kafka.net.manager", 248, "a"),
        record("kafka.net.manager", 133, "b"),
        record("kafka.net.connection", 248, "c"),
    ]
    assert all(repeats.filter(line) for line in lines)
    assert all(repeats.filter(record("connectors.kafka.feed", 1, "ours")) for _ in range(3))
