"""Dockerfile, .dockerignore and compose.yaml: everything they name exists, and hadolint's rules that matter here hold.

No container engine is needed, so this runs everywhere; it reads the files as text.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.demos.runner import DEMOS

ROOT = Path(__file__).resolve().parents[2]
PORT = re.compile(r"127\.0\.0\.1:(\d+):(\d+)")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and their arguments, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word, arguments) for word, arguments in found]


def arguments_of(word: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == word]


def commands() -> list[str]:
    return [part.strip() for arguments in arguments_of("RUN") for part in arguments.split("&&")]


def compose() -> dict[str, Any]:
    values = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(values, dict)
    return values


def copied() -> list[str]:
    """Return what is copied out of the build's context."""
    return [
        source for arguments in arguments_of("COPY") if "--from=" not in arguments for source in shlex.split(arguments)[:-1]
    ]


def test_every_copied_file_is_there_and_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert copied()
    for name in copied():
        assert (ROOT / name).exists(), name
        passes = [not pattern.startswith("!") for pattern in ignored if fnmatch.fnmatch(name, pattern.removeprefix("!"))]
        assert passes[-1:] == [False], f".dockerignore keeps {name} out"


def test_nothing_else_reaches_the_build() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert let_in == set(copied())


def test_the_whole_distribution_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]}
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    assert set(copied()) == packages | modules | files


def test_every_program_of_a_run_line_is_known_and_its_paths_are_there() -> None:
    stages = "pip python streambank apt-get rm useradd install"
    for command in commands():
        words = shlex.split(command)
        assert words[0] in stages.split(), command
        for word in words[1:]:
            if word.endswith((".txt", ".toml", ".sh", ".py")):
                assert (ROOT / word).is_file(), word


def test_the_default_command_is_the_demo() -> None:
    (command,) = arguments_of("CMD")
    program, subcommand, name = yaml.safe_load(command)  # the form that needs no shell (DL3025)
    assert (program, subcommand) == ("streambank", "demo")
    assert name in DEMOS


def test_the_container_does_not_run_as_root_and_its_user_owns_the_working_folder() -> None:
    last = instructions()[[word for word, _ in instructions()].index("USER") :]
    user = dict(last)["USER"]
    assert user.isdecimal()
    assert int(user) > 0
    assert any(f"--uid {user}" in command for command in commands())
    folder = dict(last)["WORKDIR"]
    assert any(command.startswith("install ") and command.endswith(f" {folder}") for command in commands())
    assert "FROM" not in dict(last)


def test_the_device_is_the_cpu_unless_a_build_argument_says_otherwise() -> None:
    defaults = dict(argument.split("=") for argument in arguments_of("ARG"))
    assert defaults["DEVICE"] == "cpu"
    stages = {line.split(" AS ")[1]: i for i, (word, line) in enumerate(instructions()) if word == "FROM" and " AS " in line}
    assert {"cpu", "cuda"} <= set(stages)
    assert instructions()[stages["cpu"] + 1] == ("ENV", 'CUDA_VISIBLE_DEVICES=""')
    assert "NVIDIA_VISIBLE_DEVICES=all" in instructions()[stages["cuda"] + 1][1]
    assert arguments_of("FROM")[-1] == "${DEVICE}"


def test_base_images_have_tags_and_packages_come_from_the_pins() -> None:
    known = {line.split(" AS ")[1] for line in arguments_of("FROM") if " AS " in line}
    for line in arguments_of("FROM"):
        image = line.split(" AS ")[0]
        assert ":" in image or image in known or image == "${DEVICE}", image
        assert not image.endswith(":latest")  # DL3007
    installs = [command for command in commands() if command.startswith("pip install")]
    assert installs
    for command in installs:
        assert "--no-cache-dir" in command  # DL3042
        assert "--constraint constraints.txt" in command or "--no-deps" in command  # DL3013
    assert '".[all]"' in installs[0]


def test_system_packages_are_those_of_the_set_up_and_leave_no_lists() -> None:
    (line,) = [arguments for arguments in arguments_of("RUN") if "apt-get" in arguments]
    (install,) = [part for part in line.split("&&") if "apt-get install" in part]
    assert "--yes" in install  # DL3014
    assert "--no-install-recommends" in install  # DL3015
    assert "rm -rf /var/lib/apt/lists/*" in line  # DL3009
    wanted = set(re.findall(r"missing\+=\((\S+)\)", (ROOT / "scripts" / "setup.sh").read_text()))
    assert {word for word in install.split() if word.startswith("lib")} == {name for name in wanted if name.startswith("lib")}


