"""Every kind of mistake in a pipeline file, with the message that the user reads."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.errors import ConfigError
from pipelines.file import load_spec, spec_from_dict
from pipelines.registry import entries, ready_pipelines
from pipelines.spec import PipelineSpec

SOURCES = ", ".join(entry.name for entry in entries("source"))
GOOD = """\
name: clips
state: state
sources:
  clips: {type: video, path: videos/*.mp4}
operators:
  sizes: {type: "null", input: clips}
sinks:
  rows: {type: parquet, input: sizes, path: rows}
"""


def problems(tmp_path: Path, text: str, **options: Any) -> list[str]:
    """Return the lines that a user reads, without the folder of the file."""
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_spec(path, **options)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def load(tmp_path: Path, text: str, **options: Any) -> Any:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return load_spec(path, **options)


def labels(lines: str, operator: str = "LabelOperator") -> str:
    """A pipeline with an operator of the tests' own; ``lines`` are its further keys."""
    keys = "".join(f"    {line}\n" for line in lines.splitlines())
    return (
        "name: labels\nstate: state\nsources:\n  numbers: {type: 'pipeline_types:NumberSource', path: n.txt}\n"
        f"operators:\n  label:\n    type: pipeline_types:{operator}\n    input: numbers\n{keys}"
        "sinks:\n  rows: {type: parquet, input: label, path: rows}\n"
    )


# What a good file gives


def test_a_good_file_gives_a_spec_with_defaults_and_absolute_paths(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    assert (spec.name, spec.runner, spec.epoch_s, spec.max_attempts) == ("clips", "local", 10.0, 3)
    assert spec.state == tmp_path / "state"
    assert spec.sources[0].options.path == str(tmp_path / "videos/*.mp4")
    assert spec.sinks[0].options.path == tmp_path / "rows"
    assert (spec.operators[0].inputs, spec.operators[0].max_batch, spec.operators[0].num_gpus) == (("clips",), 32, 0.0)


def test_the_resolved_pipeline_read_again_is_the_same(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    assert spec_from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict()))) == spec


def test_a_spec_can_be_sent_to_another_process(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_the_word_null_names_the_operator_null_without_quotes(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD.replace('"null"', "null")).operators[0].type == "null"


def test_a_type_that_was_null_can_be_set(tmp_path: Path) -> None:
    text = GOOD.replace('"null"', "null")
    assert (
        load(tmp_path, text, sets=["sizes.type=operators.null:NullOperator"]).operators[0].type == "operators.null:NullOperator"
    )


def test_an_empty_type_is_not_the_operator_null(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD.replace('type: "null"', "type: ")) == [
        "p.yaml:6:11  operators.sizes.type: must be text, got null"
    ]


def test_operators_come_in_topological_order(tmp_path: Path) -> None:
    text = GOOD.replace(
        '  sizes: {type: "null", input: clips}', "  sizes: {type: null, input: first}\n  first: {type: null, input: clips}"
    )
    assert [node.name for node in load(tmp_path, text).operators] == ["first", "sizes"]


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    spec = load(tmp_path, labels("rate: 1e-3\nextra: {when: 2026-03-01, time: 1:30, flag: yes, n: 0x10, none: ~, inf: .inf}"))
    assert spec.operators[0].options.rate == 1e-3
    extra = spec.operators[0].options.extra
    assert extra == {"when": "2026-03-01", "time": "1:30", "flag": "yes", "n": 16, "none": None, "inf": float("inf")}


def test_an_alias_stands_for_its_anchor(tmp_path: Path) -> None:
    spec = load(tmp_path, labels("extra: {a: &x [1, 2], b: *x}"))
    assert spec.operators[0].options.extra == {"a": [1, 2], "b": [1, 2]}


def test_the_seed_of_the_pipeline_is_the_default_of_every_option_seed(tmp_path: Path) -> None:
    assert load(tmp_path, "seed: 7\n" + labels("")).operators[0].options.seed == 7
    assert load(tmp_path, "seed: 7\n" + labels("seed: 1")).operators[0].options.seed == 1


def test_a_gpu_is_asked_for_where_the_device_is_cuda(tmp_path: Path) -> None:
    assert load(tmp_path, labels("device: cuda")).operators[0].num_gpus == 1.0
    assert load(tmp_path, labels("device: cuda\nnum_gpus: 0.25")).operators[0].num_gpus == 0.25


@pytest.mark.parametrize("name", sorted(ready_pipelines()))
def test_ready_pipelines_are_valid_and_found_by_name(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name
    assert spec.sinks


def written(spec: PipelineSpec) -> list[Path]:
    """Every folder that a run of it writes into."""
    folders = [spec.state, *(sink.options.path for sink in spec.sinks if hasattr(sink.options, "path"))]
    return [*folders, *(source.options.path for source in spec.sources if source.type == "requests")]


@pytest.mark.parametrize("by", ["name", "file"])
@pytest.mark.parametrize("name", sorted(ready_pipelines()))
def test_a_ready_pipeline_writes_below_the_current_folder_never_into_the_installation(
    name: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec(name if by == "name" else ready_pipelines()[name])
    assert [path for path in written(spec) if not path.is_relative_to(tmp_path)] == []
    for node in spec.operators:  # weights that come with the package stay there
        checkpoint = getattr(node.options, "checkpoint", None)
        assert checkpoint is None or Path(checkpoint).is_relative_to(tmp_path) or Path(checkpoint).is_file()


def test_what_a_ray_job_writes_must_not_lie_among_the_files_that_ray_has_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "ray/session_latest/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    file = job / "p.yaml"
    file.write_text(GOOD)
    with pytest.raises(ConfigError) as caught:
        load_spec(file)
    message = str(caught.value)
    for key in ("state", "sinks.rows.path"):
        assert re.search(rf"{key}: is '{job}/\S+', in the folder that Ray unpacks .* write an absolute path", message)
    shared = tmp_path / "shared"
    load_spec(file, sets=[f"state={shared}/state", f"rows.path={shared}/rows"])  # what is read may be in the upload


# --set and overrides


def test_set_changes_a_key_and_paths_in_it_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec = load(tmp_path, GOOD, sets=["sinks.rows.path=out", "epoch_s=0.5", "sizes.max_batch=4", "sinks.rows.exclude=[a, b]"])
    assert spec.sinks[0].options.path == tmp_path / "here/out"
    assert spec.sinks[0].options.exclude == ["a", "b"]
    assert spec.sources[0].options.path == str(tmp_path / "videos/*.mp4")
    assert (spec.epoch_s, spec.operators[0].max_batch) == (0.5, 4)


def test_overrides_are_python_values(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD, overrides={"rows.path": tmp_path / "x", "operators.sizes.shards": 2})
    assert (spec.sinks[0].options.path, spec.operators[0].shards) == (tmp_path / "x", 2)


def test_a_whole_node_can_be_set(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD, sets=["sinks.more={type: jsonl, input: sizes, path: more}"])
    assert [sink.name for sink in spec.sinks] == ["rows", "more"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sizes.max_batch=none",
            "--set sizes.max_batch=none  operators.sizes.max_batch: must be a whole number, at least 1 (rows), got 'none'",
        ),
        (
            "operators.sizs.max_batch=3",
            "--set operators.sizs.max_batch=3: there is no node 'sizs' (did you mean 'sizes'?); allowed: sizes",
        ),
        (
            "sizs.max_batch=3",
            "--set sizs.max_batch=3: there is no node 'sizs' (did you mean 'sizes'?); allowed: clips, sizes, rows",
        ),
        (
            "nme=3",
            "--set nme=3  nme: unknown key 'nme' (did you mean 'name'?); allowed: epoch_s, max_attempts, name, "
            "operators, placement, resources_wait_s, runner, seed, sinks, sources, state",
        ),
        ("max_batch", "--set max_batch: write key.path=value, for example --set operators.detect.max_batch=8"),
        (
            "sizes..b=1",
            "--set sizes..b=1: 'operators.sizes..b' is not a key path; write keys joined by dots, as in operators.detect.seed",
        ),
        ("name.x=1", "--set name.x=1: 'name' is 'clips', not a mapping, so 'x' cannot be set in it"),
        (
            "sizes.x.y=1",
            "--set sizes.x.y=1  operators.sizes.x: unknown option 'x'; allowed: none",
        ),
        (
            "sizes.max_batch=[1",
            "--set sizes.max_batch=[1: the value '[1' is not valid YAML: expected ',' or ']', but got '<stream end>'; "
            "quote it as '\"...\"'",
        ),
    ],
)
def test_mistakes_in_set_name_it(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(tmp_path, GOOD, sets=[text])


def test_the_runner_of_the_command_line_wins_and_is_checked(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, runner="ray").runner == "ray"
    assert problems(tmp_path, GOOD, runner="rai") == [
        "--runner rai  runner: must be one of 'local', 'ray'; got 'rai' (did you mean 'ray'?)"
    ]


# The file as a whole


def test_a_missing_file_names_ready_pipelines_and_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text(GOOD)
    with pytest.raises(ConfigError) as caught:
        load_spec(tmp_path / "shape.yaml")
    ready = ", ".join(ready_pipelines())
    expected = f"no such pipeline file: {tmp_path}/shape.yaml (did you mean 'shapes.yaml'?); ready pipelines: {ready}"
    assert str(caught.value) == expected


def test_a_folder_is_no_pipeline_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path} is a folder; give a pipeline file, such as {tmp_path}/pipeline.yaml$"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "p.yaml: a pipeline file is a mapping with the keys name, state, sources, operators and sinks; this file is empty",
        ),
        (
            "[1]",
            "p.yaml: a pipeline file is a mapping with the keys name, state, sources, operators and sinks; "
            "this one holds list at the top",
        ),
        ("name: [1\nstate: x", "p.yaml:2:6  not valid YAML: expected ',' or ']', but got ':'"),
        ("name: x\n1: y", "p.yaml:2:1  not valid YAML: a key must be text; put it in quotes"),
        (
            "name: !!python/name:os.system x",
            "p.yaml:1:7  not valid YAML: the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed",
        ),
        ("name: &a [*a]", "p.yaml:1:7  not valid YAML: an alias stands inside its own anchor"),
    ],
)
def test_what_is_no_pipeline_file(tmp_path: Path, text: str, message: str) -> None:
    assert problems(tmp_path, text) == [message]


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"p\.yaml: the pipeline file cannot be read: it is not UTF-8 text$"):
        load_spec(path)


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD + "name: again\n") == [
        "p.yaml:9:1  name: the key 'name' stands twice, first in line 1; remove one of them"
    ]


def test_an_empty_pipeline_lists_everything_that_is_missing(tmp_path: Path) -> None:
    assert problems(tmp_path, "epoch_s: 1") == [
        "p.yaml  name: is missing; Name of the pipeline: in state, logs and metrics. Allowed: text",
        "p.yaml  state: is missing; Folder of epochs and snapshots; on a cluster one that all machines share. Allowed: a path",
        "p.yaml  sources: is missing, so there is nothing to read; add for example clips: {type: video, path: 'clips/*.mp4'}",
        "p.yaml  sinks: is missing, so there is nowhere for the results to go; add for example "
        "rows: {type: parquet, input: detect, path: out}",
    ]


# Single keys


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "state: state",
            "stat: state",
            "p.yaml:2:1  stat: unknown key 'stat' (did you mean 'state'?); allowed: epoch_s, max_attempts, name, "
            "operators, placement, resources_wait_s, runner, seed, sinks, sources, state",
        ),
        (
            "name: clips",
            "name: 9/x",
            "p.yaml:1:1  name: '9/x' is not a usable name; allowed: letters, digits, '_' and '-', at most 64, "
            "not beginning with a digit or '-'",
        ),
        ("state: state", "state: state\nepoch_s: '3'", "p.yaml:3:1  epoch_s: must be a number, above 0 (s), got '3'"),
        ("state: state", "state: state\nepoch_s: 0", "p.yaml:3:1  epoch_s: must be above 0 (s), got 0"),
        ("state: state", "state: state\nepoch_s: .nan", "p.yaml:3:1  epoch_s: must be a number, got nan"),
        ("state: state", "state: state\nseed: 1.0", "p.yaml:3:1  seed: must be a whole number, at least 0, got 1.0"),
        (
            "state: state",
            "state: state\nmax_attempts: true",
            "p.yaml:3:1  max_attempts: must be a whole number, at least 1, got true",
        ),
        (
            "state: state",
            "state: state\nrunner: loca",
            "p.yaml:3:1  runner: must be one of 'local', 'ray'; got 'loca' (did you mean 'local'?)",
        ),
        (
            "{type: video, path: videos/*.mp4}",
            "videos",
            "p.yaml:4:3  sources.clips: must be a mapping, such as clips: {type: video, path: 'clips/*.mp4'}; got 'videos'",
        ),
        (
            "type: video, ",
            "",
            "p.yaml:4:3  sources.clips.type: is missing; Registered name (`streambank list`) or "
            "module:Class of your own. Allowed: text",
        ),
        (
            "type: video,",
            "type: vidoe,",
            f"p.yaml:4:11  sources.clips.type: unknown source type 'vidoe' (did you mean 'video'?); allowed: {SOURCES}, "
            "or module:Class of your own",
        ),
        (
            "path: videos/*.mp4",
            "pth: videos/*.mp4",
            "p.yaml:4:24  sources.clips.pth: unknown option 'pth' (did you mean 'path'?); allowed: pace, catch_up, follow, "
            "settle_s, path, stream_names, start_time, decoder, device, device_mib, encode, jpeg_quality, max_fps, references",
        ),
        ("videos/*.mp4}", "3}", "p.yaml:4:24  sources.clips.path: must be text or a list of texts, got 3"),
        ("videos/*.mp4}", "v, max_fps: -1}", "p.yaml:4:33  sources.clips.max_fps: must be above 0 (1/s), got -1"),
        (
            "videos/*.mp4}",
            "v, pace: fast}",
            "p.yaml:4:33  sources.clips.pace: 'fast' is not a pace; allowed: 'max', 'realtime', or a factor "
            "above 0 such as 2.0",
        ),
        ("path: rows", "path: rows, exclude: [1]", "p.yaml:8:61  sinks.rows.exclude[0]: must be text, got 1"),
        ("input: sizes, ", "", "p.yaml:8:3  sinks.rows: has no input; add 'input: NODE' or 'inputs: [NODE, ...]'"),
        (
            "input: sizes, ",
            "input: sizes, inputs: [clips], ",
            "p.yaml:8:39  sinks.rows.inputs: give either 'input' (one node) or 'inputs' (a list), not both",
        ),
        ("input: clips}", "input: clips, shards: 129}", "p.yaml:6:39  operators.sizes.shards: must be at most 128, got 129"),
        (
            "input: clips}",
            "input: clips, device: gpu}",
            "p.yaml:6:39  operators.sizes.device: must be cpu, cuda, cuda:N (such as cuda:1) or auto, got 'gpu'",
        ),
        (
            "input: clips}",
            "input: clips, device: cpu, num_gpus: 1}",
            "p.yaml:6:52  operators.sizes.num_gpus: is 1, but 'device' is cpu; remove num_gpus or set 'device: cuda'",
        ),
        (
            "input: clips}",
            "input: clips, num_gpus: 1.5}",
            "p.yaml:6:39  operators.sizes.num_gpus: must be a whole number where it is above 1, got 1.5",
        ),
        (
            "input: clips}",
            "input: clips, control: clips}",
            "p.yaml:6:39  operators.sizes.control: operators of type 'null' take no control rows; remove this key",
        ),
    ],
)
def test_a_mistake_in_one_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in problems(tmp_path, GOOD.replace(old, new, 1))


def test_a_device_number_is_refused_on_ray(tmp_path: Path) -> None:
    text = GOOD.replace("input: clips}", "input: clips, device: 'cuda:1'}")
    assert load(tmp_path, text).operators[0].device == "cuda:1"
    message = "is 'cuda:1', but on Ray every task sees only the GPU that it was given; write cuda, and num_gpus for a share"
    assert problems(tmp_path, text, runner="ray") == [f"p.yaml:6:39  operators.sizes.device: {message}"]
    with pytest.raises(ConfigError, match=r"^operators\.sizes\.device: is 'cuda:1', but on Ray"):
        load(tmp_path, text).with_runner("ray")


# Options of own types


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("rate: 10", "p.yaml:9:5  operators.label.rate: must be below 10, got 10"),
        ("rate: fast", "p.yaml:9:5  operators.label.rate: must be a number, above 0 and below 10, got 'fast'"),
        ("tags: [a, c]", "p.yaml:9:15  operators.label.tags[1]: must be one of 'a', 'b'; got 'c'"),
        ("tags: a", "p.yaml:9:5  operators.label.tags: must be a list of 'a', 'b', got 'a'"),
        ("sizes: [1, 0]", "p.yaml:9:16  operators.label.sizes[1]: must be at least 1, got 0"),
        ("sizes: [1, x]", "p.yaml:9:16  operators.label.sizes[1]: must be a whole number, got 'x'"),
        ("extra: 3", "p.yaml:9:5  operators.label.extra: must be a mapping, got 3"),
        ("low: 11", "p.yaml:9:5  operators.label.low: 11 is above high=10; lower it"),
        ("model: 3", "p.yaml:9:5  operators.label.model: must be a path, got 3"),
        (
            "model: {file: x}",
            "p.yaml:9:5  operators.label.model: must be a path, got {'file': 'x'}; "
            "{env: ...} and {file: ...} are for secret options only",
        ),
        ("control: [numbers, numbers]", "p.yaml:9:24  operators.label.control[1]: the node 'numbers' stands twice; remove one"),
    ],
)
def test_a_mistake_in_an_option(tmp_path: Path, lines: str, message: str) -> None:
    assert message in problems(tmp_path, labels(lines))


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("nowhere:Class", "operator type 'nowhere:Class': module 'nowhere' cannot be imported: No module named 'nowhere'"),
        (
            "pipeline_types:LabelOperater",
            "operator type 'pipeline_types:LabelOperater': module 'pipeline_types' has no 'LabelOperater' "
            "(did you mean 'LabelOperator'?)",
        ),
        (
            "pipeline_types:NumberSource",
            "operator type 'pipeline_types:NumberSource' is not a subclass of operators.base.Operator",
        ),
        (
            "pipeline_types:NoOptions",
            "operator type 'pipeline_types:NoOptions' has no class attribute Options; declare its options dataclass there",
        ),
        (
            "pipeline_types:ClashingOperator",
            "ClashingOperator.Options declares shards, a key of the engine; rename it there",
        ),
    ],
)
def test_a_mistake_in_an_own_type(tmp_path: Path, type_: str, message: str) -> None:
    text = labels("").replace("pipeline_types:LabelOperator", type_)
    assert problems(tmp_path, text) == [f"p.yaml:7:5  operators.label.type: {message}"]


# Secrets


def test_a_secret_comes_from_the_environment_or_a_file_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_PASSWORD", "s3cret")
    (tmp_path / "secret.txt").write_text("s3cret\n")
    for reference in ({"env": "LABEL_PASSWORD"}, {"file": "secret.txt"}):
        key, value = next(iter(reference.items()))
        spec = load(tmp_path, labels(f"password: {{{key}: {value}}}"))
        assert spec.operators[0].options.password == "s3cret"
        assert spec.to_dict()["operators"]["label"]["password"] == reference
        assert "s3cret" not in f"{spec.to_dict()} {spec!r}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s3cret", "is a secret: write {env: NAME} or {file: PATH}, never the value itself"),
        ("{env: [s3cret]}", "is a secret: write {env: NAME} or {file: PATH}, never the value itself"),
        ("{env: STREAMBANK_NOT_SET}", "the environment variable 'STREAMBANK_NOT_SET' is not set; set it before the start"),
        ("{file: /dev/null}", "the file '/dev/null' is empty; it must hold the secret"),
        ("{file: none.txt}", "the file 'none.txt' cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_in_a_secret_never_shows_it(tmp_path: Path, value: str, message: str) -> None:
    assert "STREAMBANK_NOT_SET" not in os.environ
    found = problems(tmp_path, labels(f"password: {value}\nrate: -1"))
    assert found == [
        f"p.yaml:9:5  operators.label.password: {message}",
        "p.yaml:10:5  operators.label.rate: must be above 0, got -1",
    ]
    assert not any("s3cret" in line for line in found)


# Wiring


@pytest.mark.parametrize(
    ("operator", "wanted", "message"),
    [
        ("SplitOperator", "label", "the outputs of 'label' have names; say which you mean: label.low, label.high"),
        ("SplitOperator", "label.hihg", "'label' has no output 'hihg' (did you mean 'high'?); allowed: label.low, label.high"),
        ("TaggedOperator", "label.x", "'label' has no output 'x'; allowed: label, label.low, label.high"),
        ("LabelOperator", "label.labels", "'label' has one output, without a name; write 'label'"),
        ("LabelOperator", "label.", "'label' has one output, without a name; write 'label'"),
        ("SplitOperator", "numbers.v", "'numbers' has one output, without a name; write 'numbers'"),
        ("SplitOperator", "lable.low", "there is no node 'lable' (did you mean 'label.low'?); allowed: numbers, label.low, "),
        ("SplitOperator", "rows.low", "the node 'rows' cannot read its own rows"),
    ],
)
def test_an_output_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, operator: str, wanted: str, message: str
) -> None:
    text = labels("", operator).replace("input: label,", f"input: {wanted},")
    assert any(line.startswith(f"p.yaml:10:25  sinks.rows.input: {message}") for line in problems(tmp_path, text))


@pytest.mark.parametrize("wanted", ["label", "label.low", "label.high"])
def test_an_output_may_be_named_or_be_the_one_without_a_name(tmp_path: Path, wanted: str) -> None:
    spec = load(tmp_path, labels("", "TaggedOperator").replace("input: label,", f"input: {wanted},"))
    assert spec.sinks[0].inputs == (wanted,)
    assert spec_from_dict(spec.to_dict()).sinks[0].inputs == (wanted,)  # what `check --print` writes


def test_outputs_stand_in_lists_of_inputs_and_as_control(tmp_path: Path) -> None:
    more = "  more: {type: 'pipeline_types:LabelOperator', inputs: [numbers, label.high], control: label.low}\nsinks:"
    spec = load(tmp_path, labels("", "SplitOperator").replace("sinks:", more).replace("input: label,", "input: more,"))
    assert [node.name for node in spec.operators] == ["label", "more"]
    assert (spec.operators[1].inputs, spec.operators[1].control) == (("numbers", "label.high"), ("label.low",))
    twice = labels("", "SplitOperator").replace("input: label,", "inputs: [label.low, label.low],")
    assert "p.yaml:10:45  sinks.rows.inputs[1]: the output 'label.low' stands twice; remove one" in problems(tmp_path, twice)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "input: clips",
            "input: clps",
            "p.yaml:6:25  operators.sizes.input: there is no node 'clps' (did you mean 'clips'?); allowed: clips",
        ),
        ("input: clips", "inputs: [clips, x]", "p.yaml:6:41  operators.sizes.inputs[1]: there is no node 'x'; allowed: clips"),
        ("input: clips", "input: sizes", "p.yaml:6:25  operators.sizes.input: the node 'sizes' cannot read its own rows"),
        (
            "input: clips",
            "input: rows",
            "p.yaml:6:25  operators.sizes.input: 'rows' is a sink, and sinks have no rows to read; allowed: clips, sizes",
        ),
        (
            "input: clips",
            "input: rows",
            "p.yaml:4:3  sources.clips: nothing reads its rows; name it as the input of an operator or a sink, or remove it",
        ),
        (
            "  rows:",
            "  clips: {type: jsonl, input: sizes, path: x}\n  rows:",
            "p.yaml:8:3  sinks.clips: the name 'clips' is taken in 'sources'; node names are unique, rename one of them",
        ),
        (
            "  rows:",
            "  a b: {type: jsonl, input: sizes, path: x}\n  rows:",
            "p.yaml:8:3  sinks.a b: 'a b' is not a usable name; allowed: letters, digits, '_' and '-', at most 64, "
            "not beginning with a digit or '-'",
        ),
        (
            "  rows:",
            "  other: {type: jsonl, input: sizes, path: ./rows}\n  rows:",
            "p.yaml:9:39  sinks.rows.path: sink 'other' writes to the same folder 'rows'; choose another",
        ),
        (
            '  sizes: {type: "null", input: clips}',
            "  sizes: {type: null, input: a}\n  a: {type: null, inputs: [b, clips]}\n  b: {type: null, input: a}",
            "p.yaml:7:3  operators.a: the nodes form a cycle: a → b → a; cut it at one place",
        ),
    ],
)
def test_a_mistake_in_the_wiring(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in problems(tmp_path, GOOD.replace(old, new, 1))


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        GOOD.replace("state: state", "state: 3").replace("videos/*.mp4", "[]").replace("clips}", "clips, max_batch: 0, x: 1}")
    )
    found = problems(tmp_path, text, sets=["rows.compression=zst"])
    assert [line.split("  ")[0] for line in found] == ["p.yaml:2:1", "p.yaml:6:39", "p.yaml:6:53", "--set rows.compression=zst"]


# Python


def test_a_dict_is_checked_like_a_file_and_named_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        spec_from_dict({"name": "x", "state": "s", "sources": {"a": {"type": "video", "path": Path("x"), "max_fps": object}}})
    first = str(caught.value).splitlines()[0]
    assert first.startswith("pipeline  sources.a.max_fps: must be a number, above 0 (1/s), got <class 'object'>")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: 2.0", "p.yaml:9:5  operators.label.lr: was renamed to rate; write 'rate: ...'"),
        ("clock: wall", "p.yaml:9:5  operators.label.clock: is no longer an option; set 'align_s' on the node"),
    ],
)
def test_an_option_of_an_older_version_is_told_its_successor(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, labels(line))
    assert str(raised.value) == f"{tmp_path}/{message}"
