"""Pods are closed as far as Kubernetes' "restricted" standard goes, and what they run is pinned."""

import re
import tomllib

from tests.k8s.manifests import ROOT, Manifests, walk

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_pods_are_restricted(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        context = workload.pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(workload.pod)
        for container in workload.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    (namespace,) = manifests.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_volumes_are_of_the_kinds_that_are_allowed_and_are_mounted(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        volumes = {volume["name"]: set(volume) - {"name"} for volume in workload.pod["volumes"]}
        for kinds in volumes.values():
            assert kinds <= {"emptyDir", "secret", "persistentVolumeClaim", "configMap", "projected"}
        mounted = {mount["name"] for container in workload.containers for mount in container["volumeMounts"]}
        assert mounted == set(volumes)
        for container in workload.containers:
            assert {"/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_what_is_kept_in_memory_or_on_the_machine_has_a_limit(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        for volume in workload.pod["volumes"]:
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]
        for container in workload.containers:
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"])
            assert "memory" in resources["limits"]
            assert "cpu" not in resources["limits"], "a step that is throttled is late by a whole period"


def test_images_are_pinned(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        for container in workload.containers:
            image, _, tag = container["image"].rpartition(":")
            assert image, f"{container['image']} has no tag"
            assert re.match(r"\d+\.\d+\.\d+", tag), tag
            if container in workload.containers and workload.module:
                assert re.fullmatch(rf"{re.escape(VERSION)}-(cpu|cuda)", tag)


def test_no_secret_is_in_the_manifests(manifests: Manifests) -> None:
    assert not manifests.of("Secret")
    for workload in manifests.workloads:
        for key, entry in walk(workload.pod):
            if key == "env":
                for variable in entry:
                    is_secret = re.search("TOKEN|PASSWORD|SECRET", variable["name"]) is not None
                    assert is_secret == ("secretKeyRef" in variable.get("valueFrom", {}))


def test_the_front_goes_before_the_stages(manifests: Manifests) -> None:
    values = {entry["metadata"]["name"]: entry["value"] for entry in manifests.of("PriorityClass")}
    assert values["chroma-mesh-front"] > values["chroma-mesh-stage"] > 0
    for workload in manifests.ours:
        component = workload.labels["app.kubernetes.io/component"]
        assert workload.pod["priorityClassName"] == f"chroma-mesh-{component}"


def test_a_roll_out_needs_no_spare_card(manifests: Manifests) -> None:
    for workload in manifests.ours:
        strategy = workload.manifest["spec"]["strategy"]
        if "nvidia.com/gpu" in workload.service["resources"]["limits"]:
            assert strategy.get("type") == "Recreate" or strategy["rollingUpdate"]["maxSurge"] == 0
        else:
            assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
