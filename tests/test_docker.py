"""The compose file and the image, as far as they can be checked without a Docker engine."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.cli import serve
from pipeline.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_services_are_there() -> None:
    assert {*SERVICES} == {"api", "mlflow", "postgres"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_checked_limited_and_not_root(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert str(service["user"]).split(":")[0] not in ("", "0", "root")
    assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[a-z-]+:\d+[.\d]*[a-z0-9.-]*", service["image"]), "the version of an image is pinned"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_no_password_is_in_the_file() -> None:
    for mention in re.findall(r"PASSWORD[^\n]*", re.sub(r"#[^\n]*", "", TEXT)):
        assert "${POSTGRES_PASSWORD:?" in mention or mention.startswith("PASSWORD:?"), mention
    assert re.search(r"mlflow:\$\{POSTGRES_PASSWORD:\?[^}]+\}@postgres", TEXT)


def test_the_bundle_is_mounted_read_only_and_required() -> None:
    uploads, bundle = SERVICES["api"]["volumes"]
    assert uploads == "uploads:/uploads"
    assert SERVICES["api"]["command"][-2:] == ["--upload-folder", "/uploads"]
    assert "/uploads\nUSER 10001" in DOCKERFILE
    assert bundle["read_only"] is True
    assert bundle["source"].startswith("${OCTRAY_BUNDLE:?")


def test_every_named_volume_and_network_is_declared() -> None:
    used = {volume.split(":")[0] for one in SERVICES.values() for volume in one["volumes"] if isinstance(volume, str)}
    assert used == {*COMPOSE["volumes"]}
    assert {network for service in SERVICES.values() for network in service["networks"]} == {*COMPOSE["networks"]}


def test_the_store_cannot_be_reached_from_outside() -> None:
    assert "ports" not in SERVICES["postgres"]
    assert SERVICES["postgres"]["networks"] == ["store"]
    assert COMPOSE["networks"]["store"]["internal"] is True


def test_the_api_runs_a_command_that_exists() -> None:
    program, name, *arguments = SERVICES["api"]["command"]
    assert (program, name in COMMANDS) == ("octray", True)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    parser.parse_args(arguments)
    assert f'CMD ["octray", "{name}"' in DOCKERFILE


def test_mlflow_takes_its_options() -> None:
    help_ = subprocess.run(
        [sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = {*re.findall(r"--[a-z-]+", help_)}
    program, command, *arguments = SERVICES["mlflow"]["command"]
    assert (program, command) == ("mlflow", "server")
    assert {argument.partition("=")[0] for argument in arguments} <= options


def test_targets_and_copied_files_exist() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    assert {SERVICES[name]["build"]["target"] for name in ("api", "mlflow")} <= targets
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert f"!{source}" in (ROOT / ".dockerignore").read_text()
            assert (ROOT / source).exists() or source in ("README.md", "LICENSE")


def test_each_image_ends_as_another_user_than_root() -> None:
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[-2:]:
        users = re.findall(r"^USER (\S+)$", stage, re.MULTILINE)
        assert not users or users[-1] == "10001:10001"
    assert "USER 10001:10001" in DOCKERFILE.split(" AS base")[1].split("FROM ")[0]


def test_versions_are_pinned() -> None:
    assert re.search(r"ARG PYTHON=python:3\.11\.\d+-slim", DOCKERFILE)
    assert "-c constraints.txt" in DOCKERFILE
    assert re.search(r"psycopg2-binary==\d", DOCKERFILE)
