"""``describe`` and ``list`` say what a user must know of every registered type."""

from __future__ import annotations

import re

import pytest

from connectors.errors import ConfigError
from connectors.records import schema_name
from pipelines import registry
from pipelines.commands.describe import describe, describe_root, list_types
from pipelines.engine_keys import ENGINE_KEYS, RootKeys
from pipelines.options import option_infos


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_option_of_every_type_is_described_with_type_default_and_meaning(entry: registry.Entry) -> None:
    text = describe(entry.name)
    assert f"{entry.name} ({entry.kind}): {entry.summary}" in text
    for info in option_infos(registry.load(entry.kind, entry.name).Options):
        assert info.doc, f"option {info.name} has no doc"
        kind = "a secret, {env: NAME} or {file: PATH}" if info.secret else info.allowed
        assert f"  {info.name}: {kind}; " in text
    for info in option_infos(ENGINE_KEYS[entry.kind]):
        assert f"  {info.name}: " in text


@pytest.mark.parametrize("entry", registry.entries("operator"), ids=lambda entry: entry.name)
def test_schemas_of_every_operator_are_shown(entry: registry.Entry) -> None:
    text = describe(entry.name)
    taken = schema_name(registry.load("operator", entry.name).input_schema)
    assert re.search(rf"takes\n  {re.escape(taken)}\n    stream_id +string, never null", text)
    assert taken != "frame.v1" or "height      int32 (px)" in text
    assert "what depends on the options" not in text
    assert "status" in text.partition("gives")[2]


def test_units_and_bounds_of_options_are_shown() -> None:
    text = describe("mamba")
    assert "max_length: a whole number, at least 1 (rows); default 20000" in text
    assert "late: one of 'drop', 'read_only'; default 'drop'" in text


def test_own_types_are_described_with_their_secrets_and_control_rows() -> None:
    text = describe("pipeline_types:LabelOperator")
    assert "password: a secret, {env: NAME} or {file: PATH}; default null" in text
    assert "takes as control\n  labels.v1" in text
    assert "v           double (m/s)" in text


def test_every_named_output_is_described() -> None:
    text = describe("pipeline_types:SplitOperator")
    assert "gives as NODE.low\n  labeled.v1\n" in text
    assert "gives as NODE.high\n  high.v1\n" in text
    assert "\ngives\n" not in text
    text = describe("pipeline_types:TaggedOperator")
    assert "gives\n  tagged.v1\n" in text
    assert "gives as NODE.high\n  high_10.v1\n" in text  # by the default of an option


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"^no source, operator or sink is called 'mamab' \(did you mean 'mamba'\?\); allowed: "
    ):
        describe("mamab")


def test_the_list_names_every_type_and_every_ready_pipeline() -> None:
    text = list_types()
    for name in [*(entry.name for entry in registry.entries()), *registry.ready_pipelines()]:
        assert f"\n  {name} " in text


def test_every_ready_pipeline_says_in_its_first_line_what_it_is_for() -> None:
    for path in registry.ready_pipelines().values():
        assert path.read_text(encoding="utf-8").startswith("# "), path


def test_top_level_keys_are_described() -> None:
    text = describe_root()
    for info in option_infos(RootKeys):
        assert f"  {info.name}: " in text
    assert "epoch_s: a number, above 0 (s); default 10.0" in text
