"""README, CONTRIBUTING, SECURITY, CHANGELOG, license, hooks and templates: what they point to is there."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import streambank
from pipelines import registry
from pipelines.options import option_infos

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))),
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as hosts of repositories make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_something_that_is_there(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{page}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page}: {target}"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/container.md", ".github/pull_request_template.md"]
)
def test_every_make_target_of_the_pages_exists(page: str) -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)\b(?=`|\s{2,}|,|$)", (ROOT / page).read_text(), re.MULTILINE))
    assert named <= TARGETS


def test_the_first_screen_says_what_it_is_for_whom_the_first_example_and_a_picture() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:24])
    assert "streaming engine for models with memory" in first
    assert "For engineers" in first
    assert "streambank train mamba --annotations boxes.csv" in first
    assert "    make demo" in first
    assert "    make test" in first
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", first)
    assert (ROOT / picture).stat().st_size > 10_000


def test_the_table_of_extras_is_that_of_the_distribution() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Install") : text.index("## Documentation")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(project["optional-dependencies"]) - {"dev", "bench"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_public_names_that_pages_use_exist(page: str) -> None:
    named = set(re.findall(r"\bsb\.(\w+)", (ROOT / page).read_text()))
    assert named <= set(streambank.__all__)


def test_contributing_shows_each_kind_of_addition_with_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for heading in ("## Add a method", "## Add a source", "## Add a sink", "## Add a bank policy"):
        assert f"\n{heading}\n" in text
    paths = [path for path in re.findall(r"`([\w./]+/[\w./]*)`", text) if "<" not in path]
    assert len(paths) > 15
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_license_is_apache_2_to_the_letter() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # LICENSE-2.0.txt of the foundation


def test_the_changelog_says_what_to_do_about_the_version_that_comes_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    newest = text[text.index("\n## ") :].split("\n## ")[1]
    assert "### You have to do" in newest


def test_hooks_run_tools_that_the_set_up_installs() -> None:
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    tools = {re.split(r"[>=\[]", requirement)[0] for requirement in dev}
    for hook in hooks:
        words = hook["entry"].split()
        tool = words[0].removeprefix(".venv/bin/")
        assert (tool if tool != "python" else words[2]) in tools
        assert hook["language"] == "system"  # nothing is fetched


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_issue_forms_have_what_a_host_of_repositories_asks_for(form: Path) -> None:
    values = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert isinstance(values["blank_issues_enabled"], bool)
        return
    assert values["name"]
    assert values["description"]
    ids = [field["id"] for field in values["body"]]
    assert len(ids) == len(set(ids))
    for field in values["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
        assert field["attributes"]["label"]


def test_every_option_that_was_renamed_stands_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    renamed = {
        (entry.name, former, info.name)
        for entry in registry.entries()
        for info in option_infos(registry.load(entry.kind, entry.name).Options)
        for former in info.was
    }
    assert renamed
    missing = [row for row in renamed if "| `{}` | `{}` | `{}` |".format(*row) not in text]
    assert missing == []
