"""How a pipeline file names the rows of a node: ``NODE``, its output without a name, or ``NODE.OUTPUT``, a named one.

Such a name is an *address*. Sources have the output without a name only; which an operator has its class says (``outputs`` and
``output_schema``). There is one rule for all: a node without an output of no name cannot be named without one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from connectors.errors import nearest

if TYPE_CHECKING:
    from operators.base import Operator

__all__ = ["NAME", "address_of", "address_problem", "examined", "node_of", "output_names", "output_of", "schemas_of"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""What nodes and outputs may be called: so no point is part of a name."""


def node_of(address: str) -> str:
    """Return the node of an address."""
    return address.partition(".")[0]


def output_of(address: str) -> str:
    """Return the name of the output, empty for the one without a name."""
    return address.partition(".")[2]


def address_of(node: str, output: str) -> str:
    """Return the address of an output."""
    return f"{node}.{output}" if output else node


def output_names(kind: type[Operator]) -> tuple[str, ...]:
    """Return the outputs that operators of a class have, an empty name for the one without."""
    unnamed = not kind.outputs or getattr(kind, "output_schema", None) is not None
    return (*([""] if unnamed else []), *kind.outputs)


def schemas_of(node: str, operator: Operator) -> dict[str, pa.Schema]:
    """Return the schemas of an operator's outputs by address."""
    named: Mapping[str, pa.Schema] = operator.outputs
    return {address_of(node, name): named[name] if name else operator.output_schema for name in output_names(type(operator))}


def examined(kind: type[Operator], given: pa.Schema | Mapping[str, pa.Schema] | None) -> dict[str, pa.Schema | None]:
    """Return by output what ``Operator.examine`` has told, None for what only building the operator tells."""
    known = given if isinstance(given, Mapping) else {"": given}
    return {name: known.get(name) for name in output_names(kind)}


def address_problem(wanted: str, names: Sequence[str] | None) -> str | None:
    """Say why ``wanted`` names no output of its node, which has ``names``; None: it is not known which, or nothing is wrong."""
    node, output = node_of(wanted), output_of(wanted)
    if names is None or (output in names and (output or "." not in wanted)):
        return None
    addresses = [address_of(node, name) for name in names]
    if names == ("",):
        return f"{node!r} has one output, without a name; write {node!r}"
    if "." not in wanted:
        return f"the outputs of {node!r} have names; say which you mean: {', '.join(addresses)}"
    return f"{node!r} has no output {output!r}{nearest(output, names)}; allowed: {', '.join(addresses)}"
