"""What kustomize makes of an overlay, read as Kubernetes would."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ROOT / "k8s" / "overlays"
VARIANTS = Path(__file__).parent / "variants"
FOLDERS = {folder.name: folder for parent in (OVERLAYS, VARIANTS) for folder in sorted(parent.iterdir())}

Object = dict[str, Any]
Labels = Mapping[str, str]


def kubectl() -> str | None:
    """The environment's own kubectl, or one that is installed."""
    return shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")


@dataclass(frozen=True)
class Workload:
    """A Deployment or its like, and the pods that it makes."""

    manifest: Object

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.manifest["metadata"]["name"])

    @property
    def labels(self) -> Labels:
        """Those of its pods."""
        return dict(self.manifest["spec"]["template"]["metadata"]["labels"])

    @property
    def pod(self) -> Object:
        """The pods' spec."""
        return dict(self.manifest["spec"]["template"]["spec"])

    @property
    def containers(self) -> list[Object]:
        """All of them, those that come first included."""
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def service(self) -> Object:
        """The container that serves."""
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def module(self) -> str | None:
        """The module of ours that it runs, as "services.speech"; None for somebody else's program."""
        first = self.service.get("args", [""])[0]
        return str(first) if str(first).startswith("services.") else None

    @property
    def ports(self) -> dict[str, int]:
        """The container's ports by name."""
        return {port["name"]: port["containerPort"] for port in self.service["ports"]}

    def port(self, port: str | int) -> int | None:
        """The number of a port that is told by name or by number; None for one that the container has not."""
        return self.ports.get(port) if isinstance(port, str) else port if port in self.ports.values() else None


@dataclass(frozen=True)
class Manifests:
    """All objects of an overlay."""

    name: str
    objects: list[Object]

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [manifest for manifest in self.objects if manifest["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object:
        """The object of a kind and name."""
        (found,) = [manifest for manifest in self.of(kind) if manifest["metadata"]["name"] == name]
        return found

    def names(self, kind: str) -> set[str]:
        """Names of a kind's objects."""
        return {manifest["metadata"]["name"] for manifest in self.of(kind)}

    @property
    def workloads(self) -> list[Workload]:
        """Everything that makes pods."""
        return [Workload(manifest) for manifest in self.of("Deployment", "StatefulSet", "DaemonSet", "Job")]

    @property
    def ours(self) -> list[Workload]:
        """What runs a module of the project."""
        return [workload for workload in self.workloads if workload.module]

    def workload(self, name: str) -> Workload:
        """The workload of that name."""
        (found,) = [workload for workload in self.workloads if workload.name == name]
        return found

    def selected(self, labels: Labels) -> list[Workload]:
        """Workloads whose pods have these labels."""
        return [workload for workload in self.workloads if labels.items() <= workload.labels.items()]

    def environment(self, container: Object) -> dict[str, str]:
        """A container's variables as its process sees them; of a secret, its name and key."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            variables |= self.get("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", []):
            if "value" in entry:
                value = re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), entry["value"])
            else:
                reference = entry["valueFrom"]["secretKeyRef"]
                value = f"{reference['name']}.{reference['key']}"
            variables[entry["name"]] = value
        return variables

    def addressed(self, host: str) -> tuple[Object, Workload]:
        """The Service behind a host name of the namespace, and what it leads to."""
        service = self.get("Service", host)
        (workload,) = self.selected(service["spec"]["selector"])
        return service, workload


def render(folder: Path) -> Manifests:
    """What `kubectl kustomize` makes of a folder."""
    command = kubectl()
    assert command is not None
    output = subprocess.run([command, "kustomize", folder], check=True, capture_output=True, text=True).stdout
    return Manifests(folder.name, [manifest for manifest in yaml.safe_load_all(output) if manifest])


def walk(value: object) -> Iterator[tuple[str, Any]]:
    """Every key of a manifest with what stands under it, however deep."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield key, below
            yield from walk(below)
    elif isinstance(value, list):
        for below in value:
            yield from walk(below)
