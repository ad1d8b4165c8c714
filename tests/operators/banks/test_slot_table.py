"""The slot table: every slot free or owned once, least recently used first."""

from operators.banks import SlotTable


def test_slots_are_distinct_until_the_table_is_full():
    table = SlotTable(3)
    assert sorted(table.admit(name) for name in "abc") == [0, 1, 2]
    assert table.full and len(table) == 3 and "b" in table and "z" not in table


def test_idle_longest_is_the_one_not_touched():
    table = SlotTable(3)
    for name in "abc":
        table.admit(name)
    table.touch("a")
    assert table.idle_longest() == "b"
    assert list(table) == ["b", "c", "a"]


def test_released_slot_is_handed_out_again():
    table = SlotTable(2)
    slot = table.admit("a")
    table.admit("b")
    assert table.release("a") == slot and not table.full
    assert table.get("a") is None and table.release("a") is None
    assert table.admit("c") == slot


def test_clear_frees_everything():
    table = SlotTable(2)
    table.admit("a")
    table.clear()
    assert len(table) == 0 and sorted(table.admit(name) for name in "xy") == [0, 1]
