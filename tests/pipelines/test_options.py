"""Options classes read by ``pipelines.options``: choices come from ``Literal`` annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from connectors.options import option
from pipelines.options import option_infos, parse_options

Fruit = Literal["apple", "pear"]


@dataclass(frozen=True, kw_only=True)
class Basket:
    """Options with choices of every form."""

    fruit: Fruit = option("apple", "One fruit.")
    second: Fruit | None = option(None, "Another one.")
    spelled: Literal[Fruit, "plum"] = option("plum", "Choices that include others.")
    many: list[Fruit] = option([], "Several.")
    seats: Literal[2, 4] = option(2, "How many seats.")
    size: Literal["auto"] | float = option("auto", "A number, or auto.", gt=0)


def problems(**values: Any) -> list[str]:
    return [f"{'.'.join(map(str, problem.path))}: {problem.message}" for problem in parse_options(Basket, values)[1]]


def test_choices_come_from_the_annotation() -> None:
    choices = {info.name: info.choices for info in option_infos(Basket)}
    assert choices == {
        "fruit": ("apple", "pear"),
        "second": ("apple", "pear"),
        "spelled": ("apple", "pear", "plum"),
        "many": ("apple", "pear"),
        "seats": (2, 4),
        "size": None,
    }
    allowed = {info.name: info.allowed for info in option_infos(Basket)}
    assert allowed["fruit"] == "one of 'apple', 'pear'"
    assert allowed["many"] == "a list of 'apple', 'pear'"


def test_allowed_choices_are_taken() -> None:
    values = {"fruit": "pear", "second": "apple", "spelled": "pear", "many": ["pear", "apple"], "seats": 4, "size": 2.5}
    basket, wrong = parse_options(Basket, values)
    assert wrong == []
    assert basket == Basket(**values)
    assert parse_options(Basket, {"second": None})[0] == Basket()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fruit": "aple"}, "fruit: must be one of 'apple', 'pear'; got 'aple' (did you mean 'apple'?)"),
        ({"second": "aple"}, "second: must be one of 'apple', 'pear'"),
        ({"fruit": 3}, "fruit: must be one of 'apple', 'pear', got 3"),
        ({"fruit": None}, "fruit: must be one of 'apple', 'pear', got null"),
        ({"many": ["apple", "pair"]}, "many.1: must be one of 'apple', 'pear'; got 'pair'"),
        ({"many": "apple"}, "many: must be a list of 'apple', 'pear', got 'apple'"),
        ({"seats": 3}, "seats: must be one of 2, 4, got 3"),
        ({"size": -1}, "size: must be above 0, got -1"),
        ({"size": "big"}, "size: must be one of 'auto' or a number, above 0, got 'big'"),
    ],
)
def test_what_is_no_choice_is_refused_with_what_is_allowed(values: dict[str, Any], message: str) -> None:
    (problem,) = problems(**values)
    assert message in problem
