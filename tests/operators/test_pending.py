"""Items wait per stream until event time is behind theirs, within bounds, over snapshots."""

from operators.pending import Pending
from operators.state import State


def test_items_are_due_once_event_time_is_behind_theirs_in_the_order_of_asking():
    pending = Pending("waiting", 3)
    for at_us, name in ((20, "late"), (10, "early"), (20, "second")):
        assert pending.add("a", at_us, {"name": name})
    assert not pending.add("a", 5, {"name": "one too many"}) and pending.add("b", 5, {"name": "other"})
    assert pending.due("a", 10) == [] and pending.due("a", 15) == [{"name": "early"}]
    assert len(pending) == 3
    assert [item["name"] for item in pending.due("a", 21)] == ["late", "second"]
    assert pending.due("unknown", 99) == [] and pending.close("b") == [{"name": "other"}] and len(pending) == 0


def test_what_is_due_comes_in_the_order_of_its_time_whatever_the_steps():
    for steps in ((9,), (4, 9), (2, 4, 6, 9)):
        pending = Pending("waiting", 4)
        for number, (stream_id, at_us) in enumerate([("b", 3), ("a", 5), ("a", 3), ("b", 8), ("a", 20)]):
            assert pending.add(stream_id, at_us, {"number": number})
        due = [(stream_id, item["number"]) for step in steps for stream_id, item in pending.due_everywhere(step)]
        assert due == [("a", 2), ("b", 0), ("a", 1), ("b", 3)]
        assert len(pending) == 1


def test_snapshot_restores_what_waits():
    pending = Pending("waiting", 2)
    pending.add("a", 7, {"text": "ü?", "n": 1})
    state = State(streams=["a", "b"])
    pending.export(state)
    other = Pending("waiting", 2)
    other.add("c", 1, {})
    other.load(state)
    assert other.due("a", 8) == [{"text": "ü?", "n": 1}] and len(other) == 0
