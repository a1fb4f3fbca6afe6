"""The manifests for Kubernetes and the unit for systemd, without either."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from assignment_workers.settings import ProcessName, Settings
from tests.support.root import ROOT

MANIFESTS = ROOT / "ops" / "kubernetes"
UNIT = ROOT / "ops" / "systemd" / "assignment-workers@.service"
KUBERNETES = "1.34"
"""The version whose schemas the manifests have to fit."""


def documents() -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of every manifest, by kind and name."""
    yaml = YAML(typ="safe")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for file in sorted(MANIFESTS.glob("*.yaml")):
        for each in yaml.load_all(file.read_text(encoding="utf-8")):
            if each["kind"] != "Kustomization":
                key = (each["kind"], each["metadata"]["name"])
                assert key not in found
                found[key] = each
    return found


OBJECTS = documents()
PODS = {
    name: each["spec"]["template"]
    for (kind, name), each in OBJECTS.items()
    if kind in {"Deployment", "Job"}
}
KEYS = {
    "shared": {"redis-url", "command-key", "number-key"},
    "worker": {"database-url"},
    "gateway": {"database-url"},
    "owner": {"database-url", "worker-password", "gateway-password"},
    "flower": {"basic-auth"},
}
"""The keys of each secret `assignment-workers-...` that docs/how-to/deploy.md makes."""


@pytest.mark.parametrize("key", OBJECTS)
def test_an_object_fits_the_schema_of_its_kind(key: tuple[str, str]) -> None:
    kubernetes_validate.validate(OBJECTS[key], KUBERNETES, strict=True)


def test_the_kustomization_has_every_file() -> None:
    listed = YAML(typ="safe").load((MANIFESTS / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {file.name for file in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed["resources"]) == files


def test_each_process_runs_and_nothing_else() -> None:
    arguments = {name: pod["spec"]["containers"][0]["args"] for name, pod in PODS.items()}
    assert arguments.pop("migrate") == ["schema", "migrate", "--roles"]
    assert arguments == {name: ["process", name] for name in get_args(ProcessName)}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_closed_and_its_settings_are_read(name: str, tmp_path: Path) -> None:
    spec = PODS[name]["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    (secrets,) = (each["projected"] for each in spec["volumes"] if each["name"] == "secrets")
    mounted = {
        each["secret"]["name"].removeprefix("assignment-workers-") for each in secrets["sources"]
    }
    there: set[str] = set().union(*(KEYS[each] for each in mounted))
    (folder,) = (
        each["mountPath"] for each in container["volumeMounts"] if each["name"] == "secrets"
    )
    values = {
        "database-url": "postgresql://a:b@c/d",
        "redis-url": "redis://c",
        "basic-auth": "user:password",
    }
    environment = dict(OBJECTS["ConfigMap", "assignment-workers"]["data"])
    for variable in container["env"]:
        value = variable["value"]
        if variable["name"].endswith("_FILE"):
            key = value.removeprefix(f"{folder}/")
            assert key in there
            (tmp_path / key).write_text(values.get(key, "x" * 32))
            value = str(tmp_path / key)
        environment[variable["name"]] = value
    settings = Settings.from_environment(environment)
    assert (settings.database_url is None) is (name in {"beat", "flower"})
    assert (settings.redis_url is None) is (name == "migrate")
    assert (settings.command_key is None) is (name in {"beat", "flower", "migrate"})


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy", "Service"])
def test_a_selector_selects_pods_that_there_are(kind: str) -> None:
    chosen = 0
    for (each, _), found in OBJECTS.items():
        if each == kind:
            spec = found["spec"]
            labels = spec.get("podSelector", spec.get("selector", {}))
            wanted = labels.get("matchLabels", labels)
            pods = [
                pod for pod in PODS.values() if wanted.items() <= pod["metadata"]["labels"].items()
            ]
            assert pods
            chosen += 1
    assert chosen


def test_what_is_disrupted_one_at_a_time_runs_twice() -> None:
    for (kind, name), budget in OBJECTS.items():
        if kind == "PodDisruptionBudget":
            assert OBJECTS["Deployment", name]["spec"]["replicas"] > budget["spec"]["minAvailable"]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="needs systemd-analyze (Debian: apt install systemd)",
)
def test_systemd_takes_the_unit_and_finds_it_closed(tmp_path: Path) -> None:
    unit = tmp_path / "assignment-workers@sequencer.service"
    program = shutil.which("true")
    text = UNIT.read_text(encoding="utf-8")
    assert "/opt/assignment-workers/bin/assignment-workers process %i" in text
    unit.write_text(text.replace("/opt/assignment-workers/bin/assignment-workers", str(program)))
    for command in (
        ("verify", "--man=no", str(unit)),
        ("security", "--offline=yes", "--threshold=20", str(unit)),
    ):
        done = subprocess.run(
            ["systemd-analyze", *command], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if command[0] == "verify":
            assert done.stderr == ""