def test_neither_sudo_nor_add_nor_a_relative_working_folder_is_used() -> None:
    assert not arguments_of("ADD")  # DL3020
    assert not any(command.split()[0] in ("sudo", "ssh", "vim", "top", "kill") for command in commands())  # DL3001, DL3004
    assert all(folder.startswith("/") for folder in arguments_of("WORKDIR"))  # DL3000
    assert not any("|" in arguments for arguments in arguments_of("RUN"))  # DL4006


@pytest.mark.parametrize("service", sorted(compose()["services"]))
def test_what_compose_mounts_is_there(service: str) -> None:
    values = compose()["services"][service]
    if "build" in values:
        assert (ROOT / values["build"] / "Dockerfile").is_file()
    else:
        image, _, tag = values["image"].rpartition(":")
        assert image
        assert tag != "latest"
    for volume in values.get("volumes", []):
        source, target, *_ = volume.split(":")
        assert target.startswith("/")
        assert (ROOT / source).is_file() if source.startswith(".") else source in compose()["volumes"]


def test_compose_publishes_ports_on_this_machine_only_and_the_page_names_them() -> None:
    page = (ROOT / "docs" / "container.md").read_text()
    for name, values in compose()["services"].items():
        assert f"`{name}`" in page
        for port in values.get("ports", []):
            match = PORT.fullmatch(port)
            assert match is not None, f"{name} publishes {port} to the world"
            assert f"127.0.0.1:{match[1]}" in page


def test_the_page_names_no_service_that_compose_does_not_have() -> None:
    page = (ROOT / "docs" / "container.md").read_text()
    named = set(re.findall(r"docker compose (?:exec|up) (\w+)", page)) | set(re.findall(r"docker compose cp \S+ (\w+):", page))
    assert named == {"streambank", "kafka"}
    assert named <= set(compose()["services"])
    for path in ("docs/kafka.md", "scripts/kafka.sh"):
        assert "docker compose up kafka" in (ROOT / path).read_text()


def test_prometheus_asks_the_port_that_the_ray_node_exports_on_and_grafana_asks_prometheus() -> None:
    services = compose()["services"]
    (port,) = [word.split("=")[1] for word in services["streambank"]["command"] if word.startswith("--metrics-export-port=")]
    scraped = yaml.safe_load((ROOT / "docs/container/prometheus.yaml").read_text())["scrape_configs"]
    assert [target for job in scraped for config in job["static_configs"] for target in config["targets"]] == [
        f"streambank:{port}"
    ]
    (source,) = yaml.safe_load((ROOT / "docs/container/grafana_datasource.yaml").read_text())["datasources"]
    assert source["url"] == f"http://prometheus:{PORT.fullmatch(services['prometheus']['ports'][0])[2]}"
    assert source["isDefault"]
    (provider,) = yaml.safe_load((ROOT / "docs/container/grafana_dashboards.yaml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted
    assert Path(home).parent == Path(provider["options"]["path"])


def test_the_ray_node_joins_what_compose_starts() -> None:
    service = compose()["services"]["streambank"]
    (port,) = [word.split("=")[1] for word in service["command"] if word.startswith("--port=")]
    assert service["environment"]["RAY_ADDRESS"] == f"127.0.0.1:{port}"


def test_the_broker_tells_each_side_an_address_that_it_can_reach() -> None:
    service = compose()["services"]["kafka"]
    listeners = dict(part.split("://") for part in service["environment"]["KAFKA_LISTENERS"].split(","))
    told = dict(part.split("://") for part in service["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert told["HOST"] == "127.0.0.1" + listeners["HOST"]
    assert told["INSIDE"] == "kafka" + listeners["INSIDE"]
    assert service["ports"] == [f"127.0.0.1{listeners['HOST']}{listeners['HOST']}"]
    assert f"`{told['INSIDE']}`" in (ROOT / "docs" / "container.md").read_text()
    assert f"image: {service['image']}" in (ROOT / "compose.yaml").read_text()
    version = re.search(
        r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)<", (ROOT / "tests/support/pom.xml").read_text()
    )
    assert version is not None
    assert service["image"] == f"apache/kafka:{version[1]}"
