"""Options classes read by ``pipelines.options``: choices from ``Literal``, nested options from unions of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from connectors.errors import ConfigError
from connectors.options import option
from pipelines.commands.describe import option_lines
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


# Options of their own


@dataclass(frozen=True, kw_only=True)
class Cut:
    """In pieces."""

    type: ClassVar[str] = "cut"
    pieces: int = option(2, "How many.", ge=2)
    shape: Literal["cube", "slice"] = option("cube", "Of each piece.")

    def __post_init__(self) -> None:
        if self.shape == "slice" and self.pieces > 10:
            raise ConfigError(f"pieces={self.pieces} are too many for slices; at most 10")


@dataclass(frozen=True, kw_only=True)
class Juice:
    """Pressed."""

    type: ClassVar[str] = "juice"


@dataclass(frozen=True, kw_only=True)
class Plate:
    served: Cut | Juice | None = option(None, "How the fruit is served. null: whole.")


def test_a_mapping_with_a_type_becomes_an_instance_of_its_class() -> None:
    assert parse_options(Plate, {"served": {"type": "cut", "pieces": 3}}) == (Plate(served=Cut(pieces=3)), [])
    assert parse_options(Plate, {"served": {"type": "juice"}}) == (Plate(served=Juice()), [])
    assert parse_options(Plate, {"served": None}) == parse_options(Plate, {}) == (Plate(), [])


@pytest.mark.parametrize(
    ("served", "messages"),
    [
        ("cut", ["served: must be a mapping with a type, one of 'cut', 'juice' or null, as in {type: cut}, got 'cut'"]),
        ({"pieces": 3}, ["served.type: is missing; allowed: cut, juice"]),
        ({"type": "cutt"}, ["served.type: must be one of 'cut', 'juice'; got 'cutt' (did you mean 'cut'?)"]),
        (
            {"type": "cut", "pieces": 1, "shap": "cube"},
            [
                "served.shap: unknown option of cut 'shap' (did you mean 'shape'?); allowed: pieces, shape",
                "served.pieces: must be at least 2, got 1",
            ],
        ),
        ({"type": "cut", "pieces": 11, "shape": "slice"}, ["served.pieces: pieces=11 are too many for slices; at most 10"]),
        ({"type": "juice", "pieces": 3}, ["served.pieces: unknown option of juice 'pieces'; allowed: none"]),
    ],
)
def test_what_is_wrong_within_a_mapping_is_named_with_its_path(served: Any, messages: list[str]) -> None:
    options, wrong = parse_options(Plate, {"served": served})
    assert options is None
    assert [f"{'.'.join(map(str, problem.path))}: {problem.message}" for problem in wrong] == messages


def test_the_options_of_every_type_are_described() -> None:
    text = "\n".join(option_lines(option_infos(Plate)))
    assert "served: a mapping with a type, one of 'cut', 'juice' or null; default null" in text
    assert "type: cut: In pieces." in text and "pieces: a whole number, at least 2; default 2" in text
    assert "type: juice: Pressed." in text
