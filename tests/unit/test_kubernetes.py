"""The manifests in deploy/kubernetes fit Kubernetes' own schemas, and name what this project has."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from allocation.bootstrap import project
from allocation.config import Settings
from messaging import __version__

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
#: A supported release of Kubernetes; what is used here is older by years.
RELEASE = "1.34"
#: These belong to KEDA and kustomize, whose schemas the package lacks.
FOREIGN = {"ScaledObject", "Kustomization"}
MANIFESTS = [
    (file.name, number, document)
    for file in sorted(FOLDER.glob("*.yaml"))
    for number, document in enumerate(yaml.safe_load_all(file.read_text()))
]
PODS = [
    (name, document["spec"]["template"]["spec"])
    for name, _, document in MANIFESTS
    if document["kind"] == "Deployment"
]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize(("name", "number", "document"), MANIFESTS)
def test_a_manifest_fits_the_schema_of_its_kind(name: str, number: int, document: dict[str, Any]):
    if document["kind"] in FOREIGN:
        return
    assert kubernetes_validate.validate(document, RELEASE, strict=True)


def test_kustomize_names_every_manifest():
    named = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"])
    files = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}

    assert named == files | {"secret.yaml"}


def test_every_setting_that_is_named_exists():
    known = {f"ALLOCATION_{name.upper()}" for name in Settings.model_fields}
    named = {
        name
        for _, _, document in MANIFESTS
        for name in (*document.get("data", {}), *document.get("stringData", {}))
    }

    assert named - known == {"FLOWER_BASIC_AUTH"}


def test_every_queue_is_read_and_the_image_has_this_version():
    text = "".join(file.read_text() for file in FOLDER.glob("*.yaml"))
    read = {queue for queues in re.findall(r"--queues=([^\"]*)", text) for queue in queues.split(",")}

    assert read == set(project.queues)
    assert {container["image"] for _, pod in PODS for container in containers(pod)} == {
        f"allocation:{__version__}"
    }


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_no_container_is_root_or_writes_to_its_image(name: str, pod: dict[str, Any]):
    assert pod["securityContext"]["runAsNonRoot"]
    for container in containers(pod):
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_a_pod_migrates_before_it_starts(name: str, pod: dict[str, Any]):
    """`kubectl apply` changes all deployments at once; a new worker must not meet the old schema."""
    [first] = pod["initContainers"]

    assert first["command"] == ["python", "-m", "allocation", "migrate"]
    assert first["envFrom"] == pod["containers"][0]["envFrom"]


def test_an_old_pod_goes_on_until_a_new_one_is_ready():
    """The migration may fail, or wait for a backup. For one pod, this is also Kubernetes' default."""
    gently = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    for _, _, document in MANIFESTS:
        if document["kind"] == "Deployment":
            default = gently if document["spec"].get("replicas") == 1 else None
            assert document["spec"].get("strategy", default) == gently


def test_what_is_scaled_names_no_number():
    """Each `kubectl apply` would scale it back to that."""
    scaled = {
        document["spec"]["scaleTargetRef"]["name"]
        for _, _, document in MANIFESTS
        if document["kind"] == "ScaledObject"
    }
    with_number = {
        document["metadata"]["name"]
        for _, _, document in MANIFESTS
        if document["kind"] == "Deployment" and "replicas" in document["spec"]
    }

    assert scaled
    assert not scaled & with_number


@pytest.mark.parametrize("name", ["worker.yaml", "housekeeping.yaml"])
def test_the_startup_probe_waits_for_a_container_that_was_restarted(tmp_path: Path, name: str):
    """The volume with the file outlives a container."""
    [pod] = [pod for file, pod in PODS if file == name]
    [container] = pod["containers"]
    file = tmp_path / "alive"
    file.touch()

    def run(command: list[str]) -> int:
        real = [part.replace("/tmp/alive", str(file)).replace("celery", "true") for part in command]
        return subprocess.run(real, check=False).returncode

    assert run(container["command"]) == 0

    assert run(container["startupProbe"]["exec"]["command"]) == 1


@pytest.mark.parametrize(("age_s", "alive"), [(0, True), (120, False)])
def test_the_liveness_probe_tells_by_the_age_of_the_file(tmp_path: Path, age_s: int, alive: bool):
    [pod] = [pod for name, pod in PODS if name == "worker.yaml"]
    *shell, script = pod["containers"][0]["livenessProbe"]["exec"]["command"]
    file = tmp_path / "alive"
    file.touch()
    os.utime(file, (time.time() - age_s,) * 2)

    ended = subprocess.run([*shell, script.replace("/tmp/alive", str(file))], check=False)

    assert (ended.returncode == 0) is alive
