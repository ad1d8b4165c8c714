"""The command ``streambank``. Every command is a few lines over ``pipelines.api`` and ``pipelines.commands``.

Heavy packages are imported inside the commands, so that ``--help`` and ``list`` answer at once. Exit status: 0 done, or stopped
on request; 1 the run failed; 2 the pipeline file or the command line cannot be used; 3 the run is done, but with ``--strict``
something in it was not ok.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

import streambank
from connectors.errors import ConfigError, StreambankError, nearest
from pipelines.commands.logs import LEVELS, set_up_logging

if TYPE_CHECKING:
    from pipelines.asking.putting import Answer
    from pipelines.asking.route import Request
    from pipelines.spec import PipelineSpec

__all__ = ["cli", "main"]


class _Group(click.Group):
    """Turns our errors into a message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StreambankError as error:
            if ctx.meta.get("streambank.debug"):
                raise
            click.secho("error:", fg="red", bold=True, nl=False, err=True)
            click.echo(_indented(str(error)), err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command; they take effect before it runs."""

    def logs(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        ctx.meta[f"streambank.{parameter.name}"] = value

    def start(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        ctx.meta["streambank.debug"] = value
        set_up_logging(ctx.meta["streambank.log_level"], ctx.meta["streambank.log_format"])

    log_option: dict[str, Any] = {"show_default": True, "expose_value": False, "is_eager": True, "callback": logs}
    decorators = [
        click.option("--log-level", type=click.Choice(LEVELS), default="warning", help="What is logged.", **log_option),
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Of log lines.", **log_option),
        click.option("--debug", is_flag=True, expose_value=False, callback=start, help="Show the stack trace of an error."),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def _files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a pipeline: files by their usual endings and ready pipelines, else any path."""
    from pipelines.registry import ready_pipelines

    folder, _, begun = incomplete.rpartition("/")
    there = Path(incomplete[: len(incomplete) - len(begun)] or ".")
    files = there.iterdir() if there.is_dir() else ()
    found = sorted(
        f"{folder}/{path.name}" if "/" in incomplete else path.name
        for path in files
        if path.suffix in (".yaml", ".yml") and path.name.startswith(begun)
    )
    found += [name for name in ready_pipelines() if incomplete and name.startswith(incomplete)]
    return [CompletionItem(name) for name in found] or [CompletionItem(incomplete, type="file")]


def _names(known: Callable[[], Iterable[str]]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Complete one of the names that ``known`` returns, which is asked only then."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in known() if name.startswith(incomplete)]

    return complete


def _types() -> list[str]:
    from pipelines.registry import entries

    return sorted({entry.name for entry in entries()} | {"pipeline"})


def _demos() -> list[str]:
    from pipelines.demos.runner import DEMOS

    return list(DEMOS)


def _methods() -> list[str]:
    from pipelines.commands.train import methods

    return methods()


_file = click.argument("file", shell_complete=_files)
_sets = click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one key of the file; repeatable.")


def _pipeline_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument and options that name a pipeline and change it."""
    decorators = [
        _file,
        _sets,
        click.option("--runner", type=click.Choice(["local", "ray"]), help="Where to run; wins over the file."),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(streambank.__version__)
def cli() -> None:
    """Streams through models with memory: from recorded files, cameras or topics to Arrow, exactly once."""


@cli.command()
@_pipeline_file
@click.option("--resume", is_flag=True, help="Go on from the last committed epoch of the state folder.")
@click.option("--fresh", is_flag=True, help="Delete what earlier runs have left, listed first; asks in a terminal.")
@click.option("--yes", "-y", is_flag=True, help="With --fresh: do not ask.")
@click.option(
    "--strict", is_flag=True, help="Exit with status 3 unless every row was ok and nothing lost, late or left unread."
)
@click.option("--quiet", "-q", is_flag=True, help="Nothing but errors.")
@_common
def run(
    file: str, sets: tuple[str, ...], runner: str | None, resume: bool, fresh: bool, yes: bool, strict: bool, quiet: bool
) -> None:
    """Run a pipeline FILE, or a ready pipeline by its name.

    SIGINT or SIGTERM stops it gracefully: a last epoch is committed, and --resume goes on from there.
    """
    live = not quiet and sys.stderr.isatty()
    if live:
        click.echo(f"checking {file}", err=True)  # at once: what is imported from here on takes seconds
    from pipelines.api import Pipeline
    from pipelines.commands.progress import STARTING_RAY, run_progress
    from pipelines.commands.summary import leftover_text, problem_text, report_text

    if resume and fresh:
        raise ConfigError("--resume goes on with what earlier runs have left, --fresh deletes it; choose one of the two")
    pipeline = Pipeline.load(file, sets=sets, runner=runner)
    errors = [finding for finding in pipeline.check(fresh=fresh) if finding.level == "error"]
    if errors:
        raise ConfigError("\n".join(f"{file}  {finding.where}: {finding.message}" for finding in errors))
    if fresh and (found := pipeline.leftovers()):
        if not quiet:
            click.echo(f"--fresh deletes:\n{leftover_text(found)}", err=True)
        if not yes and _in_terminal() and not click.confirm("Delete them?", err=True):
            raise ConfigError("nothing was deleted, and nothing was run")
    if live and pipeline.spec.runner == "ray":
        click.echo(STARTING_RAY, err=True)
    with run_progress(live=live, quiet=quiet) as on_progress:
        result = pipeline.run(resume=resume, fresh=fresh, on_progress=on_progress)
    if not quiet:
        click.echo(report_text(pipeline.spec.name, result.report, pipeline.spec.folders))
    if strict and not result.report.all_ok:
        click.secho("not ok:", fg="red", bold=True, nl=False, err=True)
        click.echo(f" {problem_text(result.report)}", err=True)
        raise click.exceptions.Exit(3)


@cli.command()
@_pipeline_file
@click.option("--print", "print_resolved", is_flag=True, help="Print the pipeline with all defaults filled in, as YAML.")
@_common
def check(file: str, sets: tuple[str, ...], runner: str | None, print_resolved: bool) -> None:
    """Validate a pipeline FILE and what it refers to, without running it: every error at once."""
    from pipelines.api import Pipeline

    pipeline = Pipeline.load(file, sets=sets, runner=runner)
    if print_resolved:
        import yaml

        click.echo(yaml.safe_dump(pipeline.spec.to_dict(), sort_keys=False, allow_unicode=True, width=120).rstrip())
    colors = {"ok": "green", "warning": "yellow", "error": "red"}
    findings = pipeline.check()
    for finding in findings:
        click.secho(f"{finding.level:<8}", fg=colors[finding.level], nl=False, err=True)
        click.echo(f"{finding.where}:{_indented(finding.message)}", err=True)
    if any(finding.level == "error" for finding in findings):
        raise click.exceptions.Exit(2)


@cli.command()
@click.argument("name", required=False, shell_complete=_names(_demos))
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@_common
def demo(name: str | None, folder: Path | None) -> None:
    """Show in a minute what the memory of the method NAME is worth: a table with and without it, and a picture.

    Renders its own input into FOLDER (default: demo_NAME) and downloads nothing. Without NAME: lists the demos.
    """
    from pipelines.demos.runner import DEMOS, run_demo

    if name is None:
        for known, shown in DEMOS.items():
            click.echo(f"  {known:<16}{shown.says}")
        return
    if name not in DEMOS:
        raise ConfigError(f"there is no demo {name!r}{nearest(name, DEMOS)}; there are: {', '.join(DEMOS)}")
    raise click.exceptions.Exit(run_demo(name, folder))


@cli.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--example", metavar="NAME", help="Copy this example (fruit) into the new folder TARGET.")
@click.option("--in", "comes", metavar="KIND", help="What comes in; without it the command asks.")
@click.option("--place", metavar="PATH", help="Where that is: a path, a glob, a URL.")
@click.option("--do", "task", metavar="TASK", help="What to do with it.")
@click.option("--out", "outputs", multiple=True, metavar="KIND", help="What shall come out; repeatable.")
@_common
def init(
    target: Path, example: str | None, comes: str | None, place: str | None, task: str | None, outputs: tuple[str, ...]
) -> None:
    """Write a first pipeline file TARGET, after asking what comes in and what shall come out; or copy an --example."""
    from pipelines.commands import init as making

    if example is not None:
        click.echo(making.example_text(target, making.write_example(example, target)))
        return
    file = target if target.suffix in (".yaml", ".yml") else target.with_suffix(".yaml")
    if file.exists():
        raise ConfigError(f"{file} is there; name another file, or delete it")
    comes = comes or _asked("What comes in?", {name: choice.says for name, choice in making.INPUTS.items()})
    making.require("in", comes, list(making.INPUTS))
    if place is None and (default := making.INPUTS[comes].place):
        place = click.prompt("Where is it?", default=default) if _in_terminal() else default
    fitting = making.tasks_of(comes)
    task = task or _asked("What shall be done with it?", {name: making.TASKS[name].says for name in fitting})
    making.require("do", task, fitting)
    if not outputs:
        found = {name: making.OUTPUTS[name].says for name in making.outputs_of(comes, task)}
        outputs = tuple(name.strip() for name in _asked("What shall come out?", found, several=True).split(","))
    text = making.pipeline_text(file.stem, file.name, comes, task, list(outputs), place)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    click.echo(f"wrote {file}\nnext\n  streambank check {file}\n  streambank run {file}")


@cli.command("list")
@_common
def list_() -> None:
    """List sources, operators, sinks and ready pipelines."""
    from pipelines.commands.describe import list_types

    click.echo(list_types())


@cli.command()
@click.argument("name", shell_complete=_names(_types))
@_common
def describe(name: str) -> None:
    """Show schemas and options of the type NAME, or the keys of a pipeline file for the name 'pipeline'."""
    from pipelines.commands.describe import describe as describe_type
    from pipelines.commands.describe import describe_root

    click.echo(describe_root() if name == "pipeline" else describe_type(name))


@cli.command()
@_common
def schema() -> None:
    """Print the JSON Schema of pipeline files, by which editors complete and check them."""
    from pipelines.json_schema import pipeline_schema

    click.echo(json.dumps(pipeline_schema(), indent=2, allow_nan=False))


@cli.command()
@click.argument("state", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@_common
def inspect(state: Path, as_json: bool) -> None:
    """Show epochs, positions, banks and staged files of a STATE folder. May be used while a run goes on."""
    from pipelines.commands.inspect import inspect_state, state_text

    found = inspect_state(state)
    click.echo(json.dumps(found, indent=2) if as_json else state_text(found))


@cli.command()
@click.argument("out", metavar="OUT|FILE")
@click.option("--video", type=click.Path(path_type=Path), help="Video file or folder: draw the detections of OUT onto it.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to write; default: in OUT, where readers of the rows skip it."
)
@_common
def view(out: str, video: Path | None, output: Path | None) -> None:
    """Make an HTML page of the results in the folder OUT or of the pipeline FILE, or draw detections onto the video.

    The page counts rows by stream, status and class, draws numbers over event time, and plays films and sounds. States and
    sounds of streams get pages and pictures of their own.
    """
    from pipelines.file import load_spec
    from pipelines.registry import ready_pipelines
    from pipelines.viewing.view import view as view_folder
    from pipelines.viewing.view import view_pipeline

    if out.endswith((".yaml", ".yml")) or (out in ready_pipelines() and not Path(out).exists()):
        written = view_pipeline(load_spec(out), video=video, output=output)
    else:
        written = view_folder(Path(out), video=video, output=output)
    for path in written:
        click.echo(path)


def _asking(about: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a row that is put into a running pipeline; ``about``: what it is about where ``--at`` says nothing."""
    decorators = [
        click.option("--stream", "streams", multiple=True, metavar="ID", help="What it is about; repeat it for several."),
        click.option(
            "--at",
            metavar="TIME",
            help=f"Time it is about: ISO 8601, seconds since 1970, 00:05:00 into the stream, -30s. Default: {about}.",
        ),
        click.option("--operator", metavar="NAME", help="Who is to answer, where several could."),
        click.option("--sink", metavar="NAME", help="Where to read the answer; default: flight, else kafka, else files."),
        click.option(
            "--column", "columns", multiple=True, metavar="NAME=VALUE", help="Fill another control column; repeatable."
        ),
        click.option("--timeout", "timeout_s", type=float, metavar="S", help="Longest wait; default: 60, or 3 epochs."),
        click.option("--json", "as_json", is_flag=True, help="The row of each answer, one JSON line."),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(decorators):
            command = one(command)
        return command

    return decorate


def _tell(answers: Sequence[Answer], spec: PipelineSpec, request: Request, *, as_json: bool) -> None:
    """Print what came back; exit with 1 unless all of it is ok."""
    from pipelines.commands.ask import answer_json, answer_text

    for answer in answers:
        click.echo(answer_json(answer) if as_json else answer_text(answer, spec, request))
    if not all(answer.ok for answer in answers):
        raise click.exceptions.Exit(1)


@cli.command()
@_file
@click.argument("text")
@_asking("now")
@click.option("--standing", is_flag=True, help="Answer it each time that what it asks about comes into view; wait for none.")
@click.option("--debounce", "debounce_s", type=float, metavar="S", help="--standing: how long it must be out of view before.")
@click.option("--withdraw", "withdraws", is_flag=True, help="TEXT is the id of a question that shall stand no longer.")
@_sets
@_common
def ask(file: str, text: str, sets: tuple[str, ...], streams: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Ask the running pipeline FILE the question TEXT about a stream, and print the answer.

    Exit status: 0 answered; 1 not in time, or with a status that is not ok; 2 the pipeline file has no way for questions.
    """
    from pipelines.api import Pipeline
    from pipelines.asking.route import QUESTION
    from pipelines.commands.ask import ask_pipeline

    spec = Pipeline.load(file, sets=sets).spec
    _tell(ask_pipeline(spec, text, streams, **how), spec, QUESTION, as_json=as_json)


@cli.command()
@_file
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than loopback need a token.")
@click.option("--port", type=int, default=8800, show_default=True, help="0: any that is free.")
@click.option("--token", envvar="STREAMBANK_TOKEN", help="Who bears it may look and ask. Better set by STREAMBANK_TOKEN.")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, PEM.")
@click.option(
    "--readers", type=click.IntRange(1, 256), default=16, show_default=True, help="Questions at the pipeline at once."
)
@click.option("--waiting", type=click.IntRange(0), default=256, show_default=True, help="Questions that may wait for it.")
@click.option(
    "--timeout", "timeout_s", type=float, default=60.0, show_default=True, metavar="S", help="Longest wait for an answer."
)
@click.option("--history-mib", type=float, default=256.0, show_default=True, help="Frames kept to be shown as evidence.")
@_sets
@_common
def serve(file: str, sets: tuple[str, ...], **how: Any) -> None:
    """Serve a live page of the running pipeline FILE, where one can look, ask and prompt; also the OpenAI chat API and MCP.

    Streams are seen by a sink `flight` of the file; the page says what to add where it has none.
    """
    from connectors.extras import need
    from pipelines.api import Pipeline

    for module in ("starlette", "uvicorn", "mcp"):
        need(module, "serve")
    from pipelines.serving.app import ServeOptions
    from pipelines.serving.app import serve as serve_pipeline

    spec = Pipeline.load(file, sets=sets).spec
    serve_pipeline(spec, ServeOptions(**how), say=click.echo)


@cli.command()
@_file
@click.argument("kind", metavar="KIND")
@click.argument("value", required=False)
@_asking("the newest row")
@click.option("--until", metavar="TIME", help="label: the state lasts from --at until then; both absolute.")
@click.option("--incorrect", is_flag=True, help="label, boundary: it is not so.")
@click.option("--granularity", type=int, metavar="N", help="Level of detail that it is about; default: the first one.")
@click.option("--off", is_flag=True, help="pin: take the pin off.")
@click.option("--id", metavar="NAME", help="The prompt's own id; one that is there is replaced. Default: a new one.")
@click.option("--author", metavar="NAME", help="Who says so.")
@_sets
@_common
def prompt(
    file: str, kind: str, value: str | None, sets: tuple[str, ...], as_json: bool, incorrect: bool, off: bool, **how: Any
) -> None:
    """Tell the running pipeline FILE what is so in a stream, and print what becomes of it.

    KIND and VALUE: `label 7` (its state is 7), `boundary` (a segment begins there) or `boundary no`, `retract ID` and `pin ID`
    (an earlier prompt), `reset` (forget all prompts), `tell 7` (give a row of alerts each time that its state becomes 7). Exit
    status as for `ask`.
    """
    from pipelines.api import Pipeline
    from pipelines.asking.route import PROMPT
    from pipelines.commands.ask import prompt_pipeline

    spec = Pipeline.load(file, sets=sets).spec
    answers = prompt_pipeline(spec, kind, value, correct=not incorrect, pinned=not off, **how)
    _tell(answers, spec, PROMPT, as_json=as_json)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
@click.argument("method", required=False, shell_complete=_names(_methods))
@click.option("--help", "-h", "wants_help", is_flag=True, help="Show the options of METHOD.")
@click.option("--quiet", "-q", is_flag=True, help="Nothing but errors.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_common
@click.pass_context
def train(ctx: click.Context, method: str | None, wants_help: bool, quiet: bool, arguments: tuple[str, ...]) -> None:
    """Train METHOD on small data: a ready --recipe, or your own data. `train METHOD --help` shows its options.

    SIGINT or SIGTERM stops it gracefully: a checkpoint is written after the current update, and --resume goes on from there.
    """
    from pipelines.commands.train import methods, train_help, train_method

    if method is None:
        click.echo(f"{ctx.get_help()}\n\nMethods: {', '.join(methods())}")
        ctx.exit(0 if wants_help else 2)
    if wants_help:
        click.echo(train_help(method))
        return
    said = train_method(method, arguments, live=not quiet and sys.stderr.isatty(), quiet=quiet)
    if not quiet:
        click.echo(said)


def main() -> None:
    """Run the command line. The command ``streambank`` comes here by ``streambank.main``."""
    # Types of the user's own (module:Class) are found in the working folder. It comes last: a folder `models` that happens to
    # be there must not stand in for ours.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    cli(prog_name="streambank")


def _in_terminal() -> bool:
    """Return whether a person can answer."""
    return sys.stdin.isatty()


def _asked(question: str, choices: Mapping[str, str], *, several: bool = False) -> str:
    """Ask for one of the choices, or for several with commas between them; the first one is the default."""
    if not _in_terminal():
        raise ConfigError(f"{question} Nobody is there to ask; say it by an option: {', '.join(choices)}")
    for name, says in choices.items():
        click.echo(f"  {name:<10}{says}")
    first = next(iter(choices))
    if several:
        return str(click.prompt(f"{question} (several: a,b)", default=first))
    return str(click.prompt(question, type=click.Choice(list(choices)), default=first, show_choices=False))


def _indented(text: str) -> str:
    """Put one line behind what stands before it, several ones below."""
    lines = text.splitlines()
    return f" {text}" if len(lines) < 2 else "".join(f"\n  {line}" for line in lines)


if __name__ == "__main__":
    main()
