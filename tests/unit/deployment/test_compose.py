"""docker-compose.yml and Dockerfile: what they promise an operator, without Docker."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from typing import Any

import jsonschema
import pytest
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML
from typer.core import TyperGroup
from typer.main import get_group

from assignment_workers.cli.main import app
from assignment_workers.devstack.process import ProcessSpec
from assignment_workers.schema import roles
from assignment_workers.settings import Settings
from assignment_workers.tasks.process import JOB_SECONDS, PROCESSES
from tests.support.root import ROOT

TOP = ROOT
TEXT = (TOP / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = YAML(typ="safe").load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"] == "assignment-workers"}
RUNNING = sorted(SERVICES.keys() - {"migrate"})
PROCESS_SERVICES = sorted(OURS.keys() - {"migrate"})

ROLE_OF = {
    "migrate": "assignment_workers",
    "sequencer": roles.WORKER,
    "sequencer-standby": roles.WORKER,
    "maintenance": roles.WORKER,
    "heartbeats": roles.WORKER,
    "gateway": roles.GATEWAY,
    "flower": None,
    "beat": None,
}
"""As which each has the database; None: not at all."""

INTERPOLATION = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?-])(?P<rest>[^}]+))?\}")
SECRET = re.compile(r"PASSWORD|AUTH")

DOCKERFILE = (TOP / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(name: str) -> list[str]:
    """What the Dockerfile says after each instruction of this name, in one line each."""
    lines = (line.partition(" ") for line in DOCKERFILE.splitlines())
    return [" ".join(rest.split()) for first, _, rest in lines if first == name]


def interpolated(value: str) -> str:
    """The value as Compose makes it where a variable without a default is a long `user:word`."""
    return INTERPOLATION.sub(
        lambda found: found["rest"] if found["kind"] == "-" else f"user:{'word' * 8}", value
    )


def seconds(duration: str) -> int:
    """A duration of one unit, as Compose writes it."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def test_it_fits_the_compose_specification() -> None:
    vendored = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    jsonschema.validate(COMPOSE, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", RUNNING)
def test_a_service_that_runs_on_is_started_again_and_asked_for_its_health(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    kind, program, *_ = service["healthcheck"]["test"]
    assert kind == "CMD"
    assert program in {"celery", "pg_isready", "python", "valkey-cli"}


def test_the_schema_is_brought_up_to_date_once_before_any_process_starts() -> None:
    migrate = SERVICES["migrate"]
    assert migrate["restart"] == "no"
    assert migrate["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in PROCESS_SERVICES:
        assert SERVICES[name]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }


def test_no_password_has_a_default() -> None:
    asked = [found for found in INTERPOLATION.finditer(TEXT) if SECRET.search(found["name"])]
    assert {found["name"] for found in asked} == {
        "POSTGRES_PASSWORD",
        "WORKER_PASSWORD",
        "GATEWAY_PASSWORD",
        "VALKEY_PASSWORD",
        "ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH",
    }
    assert {found["kind"] for found in asked} == {"?"}
    written = [
        f"{service}: {name}"
        for service, each in SERVICES.items()
        for name, value in each.get("environment", {}).items()
        if SECRET.search(name) and not INTERPOLATION.fullmatch(value)
    ]
    assert not written


def test_every_server_asks_for_its_password() -> None:
    command = SERVICES["valkey"]["command"]
    assert INTERPOLATION.fullmatch(command[command.index("--requirepass") + 1])
    assert "POSTGRES_PASSWORD" in SERVICES["postgres"]["environment"]
    assert "ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH" in SERVICES["flower"]["environment"]


def test_ports_are_published_on_this_host_alone() -> None:
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    ports = [interpolated(port) for each in published.values() for port in each]
    assert sorted(ports) == [
        "127.0.0.1:5555:5555",
        "127.0.0.1:6379:6379",
        "127.0.0.1:8000:8000",
    ]
    assert not [name for name, each in SERVICES.items() if "network_mode" in each]


def test_every_command_is_one_of_ours_and_every_process_has_a_service() -> None:
    commands = get_group(app).commands
    assert "process" in commands
    schema = commands["schema"]
    assert isinstance(schema, TyperGroup)
    first, second, option = SERVICES["migrate"]["command"]
    assert first == "schema"
    assert second in schema.commands
    assert option in {name for each in schema.commands[second].params for name in each.opts}
    started = [SERVICES[name]["command"] for name in PROCESS_SERVICES]
    assert {first for first, _ in started} == {"process"}
    assert sorted(name for _, name in started) == sorted([*PROCESSES, "sequencer"])


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_variable_is_a_setting_and_its_value_is_accepted(name: str) -> None:
    environment = {key: interpolated(value) for key, value in OURS[name]["environment"].items()}
    known = {field.alias for field in Settings.model_fields.values()}
    assert environment.keys() <= known
    settings = Settings.from_environment(environment)
    if (role := ROLE_OF[name]) is None:
        assert settings.database_url is None
    else:
        assert settings.database.startswith(f"postgresql://{role}:")
        assert settings.database.endswith("@postgres:5432/assignment_workers")
    assert settings.redis.endswith("@valkey:6379/0")


@pytest.mark.parametrize("name", ["sequencer", "sequencer-standby", "maintenance", "heartbeats"])
def test_a_worker_is_asked_by_the_name_that_it_has(name: str) -> None:
    service = SERVICES[name]
    process = service["command"][1]
    assert service["hostname"] == name
    assert service["init"] is False
    assert f"--destination={process}-1@{name}" in service["healthcheck"]["test"]


def test_a_long_build_does_not_make_the_maintenance_worker_unhealthy() -> None:
    check = SERVICES["maintenance"]["healthcheck"]
    assert seconds(check["interval"]) * check["retries"] >= JOB_SECONDS


def test_beat_is_asked_for_the_lock_that_it_holds() -> None:
    config: dict[str, Any] = {}
    source = (TOP / "celeryconfig.py").read_text(encoding="utf-8")
    exec(compile(source, "celeryconfig.py", "exec"), config)  # noqa: S102 - our own file
    lock = f'"{config["redbeat_key_prefix"]}:lock"'
    assert lock in SERVICES["beat"]["healthcheck"]["test"][-1]


def test_processes_read_the_celeryconfig_that_the_operator_edits() -> None:
    (folder,) = instructions("WORKDIR")[1:]
    for name in PROCESS_SERVICES:
        assert f"./celeryconfig.py:{folder}/celeryconfig.py:ro" in SERVICES[name]["volumes"]


@pytest.mark.parametrize("name", PROCESS_SERVICES)
def test_a_process_has_the_time_to_end_that_up_gives_it(name: str) -> None:
    assert seconds(SERVICES[name]["stop_grace_period"]) == ProcessSpec(name, []).stop_seconds


def test_the_image_has_a_python_that_the_project_supports() -> None:
    bases = {base.split()[0] for base in instructions("FROM")}
    (version,) = [re.fullmatch(r"python:(3\.\d+)-slim", base) for base in bases]
    assert version is not None
    assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


def test_the_image_installs_only_what_is_locked() -> None:
    installs = [step for step in instructions("RUN") if " install " in step]
    locks = re.findall(r"--require-hashes --requirement (\S+)", " ".join(installs))
    assert locks == ["requirements.lock", "requirements-build.lock"]
    rest = [step for step in installs if "--require-hashes" not in step]
    assert rest
    assert all(step.count("--no-index --no-deps") == 2 for step in rest)
    assert "embedded]" not in DOCKERFILE


def test_the_image_is_built_from_files_that_docker_is_given() -> None:
    ignored = (TOP / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [step.split()[:-1] for step in instructions("COPY") if "--from" not in step]
    for name in (name for names in copied for name in names):
        assert (TOP / name).exists()
        assert f"!{name.removeprefix('./')}" in ignored


def test_the_image_runs_our_command_as_an_ordinary_user() -> None:
    (user,) = instructions("USER")
    assert int(user.split(":")[0]) > 0
    (entrypoint,) = instructions("ENTRYPOINT")
    assert json.loads(entrypoint)[0] in PROJECT["scripts"]
